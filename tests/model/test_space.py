"""A search space names its parameters, resolves their conditions, and maps configurations to the unit cube and back."""

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metta.sweep.errors import SearchSpaceError
from metta.sweep.model.space import Choice, Constant, LogUniform, Normal, Range, SearchSpace, Uniform, nest
from model.strategies import QUICK, THOROUGH, small_parameters, spaces, units

OPTIMIZERS = SearchSpace.of(
    {
        "optimizer": Choice(["adam", "sgd", "lbfgs"]),
        "lr": LogUniform(1e-5, 1e-1, when={"optimizer": ["adam", "sgd"]}),
        "momentum": Uniform(0.0, 1.0, when={"optimizer": "sgd"}),
        "nesterov": Choice([True, False], when={"optimizer": "sgd"}),
        "damping": Uniform(0.0, 0.5, when={"nesterov": False}),
        "epochs": 10,
    }
)


def spelled(value: object) -> bytes:
    return msgspec.json.encode(value)


def points(space: SearchSpace) -> st.SearchStrategy[list[float]]:
    return st.lists(units, min_size=len(space.dimensions), max_size=len(space.dimensions))


# ------------------------------------------------------------------------------------------------------------- building


def test_nested_mappings_become_dot_paths_and_plain_values_constants():
    space = SearchSpace.of(
        {"trainer": {"optimizer": {"lr": Uniform(0, 1)}, "epochs": 3}, "seed": Choice([1, 2]), "tags": ["a", "b"]}
    )
    assert space.parameters == {
        "trainer.optimizer.lr": Uniform(0, 1),
        "trainer.epochs": Constant(3),
        "seed": Choice([1, 2]),
        "tags": Constant(["a", "b"]),
    }


def test_dot_paths_and_nested_mappings_mean_the_same():
    nested = SearchSpace.of({"a": {"b": {"c": Uniform(0, 1)}, "d": 1}})
    assert (
        nested
        == SearchSpace.of({"a.b.c": Uniform(0, 1), "a.d": 1})
        == SearchSpace.of({"a": {"b.c": Uniform(0, 1), "d": 1}})
    )


def test_an_axis_of_the_unit_cube_belongs_to_each_parameter_but_the_constants_in_declared_order():
    space = SearchSpace.of(
        {"z": Uniform(0, 1), "c": 1, "a": Choice([1]), "m": Range(1, 2, when={"y": 1}), "y": Choice([1, 2])}
    )
    assert space.dimensions == ("z", "a", "m", "y")


def test_parameters_are_resolved_after_those_that_their_conditions_read():
    space = SearchSpace.of(
        {
            "c": Uniform(0, 1, when={"b": 1}),
            "x": Uniform(0, 1),
            "b": Choice([1, 2], when={"a": 1}),
            "a": Choice([1, 2]),
        }
    )
    assert space.resolution_order == ("x", "a", "b", "c")


@QUICK
@given(space=spaces())
def test_the_order_of_resolution_holds_every_parameter_once_and_parents_first(space):
    order = space.resolution_order
    assert sorted(order) == sorted(space.parameters)
    for name, parameter in space.parameters.items():
        assert all(order.index(parent) < order.index(name) for parent in parameter.when)


@QUICK
@given(space=spaces(small_parameters(), parents_first=True))
def test_where_parents_come_first_parameters_are_resolved_as_declared(space):
    assert space.resolution_order == tuple(space.parameters)


