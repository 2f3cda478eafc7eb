"""Which dispatchers a sweep's jobs go to, as users write it: one by name, several in order, or by the kind of job."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from metta.sweep.model.run import JobType, Resources

DispatcherName = Annotated[str, Meta(min_length=1)]


class NamedDispatcher(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A dispatcher with options; its name alone stands for one without."""

    name: DispatcherName
    options: dict[str, Any] = {}


class Destination(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One dispatcher, or several of which the later ones step in for the earlier."""

    name: DispatcherName | None = None
    #: Of the dispatcher by that name.
    options: dict[str, Any] = {}
    #: Dispatchers in the order in which they are tried.
    fallback: Annotated[tuple[DispatcherName | NamedDispatcher, ...], Meta(min_length=1)] | None = None

    def __post_init__(self) -> None:
        _check_forms(self, ("name", "fallback"))
        for position, member in enumerate(self.members):
            if member in self.members[:position]:
                raise ValueError(f"expected different dispatchers in fallback, {member.name!r} stands there twice")

    @property
    def members(self) -> tuple[NamedDispatcher, ...]:
        """All dispatchers named, in order."""
        if self.name is not None:
            return (NamedDispatcher(name=self.name, options=self.options),)
        members = self.fallback or ()
        return tuple(NamedDispatcher(name=member) if isinstance(member, str) else member for member in members)


def _check_forms(destination: Destination, forms: tuple[str, ...]) -> None:
    given = [form for form in forms if getattr(destination, form) is not None]
    if len(given) != 1:
        raise ValueError(f"expected one of {', '.join(forms)}, it has {' and '.join(given) or 'none of them'}")
    if destination.options and destination.name is None:
        raise ValueError(f"expected options beside a name, they stand beside {given[0]}")


class Condition(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Which jobs a rule takes: those that meet all that it says; one that says nothing takes every job."""

    type: JobType | None = None
    min_cpus: Annotated[int, Meta(ge=1)] | None = None
    min_gpus: Annotated[int, Meta(ge=1)] | None = None
    #: Met by jobs with a memory limit of at least this; one without a limit asks for nothing.
    min_memory_gb: Annotated[float, Meta(gt=0, le=1e9)] | None = None

    def takes(self, job_type: JobType, resources: Resources) -> bool:
        """Whether a job of this kind meets it."""
        return (
            (self.type is None or job_type is self.type)
            and resources.cpus >= (self.min_cpus or 0)
            and resources.gpus >= (self.min_gpus or 0)
            and (resources.memory_gb or 0.0) >= (self.min_memory_gb or 0.0)
        )

    def __str__(self) -> str:
        wanted = (("cpus", self.min_cpus), ("gpus", self.min_gpus), ("memory_gb", self.min_memory_gb))
        parts = [f"{name} >= {least:g}" for name, least in wanted if least is not None]
        return " and ".join([*([] if self.type is None else [f"type {self.type}"]), *parts]) or "every job"


class Rule(Condition, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Where the jobs that meet a condition go."""

    to: DispatcherName | Destination

    @property
    def destination(self) -> Destination:
        """`to`, a plain name written out."""
        return Destination(name=self.to) if isinstance(self.to, str) else self.to


class Dispatching(Destination, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Where the jobs of a sweep go."""

    #: Rules, of which the first that takes a job holds.
    route: Annotated[tuple[Rule, ...], Meta(min_length=1)] | None = None

    def __post_init__(self) -> None:
        _check_forms(self, ("name", "fallback", "route"))
        if self.route is None:
            super().__post_init__()

    @classmethod
    def of(cls, written: str | Dispatching) -> Dispatching:
        """A plain name written out."""
        return cls(name=written) if isinstance(written, str) else written


#: Jobs run on this machine.
LOCAL = Dispatching(name="local")
