"""Finding what a user means by an id, a prefix of one, or a name."""

from __future__ import annotations

from metta.sweep.errors import AmbiguousIdError, NotFoundError
from metta.sweep.model.run import RunInfo
from metta.sweep.model.sweep import SweepMetadata
from metta.sweep.protocols import Reader

#: Candidates named in a message.
_SHOWN = 5


def find_sweep(store: Reader, address: str | None) -> SweepMetadata:
    """The sweep with this id, name or unique prefix of an id; the latest one without an address.

    Raises:
        NotFoundError: there is none.
        AmbiguousIdError: there are several.
    """
    sweeps = store.fetch_sweeps()
    if not sweeps:
        raise NotFoundError("the store holds no sweeps; start one with: metta sweep run TARGET")
    if address is None:
        return sweeps[-1]
    exact = [sweep for sweep in sweeps if address in {sweep.sweep_id, sweep.config.name}]
    found = exact or [sweep for sweep in sweeps if sweep.sweep_id.startswith(address)]
    if not found:
        known = ", ".join(f"{sweep.sweep_id} ({sweep.config.name})" for sweep in sweeps[: -_SHOWN - 1 : -1])
        raise NotFoundError(f"no sweep has the id, name or prefix {address!r}; the latest are: {known}")
    if len(found) > 1:
        names = [f"{sweep.sweep_id} ({sweep.config.name})" for sweep in found]
        raise AmbiguousIdError(f"{address!r} fits {len(found)} sweeps: {_listed(names)}; give more characters")
    return found[0]


def find_run(store: Reader, address: str) -> RunInfo:
    """The run with this id or unique prefix, in any sweep; `SWEEP/RUN` looks in one.

    Raises:
        NotFoundError: there is none.
        AmbiguousIdError: there are several.
    """
    sweep_address, slash, prefix = address.rpartition("/")
    sweep_id = find_sweep(store, sweep_address).sweep_id if slash else None
    found = store.fetch_runs(sweep_id, id_prefix=prefix, limit=_SHOWN + 1)
    exact = [run for run in found if run.run_id == prefix]
    found = exact or found
    if not found:
        raise NotFoundError(f"no run has the id or prefix {address!r}; see them with: metta sweep status --runs")
    if len(found) > 1:
        names = [f"{run.sweep_id}/{run.run_id}" for run in found]
        raise AmbiguousIdError(f"{address!r} fits several runs: {_listed(names)}; give more characters, or SWEEP/RUN")
    return found[0]


def find_run_or_sweep(store: Reader, address: str) -> tuple[SweepMetadata, RunInfo | None]:
    """The sweep of this id, name or prefix; or the run of this id or prefix, with its sweep.

    Raises:
        NotFoundError: there is neither.
        AmbiguousIdError: there are several sweeps or several runs, or one of each.
    """
    try:
        sweep = find_sweep(store, address) if "/" not in address else None
    except NotFoundError:
        sweep = None
    try:
        run = find_run(store, address)
    except NotFoundError:
        if sweep is None:
            raise NotFoundError(
                f"no sweep or run has the id, name or prefix {address!r}; see them with: metta sweep list"
            ) from None
        return sweep, None
    except AmbiguousIdError:
        if sweep is None:
            raise
        return sweep, None
    if sweep is None or address == run.run_id:
        return find_sweep(store, run.sweep_id), run
    if address in {sweep.sweep_id, sweep.config.name}:
        return sweep, None
    raise AmbiguousIdError(
        f"{address!r} fits sweep {sweep.sweep_id} ({sweep.config.name}) and run {run.sweep_id}/{run.run_id}; "
        "give more characters, or SWEEP/RUN"
    )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
