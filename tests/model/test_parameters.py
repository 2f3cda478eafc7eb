"""Each kind of parameter maps the unit interval to its values and back, exactly."""

import math
from collections import Counter
from enum import IntEnum, StrEnum
from fractions import Fraction

import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from metta.sweep.errors import SearchSpaceError
from metta.sweep.model.parameters import (
    Choice,
    Constant,
    LogNormal,
    LogUniform,
    Normal,
    Parameter,
    Range,
    Uniform,
)
from model.strategies import (
    QUICK,
    THOROUGH,
    choices,
    constants,
    continuous_ranges,
    integer_ranges,
    log_integer_ranges,
    log_normals,
    log_uniforms,
    normals,
    numbers,
    parameters,
    stepped_ranges,
    uniforms,
    units,
)

EVERY_KIND = {
    "uniform": uniforms(),
    "log uniform": log_uniforms(),
    "continuous range": continuous_ranges(),
    "integer range": integer_ranges(),
    "log integer range": log_integer_ranges(),
    "stepped range": stepped_ranges(),
    "choice": choices(),
    "normal": normals(),
    "log normal": log_normals(),
    "constant": constants(),
}
every_kind = pytest.mark.parametrize("kind", EVERY_KIND.values(), ids=EVERY_KIND.keys())


def spelled(value: object) -> bytes:
    """The value as JSON, which tells `1`, `1.0` and `True` apart, and `0.0` and `-0.0`."""
    return msgspec.json.encode(value, order="deterministic")


# ------------------------------------------------------------------------------------------- there and back again


@every_kind
@THOROUGH
@given(data=st.data(), unit=units)
def test_every_value_that_decode_gives_comes_back_from_its_point_unchanged(kind, data, unit):
    parameter = data.draw(kind)
    value = parameter.decode(unit)
    point = parameter.encode(value)
    assert 0.0 <= point <= 1.0
    assert spelled(parameter.decode(point)) == spelled(value)


@every_kind
@QUICK
@given(data=st.data(), unit=units)
def test_a_parameter_contains_every_value_that_decode_gives(kind, data, unit):
    parameter = data.draw(kind)
    assert parameter.contains(parameter.decode(unit))


@QUICK
@given(
    parameter=st.one_of(uniforms(), log_uniforms(), continuous_ranges(), integer_ranges(), stepped_ranges()), unit=units
)
def test_values_stay_between_low_and_high(parameter, unit):
    assert parameter.low <= parameter.decode(unit) <= parameter.high


@QUICK
@given(parameter=numbers(), pair=st.tuples(units, units))
def test_a_larger_point_never_gives_a_smaller_value(parameter, pair):
    assert parameter.decode(min(pair)) <= parameter.decode(max(pair))


@QUICK
@given(parameter=st.one_of(uniforms(), log_uniforms(), continuous_ranges(), normals(), log_normals()), unit=units)
def test_continuous_parameters_give_floats_and_have_no_cardinality(parameter, unit):
    assert type(parameter.decode(unit)) is float
    assert parameter.cardinality is None


@QUICK
@given(parameter=integer_ranges() | log_integer_ranges() | stepped_ranges() | choices() | constants(), data=st.data())
def test_every_value_of_a_discrete_parameter_is_reached_through_its_own_point(parameter, data):
    value = parameter.value_at(data.draw(st.integers(0, parameter.cardinality - 1)))
    assert parameter.contains(value)
    assert spelled(parameter.decode(parameter.encode(value))) == spelled(value)


@QUICK
@given(parameter=integer_ranges() | log_integer_ranges() | stepped_ranges(), data=st.data())
def test_the_values_of_a_range_grow_with_their_number_up_to_the_cardinality(parameter, data):
    last = parameter.cardinality - 1
    index = data.draw(st.integers(0, last - 1))
    assert parameter.low == parameter.value_at(0)
    assert parameter.value_at(index) < parameter.value_at(index + 1)
    assert parameter.value_at(last) <= parameter.high < parameter.value_at(last + 1)


