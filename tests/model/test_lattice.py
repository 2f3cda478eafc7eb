"""A lattice counts and numbers the configurations of a space without making them."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metta.sweep.model.lattice import Lattice
from metta.sweep.model.space import Choice, Config, LogUniform, Range, SearchSpace, Uniform
from model.strategies import QUICK, THOROUGH, small_parameters, spaces


def brute_force(space: SearchSpace) -> list[Config]:
    """All configurations in order: every parameter is given every value, and what is absent is dropped."""
    names = space.resolution_order
    members = [space.parameters[name] for name in names]
    found: dict[bytes, Config] = {}
    for values in product(*([member.value_at(index) for index in range(member.cardinality)] for member in members)):
        config: Config = {}
        for name, value in zip(names, values, strict=True):
            if space.is_active(name, config):
                config[name] = value
        found.setdefault(space.key(config), config)
    return list(found.values())


def walk(lattice: Lattice) -> list[Config]:
    return [lattice.at(index) for index in range(lattice.size)]


@THOROUGH
@given(space=spaces(small_parameters()))
def test_a_lattice_has_the_configurations_that_brute_force_finds_in_the_same_order(space):
    assert [space.key(config) for config in walk(Lattice(space))] == [
        space.key(config) for config in brute_force(space)
    ]


@QUICK
@given(space=spaces(small_parameters()))
def test_all_configurations_are_distinct_and_valid_and_name_their_parameters_in_declared_order(space):
    configs = walk(Lattice(space))
    assert len({space.key(config) for config in configs}) == len(configs)
    for config in configs:
        space.check(config)
        assert list(config) == [name for name in space.parameters if name in config]


@QUICK
@given(space=spaces(small_parameters()), data=st.data())
def test_every_point_of_the_unit_cube_decodes_to_a_configuration_of_the_lattice(space, data):
    known = {space.key(config) for config in walk(Lattice(space))}
    units = st.lists(st.floats(0, 1), min_size=len(space.dimensions), max_size=len(space.dimensions))
    assert space.key(space.decode(data.draw(units))) in known


def test_the_parameter_declared_last_varies_fastest():
    space = SearchSpace.of({"a": Choice(["x", "y"]), "c": 0, "b": Range(1, 3)})
    assert [(config["a"], config["b"]) for config in walk(Lattice(space))] == [
        ("x", 1),
        ("x", 2),
        ("x", 3),
        ("y", 1),
        ("y", 2),
        ("y", 3),
    ]


def test_configurations_that_differ_only_in_absent_parameters_are_counted_once():
    space = SearchSpace.of(
        {
            "kind": Choice(["tree", "net"]),
            "depth": Range(1, 3, when={"kind": "tree"}),
            "layers": Range(1, 2, when={"kind": "net"}),
            "dropout": Choice([True, False], when={"layers": 2}),
        }
    )
    assert walk(Lattice(space)) == [
        {"kind": "tree", "depth": 1},
        {"kind": "tree", "depth": 2},
        {"kind": "tree", "depth": 3},
        {"kind": "net", "layers": 1},
        {"kind": "net", "layers": 2, "dropout": True},
        {"kind": "net", "layers": 2, "dropout": False},
    ]


def test_levels_stand_for_continuous_parameters():
    space = SearchSpace.of({"lr": LogUniform(1e-4, 1e-2), "n": Range(1, 2)})
    lattice = Lattice(space, {"lr": [0.0, 0.5, 1.0]})
    assert lattice.size == 6
    assert [(config["lr"], config["n"]) for config in walk(lattice)] == [
        (1e-4, 1),
        (1e-4, 2),
        (1e-3, 1),
        (1e-3, 2),
        (1e-2, 1),
        (1e-2, 2),
    ]


def test_levels_count_only_where_their_parameter_exists():
    space = SearchSpace.of({"kind": Choice(["a", "b"]), "x": Uniform(0, 1, when={"kind": "b"})})
    assert walk(Lattice(space, {"x": [0.0, 1.0]})) == [{"kind": "a"}, {"kind": "b", "x": 0.0}, {"kind": "b", "x": 1.0}]


@pytest.mark.parametrize("index", [-1, 6, 10**30])
def test_an_index_outside_is_refused(index):
    lattice = Lattice(SearchSpace.of({"a": Choice([1, 2]), "b": Range(1, 3)}))
    with pytest.raises(IndexError, match=f"index {index} is outside the 6 configurations of the space"):
        lattice.at(index)


#: For lattices that would take for ever, and all memory, if they were made instead of counted.
costs_nothing = pytest.mark.timeout(3)


@costs_nothing
def test_a_lattice_of_a_million_million_points_costs_nothing():
    lattice = Lattice(SearchSpace.of({f"x{digit}": Range(0, 9) for digit in range(12)}))
    assert lattice.size == 10**12
    assert list(lattice.at(123_456_789_012).values()) == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2]
    assert set(lattice.at(10**12 - 1).values()) == {9}


@costs_nothing
def test_a_parameter_with_very_many_values_costs_nothing():
    lattice = Lattice(SearchSpace.of({"a": Range(1, 10**12), "b": Choice(["x", "y"])}))
    assert lattice.size == 2 * 10**12
    assert lattice.at(10**12 + 1) == {"a": 5 * 10**11 + 1, "b": "y"}


@costs_nothing
def test_conditions_on_a_parameter_with_very_many_values_cost_nothing():
    space = SearchSpace.of(
        {
            "steps": Range(1, 10**12),
            "warmup": Choice(["linear", "cosine"], when={"steps": [1000, 10**12]}),
            "decay": Choice([0, 1, 2], when={"steps": 1000}),
        }
    )
    lattice = Lattice(space)
    assert lattice.size == 10**12 + 5 + 1 == space.cardinality
    assert lattice.at(998) == {"steps": 999}
    assert lattice.at(999) == {"steps": 1000, "warmup": "linear", "decay": 0}
    assert lattice.at(1004) == {"steps": 1000, "warmup": "cosine", "decay": 2}
    assert lattice.at(1005) == {"steps": 1001}
    assert lattice.at(lattice.size - 1) == {"steps": 10**12, "warmup": "cosine"}


@costs_nothing
@pytest.mark.parametrize("order", ["switches first", "each beside its setting"])
def test_many_independent_conditions_cost_nothing(order):
    pairs = [
        {f"use_{n}": Choice([False, True]), f"rate_{n}": Choice([0.1, 0.2, 0.3], when={f"use_{n}": True})}
        for n in range(40)
    ]
    members = {name: parameter for pair in pairs for name, parameter in pair.items()}
    if order == "switches first":
        members = dict(sorted(members.items(), key=lambda item: item[0].startswith("rate")))
    lattice = Lattice(SearchSpace.of(members))
    assert lattice.size == 4**40
    assert lattice.at(0) == {f"use_{n}": False for n in range(40)}
    assert lattice.at(4**40 - 1) == {name: True if name.startswith("use") else 0.3 for name in members}


@costs_nothing
def test_many_switches_under_one_condition_cost_nothing():
    members: dict[str, object] = {"on": Choice([False, True])}
    for n in range(30):
        members[f"use_{n}"] = Choice([False, True], when={"on": True})
        members[f"rate_{n}"] = Choice([0.1, 0.2, 0.3], when={f"use_{n}": True})
    assert Lattice(SearchSpace.of(members)).size == 1 + 4**30
