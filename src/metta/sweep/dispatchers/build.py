"""From what a sweep's configuration says about dispatchers to the dispatcher."""

from __future__ import annotations

import msgspec

from metta.sweep import registry
from metta.sweep.dispatchers.fallback import FallbackDispatcher
from metta.sweep.dispatchers.routing import RoutingDispatcher, describe
from metta.sweep.dispatchers.unavailable import UnavailableDispatcher
from metta.sweep.errors import ConfigError, DispatchError
from metta.sweep.model.dispatching import Destination, Dispatching, NamedDispatcher
from metta.sweep.model.run import JobType
from metta.sweep.model.sweep import SweepConfig
from metta.sweep.protocols import Clock, Dispatcher, Store


def check_dispatching(dispatching: Dispatching, config: SweepConfig) -> None:
    """Refuse what cannot be built, before there is a sweep.

    Raises:
        ConfigError: there is no dispatcher by that name, it does not take the options, or no rule takes the
            sweep's jobs.
    """
    if dispatching.route is None:
        _check_destination("dispatcher", dispatching)
        return
    for position, rule in enumerate(dispatching.route):
        _check_destination(f"dispatcher.route[{position}].to", rule.destination)
    for job_type in [JobType.TRAIN] if config.evaluate is None else JobType:
        if not any(rule.takes(job_type, config.resources) for rule in dispatching.route):
            raise ConfigError(
                f"dispatcher.route: no rule takes the sweep's {job_type} jobs ({describe(config.resources)}); "
                "a last rule without a condition takes what is left: {to: local}"
            )


def _check_destination(field: str, destination: Destination) -> None:
    for position, member in enumerate(destination.members):
        place = field if destination.fallback is None else f"{field}.fallback[{position}]"
        registry.check_dispatcher(place, member.name, member.options)


def build_dispatcher(
    dispatching: Dispatching, store: Store, sweep_id: str, config: SweepConfig, clock: Clock
) -> Dispatcher:
    """The dispatcher that a sweep's configuration asks for.

    Raises:
        ConfigError: there is no dispatcher by that name, or it does not take the options.
        DispatchError: it cannot be had in this process, and no other one is to step in.
    """
    #: By what is written of them. The same in two places is one, or its room would count twice.
    built: dict[bytes, Dispatcher] = {}

    def named(field: str, member: NamedDispatcher) -> Dispatcher:
        key = msgspec.json.encode(member)
        if key not in built:
            built[key] = registry.dispatcher(
                field, member.name, member.options, store=store, sweep_id=sweep_id, config=config, clock=clock
            )
        return built[key]

    def or_unavailable(field: str, member: NamedDispatcher) -> Dispatcher:
        try:
            return named(field, member)
        except DispatchError as error:
            return UnavailableDispatcher(member.name, str(error))

    def destination(field: str, to: Destination) -> Dispatcher:
        if to.fallback is None:
            return named(field, to.members[0])
        members = [or_unavailable(f"{field}.fallback[{place}]", member) for place, member in enumerate(to.members)]
        return FallbackDispatcher(members, clock, config.directory)

    if dispatching.route is None:
        return destination("dispatcher", dispatching)
    return RoutingDispatcher(
        [
            (rule, destination(f"dispatcher.route[{place}].to", rule.destination))
            for place, rule in enumerate(dispatching.route)
        ]
    )