@QUICK
@given(
    parameter=st.one_of(
        st.builds(Range, st.integers(-9, 0), st.integers(1, 9)),
        st.builds(Range, st.integers(1, 4), st.integers(5, 9), log=st.just(True)),
        st.builds(Range, st.just(0.3), st.integers(1, 9), step=st.sampled_from([0.1, 0.25, 0.7])),
        choices(),
        constants(),
    )
)
def test_cardinality_is_the_number_of_values_that_decode_gives(parameter):
    reached = {spelled(parameter.decode(step / 5000)) for step in range(5001)}
    assert len(reached) == parameter.cardinality
    assert reached == {spelled(parameter.value_at(index)) for index in range(parameter.cardinality)}


# ------------------------------------------------------------------------------------------------- what decode gives


def test_uniform_runs_from_low_to_high():
    parameter = Uniform(-1.0, 3.0)
    assert [parameter.decode(unit) for unit in (0.0, 0.25, 0.5, 1.0)] == [-1.0, 0.0, 1.0, 3.0]


def test_uniform_gives_twelve_digits_of_its_width_and_no_floating_point_dust():
    assert Uniform(0.0, 1.0).decode(0.1 + 0.2) == 0.3
    assert Uniform(0.0, 3.0).decode(1 / 3 - 1e-17) == 1.0


def test_zero_has_no_sign():
    assert str(Uniform(-1.0, 1.0).decode(0.5 - 1e-16)) == "0.0"
    assert str(Uniform(-0.0, 1.0).decode(0.0)) == "0.0"
    assert str(Range(-0.2, 0.2, step=0.1).decode(0.5)) == "0.0"


@pytest.mark.parametrize(
    "kind", [LogUniform, lambda low, high: Range(low, high, log=True)], ids=["log_uniform", "range"]
)
def test_the_middle_of_a_logarithmic_scale_is_the_geometric_mean(kind):
    parameter = kind(1e-6, 1e-2)
    assert [parameter.decode(unit) for unit in (0.0, 0.25, 0.5, 1.0)] == [1e-6, 1e-5, 1e-4, 1e-2]


def test_a_normal_parameter_has_the_quantiles_of_its_distribution():
    parameter = Normal(10.0, 2.0)
    assert parameter.decode(0.5) == 10.0
    assert parameter.decode(0.841344746) == pytest.approx(12.0, abs=1e-5)
    assert [parameter.decode(unit) for unit in (0.0, 1.0)] == [0.0, 20.0]


def test_a_log_normal_parameter_is_the_exponential_of_a_normal_one():
    parameter = LogNormal(1.0, 0.5)
    assert parameter.decode(0.5) == math.e
    assert parameter.decode(0.841344746) == pytest.approx(math.exp(1.5), rel=1e-5)
    assert [parameter.decode(unit) for unit in (0.0, 1.0)] == [math.exp(-1.5), math.exp(3.5)]


@pytest.mark.parametrize(
    ("parameter", "values"),
    [
        (Range(0.1, 0.5, step=0.1), [0.1, 0.2, 0.3, 0.4, 0.5]),
        (Range(0.1, 0.3, step=0.2), [0.1, 0.3]),
        (Range(-0.3, 0.1, step=0.1), [-0.3, -0.2, -0.1, 0.0, 0.1]),
        (Range(0, 1, step=0.25), [0.0, 0.25, 0.5, 0.75, 1.0]),
        (Range(1e-5, 5e-5, step=1e-5), [1e-5, 2e-5, 3e-5, 4e-5, 5e-5]),
        (Range(0.0, 1.0, step=0.3), [0.0, 0.3, 0.6, 0.9]),
        (Range(1.0, 3.0, step=1), [1.0, 2.0, 3.0]),
    ],
    ids=str,
)
def test_a_stepped_range_of_floats_has_exactly_the_decimals_one_would_write(parameter, values):
    assert parameter.cardinality == len(values)
    assert [parameter.value_at(index) for index in range(len(values))] == values
    assert [parameter.decode((index + 0.5) / len(values)) for index in range(len(values))] == values
    assert all(type(parameter.value_at(index)) is float for index in range(len(values)))


