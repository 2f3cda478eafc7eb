"""From what users write about dispatchers to dispatchers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from msgspec.structs import replace

from dispatchers.jobs import job
from metta.sweep import registry
from metta.sweep.dispatchers.build import build_dispatcher, check_dispatching
from metta.sweep.dispatchers.fallback import FallbackDispatcher
from metta.sweep.dispatchers.local import LocalDispatcher
from metta.sweep.dispatchers.routing import RoutingDispatcher
from metta.sweep.errors import ConfigError, DispatchError
from metta.sweep.model.dispatching import LOCAL, Dispatching
from metta.sweep.model.run import JobType, Resources
from metta.sweep.model.sweep import CommandTarget, SweepConfig
from metta.sweep.protocols import Dispatcher, Store
from metta.sweep.stores import open_store
from metta.sweep.testing import ManualClock, sweep_config
from metta.sweep.testing.fake_dispatcher import FakeDispatcher
from metta.sweep.testing.sweeps import SWEEP

Written = str | Dispatching

EXAMPLES: dict[str, Any] = {
    "name": "local",
    "named": {"name": "slurm", "options": {"partition": "gpu"}},
    "fallback": {"fallback": ["slurm", {"name": "slurm", "options": {"partition": "cpu"}}, "local"]},
    "route": {
        "route": [
            {"type": "eval", "to": "local"},
            {"min_gpus": 1, "min_cpus": 2, "min_memory_gb": 16, "to": {"fallback": ["slurm", "local"]}},
            {"to": {"name": "local"}},
        ]
    },
}


class Slurm(FakeDispatcher):
    """An installed package's dispatcher, for as long as a test runs."""

    def __init__(self, store: Store, sweep_id: str, config: SweepConfig, clock: object, partition: str = "all") -> None:
        if partition == "closed":
            raise DispatchError("there is no sbatch")
        super().__init__("slurm")
        self.partition = partition
        self.context = (store, sweep_id, config, clock)


@pytest.fixture(autouse=True)
def slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = registry._entries("dispatchers")

    class Entry:
        value = "slurm:Slurm"

        def load(self) -> type[Slurm]:
            return Slurm

    monkeypatch.setitem(entries, "slurm", Entry())  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(open_store(f"sqlite:///{tmp_path}/sweeps.db", create=True)) as store:
        yield store


@pytest.fixture
def config(tmp_path: Path) -> SweepConfig:
    return replace(sweep_config(), directory=str(tmp_path))


def written(value: Any) -> Dispatching:
    return Dispatching.of(msgspec.convert(value, Written))


def built(value: Any, store: Store, config: SweepConfig) -> Dispatcher:
    check_dispatching(written(value), config)
    return build_dispatcher(written(value), store, SWEEP, config, ManualClock())


# -------------------------------------------------------------------------------------------------- what can be written


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)
def test_what_is_written_is_valid_by_the_schema_and_survives_the_log(example: Any) -> None:
    jsonschema.validate(example, msgspec.json.schema(Written))
    dispatching = written(example)
    assert msgspec.json.decode(msgspec.json.encode(dispatching), type=Dispatching) == dispatching


