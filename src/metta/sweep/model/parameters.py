"""Parameters of a search space, each with its map to and from the unit interval.

Optimizers see only the unit interval: `decode` turns a point of it into a value and `encode` turns the value back. The
two are exact inverses on every value that a parameter can produce: `decode(encode(v)) == v`. To make that hold in
floating point, continuous values are rounded to a lattice well below any meaningful difference (about 12 significant
digits; 8 in the normal distributions, whose tails squeeze many values into few floats).
"""

from __future__ import annotations

import math
from decimal import ROUND_FLOOR, Context, Decimal
from typing import Any, TypeAlias

import msgspec
from msgspec.structs import force_setattr

from metta.sweep.errors import SearchSpaceError
from metta.sweep.model.scales import (
    NORMAL_CUT,
    clamp,
    is_normal_score,
    linear_decode,
    linear_encode,
    log_decode,
    log_encode,
    normal_score,
    normal_unit,
)

#: exp() of more overflows.
_LARGEST_EXPONENT = 700.0
#: More values than this have no exact place in the unit interval (53-bit floats, with room for rounding).
_MOST_VALUES = 2**50
#: Beyond, neighbouring integers come too close in their logarithms to be told apart.
_LARGEST_LOG_INTEGER = 10**12
#: Counts steps: where 28 digits do not suffice, better one value too few than one beyond the bound.
_ROUND_DOWN = Context(rounding=ROUND_FLOOR)