@pytest.mark.parametrize(
    ("parameter", "values"),
    [
        (Range(-1, 2), [-1, 0, 1, 2]),
        (Range(0, 10, step=4), [0, 4, 8]),
        (Range(16, 64, step=16), [16, 32, 48, 64]),
        (Range(2**60, 2**60 + 2), [2**60, 2**60 + 1, 2**60 + 2]),
    ],
    ids=str,
)
def test_a_range_of_integers_has_integers(parameter, values):
    assert parameter.cardinality == len(values)
    assert [parameter.value_at(index) for index in range(len(values))] == values
    assert all(type(parameter.decode(unit)) is int for unit in (0.0, 0.5, 1.0))


def test_a_range_with_one_float_and_no_step_is_continuous():
    assert Range(1, 2.0).decode(0.5) == 1.5


@pytest.mark.parametrize(
    "parameter", [Range(1, 5), Range(0.1, 0.5, step=0.1), Choice(["a", "b", "c", "d", "e"])], ids=str
)
def test_values_without_a_logarithm_share_the_unit_interval_equally(parameter):
    counts = Counter(parameter.decode((point + 0.5) / 1000) for point in range(1000))
    assert set(counts.values()) == {200}


@pytest.mark.parametrize(
    "parameter", [Range(3, 9, step=3), Range(0.1, 0.3, step=0.1), Choice(["a", "b", "c"])], ids=str
)
def test_the_point_of_a_discrete_value_is_the_middle_of_its_part_of_the_unit_interval(parameter):
    points = [parameter.encode(parameter.value_at(index)) for index in range(3)]
    assert points == pytest.approx([1 / 6, 1 / 2, 5 / 6])


def test_integers_on_a_logarithmic_scale_have_the_weight_of_the_interval_that_rounds_to_them():
    parameter = Range(1, 8, log=True)
    counts = Counter(parameter.decode((point + 0.5) / 10_000) for point in range(10_000))
    for value in range(1, 9):
        weight = math.log((value + 0.5) / (value - 0.5)) / math.log(8.5 / 0.5)
        assert counts[value] / 10_000 == pytest.approx(weight, abs=2e-4)


@QUICK
@given(parameter=stepped_ranges(), data=st.data())
def test_a_stepped_value_is_the_float_nearest_to_the_exact_decimal(parameter, data):
    index = data.draw(st.integers(0, parameter.cardinality - 1))
    exact = Fraction(repr(parameter.low)) + index * Fraction(repr(parameter.step))
    assert parameter.value_at(index) == exact.numerator / exact.denominator


# ----------------------------------------------------------------------------------------------------------- contains


@pytest.mark.parametrize(
    ("parameter", "inside", "outside"),
    [
        (Uniform(0, 1), [0, 1, 0.5, 1.0], [-1e-9, 1.1, math.nan, math.inf, True, "0.5", None, 10**400]),
        (LogUniform(0.1, 1), [0.1, 1, 0.123456789], [0.0, -0.5, 1.1, math.nan, "1"]),
        (Range(1, 9, step=2), [1, 3, 9], [2, 0, 11, 3.5, True, "3", math.nan, None]),
        (Range(1, 9, log=True), [1, 2, 9], [0, 10, 2.5]),
        (Range(0.1, 0.5, step=0.1), [0.1, 0.3, 0.5], [0.15, 0.30000000000000004, 0.6, math.inf]),
        (Range(0.5, 2.5), [0.5, 1, 2.5], [0.4, 2.6]),
        (Choice([1, "a", None, [1, 2], {"k": 1}]), [1, "a", None, [1, 2], {"k": 1}], [1.0, True, "b", [2, 1], {}]),
        (Choice([[1], {"k": 0.0}]), [[1], {"k": 0.0}], [[True], [1.0], {"k": 0}, {"k": False}]),
        (Normal(10, 2), [10, 0.0, 20.0, 12.5], [-0.1, 20.1, math.nan, "10"]),
        (LogNormal(0, 1), [1, 2.5, math.exp(5)], [0, -1, math.exp(5.1), math.nan, None]),
        (Constant(1), [1], [1.0, True, 2, "1"]),
        (Constant([1]), [[1]], [[True], [1.0], [1, 1]]),
    ],
    ids=str,
)
def test_contains_accepts_the_values_of_a_parameter_and_no_others(parameter, inside, outside):
    assert [value for value in inside if not parameter.contains(value)] == []
    assert [value for value in outside if parameter.contains(value)] == []