BAD = {
    "no parameters": ({}, "search_space: needs at least one parameter, got none"),
    "a number as a name": ({"a": {1: Uniform(0, 1)}}, "parameter names are strings, got 1"),
    "an empty name": ({"": 1}, "parameter '': a name is one or more words joined by single dots"),
    "a name beyond any table": ({"a" * 251: 1}, "...: a name has at most 250 characters, got 251"),
    "a dot at the end": ({"a.": 1}, "parameter 'a.': a name is one or more words joined by single dots"),
    "two dots": ({"a": {".b": 1}}, "parameter 'a..b': a name is one or more words joined by single dots"),
    "an empty group": ({"a": 1, "b": {}}, "parameter 'b': an empty mapping holds no parameters"),
    "the same name twice": ({"a.b": 1, "a": {"b": 2}}, "parameter 'a.b' is defined twice"),
    "a parameter in a parameter": ({"a.b": 1, "a.b.c": 2}, "parameter 'a.b.c': 'a.b' is a parameter itself"),
    "a value that JSON cannot hold": ({"a": {"f": len}}, "parameter 'a.f': Constant: <built-in function len> is a"),
    "an unknown parent": (
        {"model": Choice([1, 2]), "lr": Uniform(0, 1, when={"modle": 1})},
        "parameter 'lr': its condition names 'modle'; did you mean 'model'? known: lr, model",
    ),
    "a continuous parent": (
        {"x": Uniform(0, 1), "y": Uniform(0, 1, when={"x": 0.5})},
        "parameter 'y': its condition names 'x', which is continuous",
    ),
    "a normal parent": (
        {"x": Normal(0, 1), "y": Uniform(0, 1, when={"x": 0.0})},
        "parameter 'y': its condition names 'x', which is continuous",
    ),
    "a value the parent never takes": (
        {"x": Choice(["a", "b"]), "y": Uniform(0, 1, when={"x": "c"})},
        "parameter 'y': 'x' is never 'c'",
    ),
    "one of several values that the parent never takes": (
        {"x": Range(1, 5), "y": Uniform(0, 1, when={"x": [1, 6]})},
        "parameter 'y': 'x' is never 6",
    ),
    "a truth value where the parent has a number": (
        {"x": Choice([0, 1]), "y": Uniform(0, 1, when={"x": True})},
        "parameter 'y': 'x' is never True",
    ),
    "a constant that is something else": ({"x": 1, "y": Uniform(0, 1, when={"x": 2})}, "parameter 'y': 'x' is never 2"),
    "no alternatives": (
        {"x": Choice([1, 2]), "y": Uniform(0, 1, when={"x": []})},
        "parameter 'y': its condition on 'x' lists no values",
    ),
    "a condition on itself": ({"x": Choice([1, 2], when={"x": 1})}, "conditions form a circle: x -> x"),
    "a circle of two": (
        {"x": Choice([1, 2], when={"y": 1}), "y": Choice([1, 2], when={"x": 1})},
        "search_space: conditions form a circle: ",
    ),
    "a circle of three behind a free parameter": (
        {
            "free": Choice([1]),
            "x": Choice([1, 2], when={"y": 1, "free": 1}),
            "y": Choice([1, 2], when={"z": 1}),
            "z": Choice([1, 2], when={"x": 1}),
        },
        "search_space: conditions form a circle: ",
    ),
}


@pytest.mark.parametrize(("definition", "message"), BAD.values(), ids=BAD.keys())
def test_a_space_that_makes_no_sense_is_refused_with_the_name_of_the_parameter(definition, message):
    with pytest.raises(SearchSpaceError) as caught:
        SearchSpace.of(definition)
    assert message in str(caught.value)


def test_a_space_from_json_is_checked_as_well():
    text = """
        {"parameters": {
            "x": {"type": "choice", "values": [1]},
            "y": {"type": "range", "low": 1, "high": 2, "when": {"x": 3}}
        }}
    """
    with pytest.raises(SearchSpaceError, match="'x' is never 3"):
        msgspec.json.decode(text, type=SearchSpace)


# ----------------------------------------------------------------------------------------------------------- conditions


@pytest.mark.parametrize(
    ("optimizer", "nesterov", "present"),
    [
        (0.0, 0.0, {"optimizer", "lr", "epochs"}),
        (0.5, 0.0, {"optimizer", "lr", "momentum", "nesterov", "epochs"}),
        (0.5, 1.0, {"optimizer", "lr", "momentum", "nesterov", "damping", "epochs"}),
        (1.0, 1.0, {"optimizer", "epochs"}),
    ],
    ids=["adam", "sgd with nesterov", "sgd without nesterov", "lbfgs"],
)
def test_parameters_exist_only_where_their_conditions_hold(optimizer, nesterov, present):
    config = OPTIMIZERS.decode([optimizer, 0.5, 0.5, nesterov, 0.5])
    assert set(config) == present
    assert config["epochs"] == 10


def test_a_condition_on_a_parameter_that_is_absent_does_not_hold():
    """Nesterov would be False, but there is none where the optimizer is not SGD."""
    assert not OPTIMIZERS.is_active("damping", {"optimizer": "adam"})
    assert OPTIMIZERS.is_active("damping", {"optimizer": "sgd", "nesterov": False})


def test_all_conditions_of_a_parameter_must_hold():
    space = SearchSpace.of({"a": Choice([1, 2]), "b": Choice([1, 2]), "c": Uniform(0, 1, when={"a": 1, "b": 2})})
    assert [[("c" in space.decode([a, b, 0.5])) for b in (0.0, 1.0)] for a in (0.0, 1.0)] == [
        [False, True],
        [False, False],
    ]


def test_a_list_that_is_itself_a_value_of_the_parent_is_not_read_as_alternatives():
    space = SearchSpace.of({"layers": Choice([[64, 64], [128]]), "width": Uniform(0, 1, when={"layers": [64, 64]})})
    assert "width" in space.decode([0.0, 0.5])
    assert "width" not in space.decode([1.0, 0.5])