class ParameterBase(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What all parameters share."""

    #: The parameter exists only where each parameter named here has the given value, or one of a list of values.
    when: dict[str, Any] = {}

    def __post_init__(self) -> None:
        force_setattr(self, "when", _plain(self.when, self))

    @property
    def cardinality(self) -> int | None:
        """Number of distinct values, or None for a continuous parameter."""
        return None

    def decode(self, unit: float) -> Any:
        """The value at a point of [0, 1]."""
        raise NotImplementedError

    def encode(self, value: Any) -> float:
        """The point of [0, 1] that decodes to `value`, which `contains` must accept."""
        raise NotImplementedError

    def contains(self, value: Any) -> bool:
        """Whether the parameter can take this value."""
        raise NotImplementedError

    def value_at(self, index: int) -> Any:
        """The value number `index` in `[0, cardinality)`; continuous parameters have no such order."""
        raise NotImplementedError

    def index_of(self, value: Any) -> int | None:
        """The number of a value, or None when it is not one; continuous parameters have no such order."""
        raise NotImplementedError

    def _refuse(self, rule: str) -> SearchSpaceError:
        return SearchSpaceError(f"{type(self).__name__}: {rule}")

    def _number(self, name: str, *, above_zero: bool = False) -> Any:
        """The field of this name as a finite number of Python's own."""
        number = _unwrapped(getattr(self, name))
        if not _is_finite_number(number) or (above_zero and number <= 0):
            rule = "a finite number above 0" if above_zero else "a finite number"
            raise self._refuse(f"{name} must be {rule}, got {number!r}")
        force_setattr(self, name, number)
        return number

    def _check_interval(self, *, log: bool) -> None:
        low, high = self._number("low"), self._number("high")
        if low >= high:
            raise self._refuse(f"needs low < high, got low={low}, high={high}; for a single value use Constant")
        if log and low <= 0:
            raise self._refuse(f"a log scale needs low > 0, got low={low}; use e.g. low=1e-6, or a linear scale")
        if log and math.log(low) == math.log(high):
            raise self._refuse(f"low={low} and high={high} are too close for a log scale; use a linear one")
        if not math.isfinite(float(high) - float(low)):
            raise self._refuse(f"low={low} and high={high} are too far apart for floats")


class Uniform(ParameterBase, frozen=True, tag="uniform"):
    """A float between `low` and `high`, both included."""

    low: float
    high: float

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_interval(log=False)

    def decode(self, unit: float) -> float:
        return linear_decode(unit, self.low, self.high)

    def encode(self, value: Any) -> float:
        return linear_encode(value, self.low, self.high)

    def contains(self, value: Any) -> bool:
        return _is_finite_number(value) and self.low <= value <= self.high


class LogUniform(ParameterBase, frozen=True, tag="log_uniform"):
    """A float between `low` (above 0) and `high`, both included, uniform in its logarithm."""

    low: float
    high: float

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_interval(log=True)

    def decode(self, unit: float) -> float:
        return log_decode(unit, self.low, self.high)

    def encode(self, value: Any) -> float:
        return log_encode(value, self.low, self.high)

    def contains(self, value: Any) -> bool:
        return _is_finite_number(value) and self.low <= value <= self.high


class Range(ParameterBase, frozen=True, tag="range"):
    """A number from `low` to `high`, both included.

    Integers when `low`, `high` and `step` are all integers (`step` is then 1 unless given). Otherwise floats: the
    multiples of `step` above `low`, computed in decimal so that 0.1 + 2 * 0.1 is 0.3, or any float in between when
    there is no step.

    With `log=True` the values are uniform in their logarithm; integers then have the weight of the interval that rounds
    to them.
    """

    low: int | float
    high: int | float
    step: int | float | None = None
    log: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_interval(log=self.log)
        if self.step is not None:
            self._check_step(self._number("step", above_zero=True))
        if self.log and self._is_integer and self.high > _LARGEST_LOG_INTEGER:
            raise self._refuse(f"log=True tells integers apart up to 10**12, got high={self.high}; use LogUniform")
        if (self.cardinality or 0) > _MOST_VALUES:
            raise self._refuse(
                f"has {self.cardinality} values, at most 2**50 can be told apart; widen step, or use Uniform"
            )

    def _check_step(self, step: int | float) -> None:
        if self.cardinality == 1:
            raise self._refuse(f"step={step} is wider than the range from {self.low} to {self.high}")
        if self.log and not (self._is_integer and step == 1):
            raise self._refuse("log=True does not combine with a step; drop one of them, or use Choice")
        # With fewer than four floats to a step, rounding would make two values one, or lose count of them.
        if not self._is_integer and step < 4 * math.ulp(max(abs(self.low), abs(self.high))):
            raise self._refuse(f"step={step} is too small beside low={self.low}, high={self.high} for floats to follow")

    @property
    def _is_integer(self) -> bool:
        return all(isinstance(number, int) for number in (self.low, self.high, self.step or 1))

    @property
    def cardinality(self) -> int | None:
        if self._is_integer:
            return int(self.high - self.low) // int(self.step or 1) + 1
        if self.step is None:
            return None
        span = _ROUND_DOWN.subtract(_decimal(self.high), _decimal(self.low))
        return int(_ROUND_DOWN.divide(span, _decimal(self.step))) + 1

    def value_at(self, index: int) -> int | float:
        if self._is_integer:
            return int(self.low) + index * int(self.step or 1)
        assert self.step is not None
        return float(_decimal(self.low) + index * _decimal(self.step))

    def index_of(self, value: Any) -> int | None:
        if not _is_finite_number(value) or not self.low <= value <= self.high:
            return None
        index = round((_decimal(value) - _decimal(self.low)) / _decimal(self.step or 1))
        return index if self.value_at(index) == value else None

    def decode(self, unit: float) -> int | float:
        count = self.cardinality
        if count is None:
            decode = log_decode if self.log else linear_decode
            return decode(unit, self.low, self.high)
        if self.log:
            low, high = math.log(self.low - 0.5), math.log(self.high + 0.5)
            return int(clamp(round(math.exp(low + unit * (high - low))), self.low, self.high))
        return self.value_at(min(int(unit * count), count - 1))

    def encode(self, value: Any) -> float:
        count = self.cardinality
        if count is None:
            encode = log_encode if self.log else linear_encode
            return encode(value, self.low, self.high)
        if self.log:
            low, high = math.log(self.low - 0.5), math.log(self.high + 0.5)
            return (math.log(value) - low) / (high - low)
        index = self.index_of(value)
        assert index is not None
        return (index + 0.5) / count

    def contains(self, value: Any) -> bool:
        if self.cardinality is None:
            return _is_finite_number(value) and self.low <= value <= self.high
        return self.index_of(value) is not None


class Choice(ParameterBase, frozen=True, tag="choice"):
    """One of several values, without an order.

    Values are anything that JSON can hold; tuples become lists, since that is how a trial receives them. 1, 1.0 and
    True are three different values.
    """

    values: list[Any]

    def __post_init__(self) -> None:
        super().__post_init__()
        # A set has no order to rely on: that of its strings changes from process to process.
        if isinstance(self.values, str | bytes | dict | set | frozenset) or not hasattr(self.values, "__iter__"):
            raise self._refuse(f"needs a list of values, got {self.values!r}")
        values = [_plain(value, self) for value in self.values]
        if not values:
            raise self._refuse("needs at least one value, got an empty list")
        seen: set[bytes] = set()
        for value in values:
            key = msgspec.json.encode(value, order="deterministic")
            if key in seen:
                raise self._refuse(f"lists {value!r} twice")
            seen.add(key)
        force_setattr(self, "values", values)

    @property
    def cardinality(self) -> int:
        return len(self.values)

    def value_at(self, index: int) -> Any:
        return self.values[index]

    def index_of(self, value: Any) -> int | None:
        for index, option in enumerate(self.values):
            if _same(option, value):
                return index
        return None

    def decode(self, unit: float) -> Any:
        return self.values[min(int(unit * len(self.values)), len(self.values) - 1)]

    def encode(self, value: Any) -> float:
        index = self.index_of(value)
        assert index is not None
        return (index + 0.5) / len(self.values)

    def contains(self, value: Any) -> bool:
        return self.index_of(value) is not None


class Normal(ParameterBase, frozen=True, tag="normal"):
    """A normally distributed float, cut off five standard deviations from its mean."""

    mean: float
    std: float

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_spread(self, scale=abs(self._number("mean")))
        if not math.isfinite(abs(self.mean) + NORMAL_CUT * self.std):
            raise self._refuse(f"mean={self.mean}, std={self.std} leave the range of floats")

    def decode(self, unit: float) -> float:
        return self.mean + self.std * normal_score(unit)

    def encode(self, value: Any) -> float:
        return normal_unit((value - self.mean) / self.std)

    def contains(self, value: Any) -> bool:
        return _is_finite_number(value) and is_normal_score((value - self.mean) / self.std)


class LogNormal(ParameterBase, frozen=True, tag="log_normal"):
    """A positive float whose natural logarithm is normal with this mean and standard deviation (cut off at five)."""

    mean: float
    std: float

    def __post_init__(self) -> None:
        super().__post_init__()
        # The exponential of a small number differs from 1 by as little as floats near 1 do.
        _check_spread(self, scale=max(1.0, abs(self._number("mean"))))
        if abs(self.mean) + NORMAL_CUT * self.std > _LARGEST_EXPONENT:
            raise self._refuse(
                f"mean={self.mean}, std={self.std} leave the range of floats; they are those of the logarithm"
            )

    def decode(self, unit: float) -> float:
        return math.exp(self.mean + self.std * normal_score(unit))

    def encode(self, value: Any) -> float:
        return normal_unit((math.log(value) - self.mean) / self.std)

    def contains(self, value: Any) -> bool:
        return _is_finite_number(value) and value > 0 and is_normal_score((math.log(value) - self.mean) / self.std)


class Constant(ParameterBase, frozen=True, tag="constant"):
    """A fixed value, passed to every run and searched by none."""

    value: Any

    def __post_init__(self) -> None:
        super().__post_init__()
        force_setattr(self, "value", _plain(self.value, self))

    @property
    def cardinality(self) -> int:
        return 1

    def value_at(self, index: int) -> Any:
        return self.value

    def decode(self, unit: float) -> Any:
        return self.value

    def encode(self, value: Any) -> float:
        return 0.5

    def index_of(self, value: Any) -> int | None:
        return 0 if _same(value, self.value) else None

    def contains(self, value: Any) -> bool:
        return self.index_of(value) is not None


Parameter: TypeAlias = Uniform | LogUniform | Range | Choice | Normal | LogNormal | Constant


def _is_finite_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the largest float
        return False


def _check_spread(parameter: Normal | LogNormal, *, scale: float) -> None:
    if parameter._number("std", above_zero=True) < 1e-7 * scale:
        raise parameter._refuse(
            f"std={parameter.std} is too small beside mean={parameter.mean} for floats to tell values apart"
        )


def _same(left: Any, right: Any) -> bool:
    """Whether two JSON values are the same; unlike `==` it tells 1, 1.0 and True apart, also inside lists and dicts."""
    if type(left) is not type(right):
        return False
    if isinstance(left, list):
        return len(left) == len(right) and all(map(_same, left, right))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(_same(value, right[key]) for key, value in left.items())
    return bool(left == right)


def _unwrapped(value: Any) -> Any:
    """A NumPy scalar as the Python object it stands for; anything else as it is."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value


def _plain(value: Any, parameter: ParameterBase) -> Any:
    """The value as JSON will give it back: tuples as lists, enums and NumPy scalars as what they stand for."""
    value = _unwrapped(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, str):
        return str.__str__(value)  # str(value) of an enum's member may be its name
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value) + 0.0  # no negative zero: equal values have one spelling
        raise parameter._refuse(f"{value!r} is not a finite number")
    if isinstance(value, list | tuple):
        return [_plain(item, parameter) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _plain(item, parameter) for key, item in value.items()}
    raise parameter._refuse(
        f"{value!r} is a {type(value).__name__}, which JSON cannot hold; use a name for it and look it up in your code"
    )


def _decimal(number: int | float) -> Decimal:
    return Decimal(repr(float(number)) if isinstance(number, float) else number)