def test_a_choice_tells_one_one_point_zero_and_true_apart_also_inside_lists():
    parameter = Choice([1, 1.0, True, [1], [1.0], [True]])
    for value in parameter.values:
        assert spelled(parameter.decode(parameter.encode(value))) == spelled(value)


# ----------------------------------------------------------------------------------------------- JSON and other types


@QUICK
@given(parameter=parameters(), unit=units)
def test_a_parameter_survives_json_with_all_its_values(parameter, unit):
    loaded = msgspec.json.decode(msgspec.json.encode(parameter), type=Parameter)
    assert loaded == parameter
    assert spelled(loaded.decode(unit)) == spelled(parameter.decode(unit))


@QUICK
@given(parameter=parameters(), unit=units)
def test_a_value_survives_json_and_is_still_contained(parameter, unit):
    assert parameter.contains(msgspec.json.decode(spelled(parameter.decode(unit))))


class Color(StrEnum):
    RED = "red"


class Size(IntEnum):
    BIG = 3


@pytest.mark.parametrize(
    ("given_value", "kept"),
    [
        ((1, (2, 3)), [1, [2, 3]]),
        ({"sizes": (1, 2)}, {"sizes": [1, 2]}),
        (np.int64(3), 3),
        (np.float32(0.5), 0.5),
        (np.float64(0.1), 0.1),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (np.array(2.5), 2.5),
        (Color.RED, "red"),
        (Size.BIG, 3),
        (-0.0, 0.0),
    ],
    ids=repr,
)
def test_values_are_kept_as_json_gives_them_back(given_value, kept):
    for value in (Choice([given_value]).values[0], Constant(given_value).value):
        assert type(value) is type(kept)
        assert spelled(value) == spelled(kept)


def test_bounds_may_be_numpy_numbers():
    assert Uniform(np.float64(0.0), np.float32(1.0)) == Uniform(0.0, 1.0)
    assert LogUniform(np.float64(0.5), np.int64(1)) == LogUniform(0.5, 1)
    assert Normal(np.float64(0.0), np.float64(1.0)) == Normal(0.0, 1.0)
    assert LogNormal(np.float64(0.0), np.float64(1.0)) == LogNormal(0.0, 1.0)
    assert Range(np.int64(1), np.int64(9), step=np.int64(2)).decode(1.0) == 9
    parameter = Range(np.float64(0.1), np.float64(0.5), step=np.float64(0.1))
    assert msgspec.json.decode(msgspec.json.encode(parameter), type=Parameter) == Range(0.1, 0.5, step=0.1)


def test_choice_takes_any_ordered_collection():
    assert Choice(("a", "b")) == Choice(["a", "b"]) == Choice(letter for letter in "ab")
    assert Choice(np.array([1, 2])) == Choice(range(1, 3)) == Choice([1, 2])


# -------------------------------------------------------------------------------------------------------------- errors