def test_conditions_may_be_written_with_tuples_like_the_values_of_a_choice():
    layers = Choice([(64, 64), (128,), (32,)])
    one = SearchSpace.of({"layers": layers, "width": Uniform(0, 1, when={"layers": (64, 64)})})
    assert ["width" in one.decode([unit, 0.5]) for unit in (0.0, 0.5, 1.0)] == [True, False, False]
    several = SearchSpace.of({"layers": layers, "width": Uniform(0, 1, when={"layers": ((64, 64), (32,))})})
    assert ["width" in several.decode([unit, 0.5]) for unit in (0.0, 0.5, 1.0)] == [True, False, True]


@pytest.mark.parametrize("parent", [Range(0, 1, step=0.5), Range(0, 1)], ids=["floats", "integers"])
@pytest.mark.parametrize("wanted", [1, 1.0, np.int64(1), np.float64(1.0), [1.0], [0, 1]], ids=repr)
def test_a_condition_on_a_range_may_name_its_values_as_integers_or_floats(parent, wanted):
    space = SearchSpace.of({"x": parent, "y": Uniform(0, 1, when={"x": wanted})})
    config = space.decode([1.0, 0.5])
    assert config == {"x": 1, "y": 0.5}
    assert space.decode(space.encode(config)) == config


def test_conditions_on_a_choice_tell_one_one_point_zero_and_true_apart():
    space = SearchSpace.of({"x": Choice([1, 1.0, True]), "y": Uniform(0, 1, when={"x": 1.0})})
    assert ["y" in space.decode([unit, 0.5]) for unit in (0.0, 0.5, 1.0)] == [False, True, False]


# ---------------------------------------------------------------------------------------------- the unit cube and back


@THOROUGH
@given(data=st.data(), space=spaces())
def test_a_configuration_comes_back_from_its_point_unchanged(data, space):
    config = space.decode(data.draw(points(space)))
    point = space.encode(config)
    assert len(point) == len(space.dimensions)
    assert all(0.0 <= unit <= 1.0 for unit in point)
    assert spelled(space.decode(point)) == spelled(config)


@QUICK
@given(data=st.data(), space=spaces())
def test_a_decoded_configuration_passes_the_check_in_declared_order_and_with_the_right_parameters(data, space):
    config = space.decode(data.draw(points(space)))
    space.check(config)
    assert list(config) == [name for name in space.parameters if name in config]
    assert set(config) == {name for name in space.parameters if space.is_active(name, config)}


@QUICK
@given(data=st.data(), space=spaces())
def test_absent_parameters_stand_in_the_middle_of_their_axis(data, space):
    config = space.decode(data.draw(points(space)))
    point = dict(zip(space.dimensions, space.encode(config), strict=True))
    assert all(unit == 0.5 for name, unit in point.items() if name not in config)


@QUICK
@given(data=st.data(), space=spaces())
def test_a_space_survives_json_with_all_its_configurations(data, space):
    loaded = msgspec.json.decode(msgspec.json.encode(space), type=SearchSpace)
    point = data.draw(points(space))
    config = space.decode(point)
    assert loaded == space
    assert list(loaded.parameters) == list(space.parameters)
    assert spelled(loaded.decode(point)) == spelled(config)
    assert loaded.encode(msgspec.json.decode(spelled(config))) == space.encode(config)


@pytest.mark.parametrize("units", [[], [0.5] * 4, [0.5] * 6])
def test_a_point_with_the_wrong_number_of_coordinates_is_refused(units):
    with pytest.raises(SearchSpaceError, match=f"a point needs 5 coordinates, got {len(units)}"):
        OPTIMIZERS.decode(units)


# ---------------------------------------------------------------------------------------------------------------- check


