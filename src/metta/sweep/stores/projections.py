"""Whether the tables projected from the log still say what the log says."""
# ruff: noqa: S608 (statements are put together from constants; values are always parameters)

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import msgspec

from metta.sweep.errors import DamagedStoreError
from metta.sweep.model.state import EMPTY, fold
from metta.sweep.stores.reader import RUN, SWEEP, Fetch, Row, read_log
from metta.sweep.stores.rows import to_run, to_sweep

_Projected = TypeVar("_Projected", bound=msgspec.Struct)
_SWEEP_ROW = f"SELECT {SWEEP} FROM sweeps WHERE sweep_id = ?"
_RUN_ROWS = f'SELECT {RUN} FROM runs WHERE sweep_id = ? ORDER BY "index", run_id'


def differences(fetch: Fetch, sweep_id: str) -> list[str]:
    """A line for each field, or row, in which the projections of the sweep differ from the fold of its log.

    Raises:
        DamagedStoreError: the log itself is damaged.
    """
    state = fold(EMPTY, read_log(fetch, sweep_id))
    lines: list[str] = []
    sweeps = {} if state.metadata is None else {f"sweep {sweep_id}": state.metadata}
    sweep_rows = {f"sweep {row[0]}": row for row in fetch(_SWEEP_ROW, (sweep_id,))}
    lines += _compared(sweeps, _decoded(sweep_rows, to_sweep, lines))
    runs = {f"run {run_id}": run for run_id, run in state.runs.items()}
    run_rows = {f"run {row[1]}": row for row in fetch(_RUN_ROWS, (sweep_id,))}
    lines += _compared(runs, _decoded(run_rows, to_run, lines))
    return lines


def _decoded(rows: dict[str, Row], decode: Callable[..., _Projected], lines: list[str]) -> dict[str, _Projected | None]:
    """What is in the rows; None, and a line, for those that are not as they were written."""
    decoded: dict[str, _Projected | None] = {}
    for name, row in rows.items():
        try:
            decoded[name] = decode(*row)
        except DamagedStoreError:
            decoded[name] = None
            lines.append(f"{name}: its row is not as it was written: its hash does not fit")
    return decoded


def _compared(said: dict[str, _Projected], projected: dict[str, _Projected | None]) -> Iterator[str]:
    for name in (name for name in projected if name not in said):
        yield f"{name}: it has a row, but the log knows nothing of it"
    for name, truth in said.items():
        if name not in projected:
            yield f"{name}: its row is missing"
        elif (row := projected[name]) is not None and row != truth:
            for field in truth.__struct_fields__:
                shown, meant = getattr(row, field), getattr(truth, field)
                if shown != meant:
                    yield f"{name}: {field} is {_short(shown)}, by the log it is {_short(meant)}"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