BAD = {
    "inverted bounds": (lambda: Uniform(2, 1), "Uniform: needs low < high, got low=2, high=1"),
    "equal bounds": (
        lambda: LogUniform(1, 1),
        "LogUniform: needs low < high, got low=1, high=1; for a single value use",
    ),
    "inverted range": (lambda: Range(5, 1), "Range: needs low < high, got low=5, high=1"),
    "log of zero": (lambda: LogUniform(0, 1), "LogUniform: a log scale needs low > 0, got low=0"),
    "log of a negative": (lambda: Range(-1, 1, log=True), "Range: a log scale needs low > 0, got low=-1"),
    "nan low": (lambda: Uniform(math.nan, 1), "Uniform: low must be a finite number, got nan"),
    "nan high": (lambda: LogUniform(0.1, math.nan), "LogUniform: high must be a finite number, got nan"),
    "infinite bound": (lambda: Range(0.0, math.inf), "Range: high must be a finite number, got inf"),
    "integer beyond floats": (lambda: Range(1, 10**400), "Range: high must be a finite number, got 1000"),
    "bound that is text": (lambda: Uniform("0", 1), "Uniform: low must be a finite number, got '0'"),
    "bound that is a truth value": (lambda: Range(False, 3), "Range: low must be a finite number, got False"),
    "no bound": (lambda: Uniform(None, 1), "Uniform: low must be a finite number, got None"),
    "width beyond floats": (lambda: Uniform(-1e308, 1e308), "Uniform: low=-1e+308 and high=1e+308 are too far apart"),
    "logarithms that are one": (lambda: LogUniform(1e9, 1e9 + 1e-6), "are too close for a log scale"),
    "step of zero": (lambda: Range(0, 1, step=0), "Range: step must be a finite number above 0, got 0"),
    "negative step": (lambda: Range(0, 1, step=-0.1), "Range: step must be a finite number above 0, got -0.1"),
    "nan step": (lambda: Range(0, 1, step=math.nan), "Range: step must be a finite number above 0, got nan"),
    "wide step": (lambda: Range(0.0, 0.3, step=0.31), "Range: step=0.31 is wider than the range from 0.0 to 0.3"),
    "wide integer step": (lambda: Range(0, 3, step=4), "Range: step=4 is wider than the range from 0 to 3"),
    "log with a step": (lambda: Range(1, 9, step=2, log=True), "Range: log=True does not combine with a step"),
    "log with a float step": (lambda: Range(1.0, 9.0, step=1.0, log=True), "log=True does not combine with a step"),
    "too many values": (lambda: Range(0, 2**50), f"Range: has {2**50 + 1} values, at most"),
    "too many decimals": (lambda: Range(-1.0, 1.0, step=1e-15), "values, at most 2**50 can be told apart"),
    "too many values for a logarithm": (lambda: Range(1, 10**13, log=True), "Range: log=True tells integers apart"),
    "step that floats cannot follow": (lambda: Range(1e16, 1e16 + 40, step=0.5), "Range: step=0.5 is too small beside"),
    "empty choice": (lambda: Choice([]), "Choice: needs at least one value, got an empty list"),
    "choice of a word": (lambda: Choice("adam"), "Choice: needs a list of values, got 'adam'"),
    "choice of a number": (lambda: Choice(3), "Choice: needs a list of values, got 3"),
    "choice of a mapping": (lambda: Choice({"a": 1}), "Choice: needs a list of values, got {'a': 1}"),
    "choice without order": (lambda: Choice({"a"}), "Choice: needs a list of values, got {'a'}"),
    "twice the same": (lambda: Choice([1, 2, 1]), "Choice: lists 1 twice"),
    "twice the same as JSON": (lambda: Choice([(1, 2), [1, 2]]), "Choice: lists [1, 2] twice"),
    "twice the same mapping": (
        lambda: Choice([{"a": 1, "b": 2}, {"b": 2, "a": 1}]),
        "Choice: lists {'b': 2, 'a': 1} twice",
    ),
    "twice zero": (lambda: Choice([0.0, -0.0]), "Choice: lists 0.0 twice"),
    "choice of an object": (lambda: Choice([object]), "Choice: <class 'object'> is a type, which JSON cannot hold"),
    "choice of a set": (lambda: Choice([{1}]), "Choice: {1} is a set, which JSON cannot hold"),
    "choice of an array": (lambda: Choice([np.zeros(2)]), "is a ndarray, which JSON cannot hold"),
    "choice of a wide float": (lambda: Choice([np.longdouble(1)]), "is a longdouble, which JSON cannot hold"),
    "keys that are not text": (lambda: Choice([{1: "a"}]), "Choice: {1: 'a'} is a dict, which JSON cannot hold"),
    "choice of nan": (lambda: Choice([1.0, math.nan]), "Choice: nan is not a finite number"),
    "nested infinity": (lambda: Constant([{"k": -math.inf}]), "Constant: -inf is not a finite number"),
    "constant function": (
        lambda: Constant(len),
        "which JSON cannot hold; use a name for it and look it up in your code",
    ),
    "condition on an object": (lambda: Uniform(0, 1, when={"a": {1}}), "Uniform: {1} is a set, which JSON cannot hold"),
    "infinite mean": (lambda: Normal(math.inf, 1), "Normal: mean must be a finite number, got inf"),
    "no spread": (lambda: Normal(0, 0), "Normal: std must be a finite number above 0, got 0"),
    "negative spread": (lambda: LogNormal(0, -1), "LogNormal: std must be a finite number above 0, got -1"),
    "nan spread": (lambda: Normal(0, math.nan), "Normal: std must be a finite number above 0, got nan"),
    "spread that floats cannot follow": (
        lambda: Normal(1e9, 1e-3),
        "Normal: std=0.001 is too small beside mean=1000000000.0",
    ),
    "spread of the exponent that floats cannot follow": (
        lambda: LogNormal(0, 1e-9),
        "LogNormal: std=1e-09 is too small",
    ),
    "normal beyond floats": (lambda: Normal(1e308, 1e308), "Normal: mean=1e+308, std=1e+308 leave the range of floats"),
    "exponent beyond floats": (lambda: LogNormal(690, 10), "LogNormal: mean=690, std=10 leave the range of floats"),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD.keys())