def test_a_right_configuration_passes_the_check():
    OPTIMIZERS.check({"optimizer": "sgd", "lr": 0.01, "momentum": 0.9, "nesterov": True, "epochs": 10})
    OPTIMIZERS.check({"epochs": 10, "optimizer": "lbfgs"})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"optimizer": "lbfgs", "epoch": 10},
            "unknown parameter 'epoch'; did you mean 'epochs'? known: damping, epochs, lr",
        ),
        ({"optimizer": "rmsprop", "epochs": 10}, "parameter 'optimizer': 'rmsprop' is outside Choice"),
        ({"optimizer": "adam", "lr": 1.0, "epochs": 10}, "parameter 'lr': 1.0 is outside LogUniform"),
        ({"optimizer": "adam", "lr": math.nan, "epochs": 10}, "parameter 'lr': nan is outside LogUniform"),
        ({"optimizer": "lbfgs", "epochs": 11}, "parameter 'epochs': 11 is outside Constant"),
        ({"optimizer": "lbfgs"}, "parameter 'epochs' is missing"),
        ({"optimizer": "adam", "epochs": 10}, "parameter 'lr' is missing"),
        ({"epochs": 10}, "parameter 'optimizer' is missing"),
        (
            {"optimizer": "adam", "lr": 0.01, "momentum": 0.9, "epochs": 10},
            "parameter 'momentum' does not exist where {'optimizer': 'sgd'} fails",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_configuration_is_refused_by_check_and_encode_alike(config, message):
    for refuse in (OPTIMIZERS.check, OPTIMIZERS.encode):
        with pytest.raises(SearchSpaceError) as caught:
            refuse(config)
        assert message in str(caught.value)


@QUICK
@given(data=st.data(), space=spaces())
def test_a_configuration_with_one_parameter_less_or_too_much_never_passes(data, space):
    config = space.decode(data.draw(points(space)))
    name = data.draw(st.sampled_from(sorted(space.parameters)))
    wrong = {key: value for key, value in config.items() if key != name}
    if name not in config:
        wrong = {**config, name: space.parameters[name].decode(0.5)}
    with pytest.raises(SearchSpaceError):
        space.check(wrong)


# ------------------------------------------------------------------------------------------------------------ key, nest


@QUICK
@given(data=st.data(), space=spaces(small_parameters()))
def test_two_configurations_have_one_key_only_when_they_are_the_same(data, space):
    left, right = (space.decode(data.draw(points(space))) for _ in range(2))
    assert (space.key(left) == space.key(right)) == (spelled(left) == spelled(right))


def test_a_key_does_not_depend_on_the_order_of_names():
    space = SearchSpace.of({"a": Choice([{"x": 1, "y": 2}]), "b": Choice([1, 2])})
    assert space.key({"b": 1, "a": {"y": 2, "x": 1}}) == space.key({"a": {"x": 1, "y": 2}, "b": 1})


def test_keys_tell_one_one_point_zero_and_true_apart():
    space = SearchSpace.of({"a": Choice([1, 1.0, True])})
    assert len({space.key({"a": value}) for value in (1, 1.0, True)}) == 3


def test_nest_turns_dot_paths_into_dictionaries():
    assert nest({"a.b.c": 1, "a.d": 2, "e": 3}) == {"a": {"b": {"c": 1}, "d": 2}, "e": 3}
    assert nest({}) == {}


@QUICK
@given(data=st.data(), space=spaces(small_parameters()))
def test_nest_is_undone_by_building_a_space(data, space):
    config = space.decode(data.draw(points(space)))
    rebuilt = SearchSpace.of(nest(config))
    assert {name: parameter.value for name, parameter in rebuilt.parameters.items()} == config


def test_a_finite_space_has_the_cardinality_of_its_lattice_and_an_infinite_one_has_none():
    assert SearchSpace.of({"a": Choice([1, 2]), "b": Range(1, 3), "c": "x"}).cardinality == 6
    assert SearchSpace.of({"a": Choice([1, 2]), "b": Range(1, 3, when={"a": 1})}).cardinality == 4
    assert SearchSpace.of({"a": Choice([1, 2]), "b": Uniform(1, 3)}).cardinality is None


# ----------------------------------------------------------------------------------------------------------- completing


@THOROUGH
@given(data=st.data())
def test_a_configuration_is_completed_from_values_as_far_as_they_exist_and_a_point(data):
    space = data.draw(spaces())
    point, other = data.draw(points(space)), data.draw(points(space))
    config = space.decode(point)
    assert space.completed(config, other) == config
    assert space.completed({}, other) == space.decode(other)
    name = data.draw(st.sampled_from(sorted(space.parameters)))
    changed = space.decode(other)
    if name in changed:
        mixed = space.completed({**config, name: changed[name]}, other)
        space.check(mixed)
        assert name not in mixed or mixed[name] == changed[name]


def test_what_a_change_brings_into_being_is_as_at_the_point_and_what_it_makes_moot_is_gone():
    wanted = {"optimizer": "sgd", "lr": 0.01}
    assert OPTIMIZERS.completed(wanted, [0.5] * 5) == {
        "optimizer": "sgd",
        "lr": 0.01,
        "momentum": 0.5,
        "nesterov": False,
        "damping": 0.25,
        "epochs": 10,
    }
    assert OPTIMIZERS.completed({**wanted, "optimizer": "lbfgs"}, [0.5] * 5) == {"optimizer": "lbfgs", "epochs": 10}