def test_a_name_alone_is_one_without_options() -> None:
    assert written("local") == written({"name": "local"}) == LOCAL


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({}, r"expected one of name, fallback, route, it has none of them"),
        ({"name": "local", "fallback": ["slurm"]}, r"expected one of .*, it has name and fallback"),
        ({"fallback": ["slurm"], "options": {"x": 1}}, r"expected options beside a name, they stand beside fallback"),
        ({"fallback": []}, r"length >= 1.*fallback"),
        (
            {"fallback": ["local", {"name": "local"}]},
            r"expected different dispatchers in fallback, 'local' stands there",
        ),
        ({"route": []}, r"length >= 1.*route"),
        ({"route": [{"to": {}}]}, r"expected one of name, fallback, it has none of them.*route\[0\]\.to"),
        ({"route": [{"typ": "eval", "to": "local"}]}, r"unknown field `typ`.*route\[0\]"),
        ({"route": [{"type": "evil", "to": "local"}]}, r"Invalid enum value 'evil'.*route\[0\]\.type"),
        ({"route": [{"type": "eval"}]}, r"missing required field `to`"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_place(value: Any, problem: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=problem):
        written(value)


# ------------------------------------------------------------------------------------------------ what fits the sweep


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ("slrum", "dispatcher"),
        ({"fallback": ["local", "slrum"]}, r"dispatcher\.fallback\[1\]"),
        ({"route": [{"to": "slrum"}]}, r"dispatcher\.route\[0\]\.to"),
        ({"route": [{"to": "local"}, {"to": {"fallback": ["slrum"]}}]}, r"dispatcher\.route\[1\]\.to\.fallback\[0\]"),
    ],
)
def test_an_unknown_name_is_answered_with_its_place_and_the_known_ones(
    value: Any, field: str, config: SweepConfig
) -> None:
    problem = rf"{field}: there is no dispatcher 'slrum'; did you mean 'slurm'\? known: local, slurm"
    with pytest.raises(ConfigError, match=problem):
        check_dispatching(written(value), config)


def test_options_that_a_dispatcher_does_not_have_are_refused_before_there_is_one(config: SweepConfig) -> None:
    value = {"fallback": [{"name": "slurm", "options": {"partitoin": "gpu"}}]}
    with pytest.raises(ConfigError, match=r"dispatcher.fallback\[0\]: slurm does not take these options .*partitoin"):
        check_dispatching(written(value), config)


def test_rules_that_do_not_take_the_jobs_of_the_sweep_are_refused(config: SweepConfig) -> None:
    evals_only = written({"route": [{"type": "eval", "to": "local"}]})
    trains_only = written({"route": [{"type": "train", "to": "local"}]})
    with pytest.raises(
        ConfigError, match=r"no rule takes the sweep's train jobs \(cpus 1, gpus 0, no memory limit\); a l"
    ):
        check_dispatching(evals_only, config)
    check_dispatching(trains_only, config)
    with pytest.raises(ConfigError, match="no rule takes the sweep's eval jobs"):
        check_dispatching(trains_only, replace(config, evaluate=CommandTarget(argv=["score"])))


# ----------------------------------------------------------------------------------------------------- what comes of it


def test_a_dispatcher_is_made_with_its_context_and_options(store: Store, config: SweepConfig) -> None:
    assert isinstance(built("local", store, config), LocalDispatcher)
    slurm = built(EXAMPLES["named"], store, config)
    assert isinstance(slurm, Slurm)
    assert slurm.partition == "gpu"
    assert slurm.context[:3] == (store, SWEEP, config)


def test_fallback_and_route_are_made_of_their_members(store: Store, config: SweepConfig) -> None:
    fallback = built(EXAMPLES["fallback"], store, config)
    assert isinstance(fallback, FallbackDispatcher)
    assert fallback.name == "fallback(slurm, slurm, local)"
    route = built(EXAMPLES["route"], store, config)
    assert isinstance(route, RoutingDispatcher)
    assert route.name == "route(local, fallback(slurm, local))"


def test_what_stands_in_two_places_is_one_so_that_its_room_counts_once(
    store: Store, config: SweepConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    config = replace(config, resources=Resources(gpus=1))
    route = {"route": [{"type": "eval", "to": "local"}, {"to": {"fallback": ["local"]}}]}
    assert built(route, store, config).capacity() == 3


def test_in_a_fallback_one_that_cannot_be_had_here_is_passed_over(store: Store, config: SweepConfig) -> None:
    closed = {"name": "slurm", "options": {"partition": "closed"}}
    fallback = built({"fallback": [closed, "slurm"]}, store, config)
    [placement] = fallback.dispatch([job()]).values()
    assert (placement.dispatcher, placement.reasons) == ("slurm", ("slurm: there is no sbatch",))
    with pytest.raises(DispatchError, match="there is no sbatch"):
        built(closed, store, config)
    with pytest.raises(DispatchError, match="there is no sbatch"):
        built({"route": [{"type": JobType.TRAIN, "to": closed}]}, store, config)