def test_a_parameter_that_cannot_be_is_refused_with_what_was_given_and_what_is_allowed(make, message):
    with pytest.raises(SearchSpaceError) as caught:
        make()
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"type": "uniform", "low": 2, "high": 1}', "needs low < high"),
        ('{"type": "choice", "values": []}', "needs at least one value"),
        ('{"type": "range", "low": 0, "high": 1, "step": 2}', "is wider than the range"),
    ],
)
def test_what_comes_from_json_is_checked_as_well(text, message):
    with pytest.raises(SearchSpaceError, match=message):
        msgspec.json.decode(text, type=Parameter)


@pytest.mark.parametrize("text", ['{"type": "uniform", "low": 0, "high": 1, "lo": 3}', '{"type": "gamma"}'])
def test_unknown_fields_and_kinds_are_refused(text):
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(text, type=Parameter)


@THOROUGH
@given(kind=st.sampled_from([Uniform, LogUniform, Range]), pair=st.tuples(st.floats(), st.floats()), unit=units)
@example(kind=Uniform, pair=(5e-324, 1e-323), unit=0.3)
@example(kind=LogUniform, pair=(5e-324, 1.7976931348623157e308), unit=1.0)
@example(kind=LogUniform, pair=(4.275397345857125e-32, 1.7976931348623157e308), unit=1.0)
@example(kind=LogUniform, pair=(1.0, 1.0000000000000002), unit=0.5)
@example(kind=Range, pair=(-8e307, 8e307), unit=1.0)
def test_two_bounds_are_either_refused_or_work(kind, pair, unit):
    """Whatever floats come: no crash, no overflow, no value that is not one of the parameter's."""
    try:
        parameter = kind(*pair)
    except SearchSpaceError:
        return
    value = parameter.decode(unit)
    assert parameter.contains(value)
    assert parameter.decode(parameter.encode(value)) == value


@THOROUGH
@given(kind=st.sampled_from([Normal, LogNormal]), pair=st.tuples(st.floats(), st.floats()), unit=units)
@example(kind=Normal, pair=(0.0, 5e-324), unit=0.9)
@example(kind=Normal, pair=(100_000_000.3, 10.1), unit=0.0)
@example(kind=LogNormal, pair=(0.0, 2.2e-8), unit=0.7)
def test_mean_and_spread_are_either_refused_or_work(kind, pair, unit):
    try:
        parameter = kind(*pair)
    except SearchSpaceError:
        return
    value = parameter.decode(unit)
    assert math.isfinite(value)
    assert parameter.contains(value)
    assert parameter.decode(parameter.encode(value)) == value


@THOROUGH
@given(numbers=st.tuples(st.floats(), st.floats(), st.floats()), unit=units)
@example(numbers=(0.0, 1e16, 1.0), unit=0.7)
@example(numbers=(-1e300, 1e300, 1e290), unit=0.7)
@example(numbers=(-8.0, -1e-249, 1.0), unit=1.0)
@example(numbers=(0.1, 9007199254740993.0, 8.0), unit=0.9)
def test_bounds_and_step_are_either_refused_or_work(numbers, unit):
    low, high, step = numbers
    try:
        parameter = Range(low, high, step=step)
    except SearchSpaceError:
        return
    value = parameter.decode(unit)
    assert parameter.contains(value)
    assert parameter.decode(parameter.encode(value)) == value
