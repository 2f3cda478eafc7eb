"""Which commands docs/cli.md shows, on what, and what is to come of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from _sample import OTHER, SWEEP, Sample
from metta.sweep.model.run import JobStatus


@dataclass(frozen=True, kw_only=True)
class Call:
    """One way of calling a command.

    Attributes:
        command: What is typed, the whole of it.
        note: What is worth saying before it.
        code: The exit code that it is to have.
        until: Of one that does not end by itself: what is to be on the screen before the keys are pressed.
        keys: As of `Terminal.run`.
        lines: So many lines of it are shown at most.
        shows_end: As of `Terminal.run`.
        has_whole_lines: Whether it prints data or sentences, whose lines the terminal breaks, wherever they end.
        in_pipe: Whether it is executed a second time, into a pipe.
        shows_pipe: Whether what comes out there is another kind of thing, and is shown.
        most_s: How long it may take.
        before, after: What is done to the sweep around it.
    """

    command: str
    note: str = ""
    code: int = 0
    until: str | None = None
    keys: tuple[str, ...] = ()
    lines: int = 16
    shows_end: bool = False
    has_whole_lines: bool = False
    in_pipe: bool = True
    shows_pipe: bool = False
    most_s: float = 5.0
    before: Callable[[], object] = field(default=lambda: None)
    after: Callable[[], object] = field(default=lambda: None)

    @property
    def name(self) -> str:
        """The command it is about: the last, where there are several."""
        return self.command.rsplit("metta sweep ", 1)[1].split()[0]


#: Ends what waits for a key or for more to come.
_INTERRUPT = ("C-c",)


def calls(sample: Sample) -> list[Call]:
    """All of them, in the order in which they are executed: those that change the sweep come last."""
    return [*_looking(sample), *_analysis(sample), *_elsewhere(), *_changing(sample)]


def _looking(sample: Sample) -> Iterator[Call]:
    killed = next(run for run in sample.runs(JobStatus.COMPLETED, JobStatus.STOPPED) if len(run.jobs) > 1).run_id
    failed, running = sample.runs(JobStatus.FAILED)[0].run_id, sample.waiting()[0].run_id
    stopped = sample.runs(JobStatus.STOPPED)[0].run_id
    best = sample.best().run_id
    yield Call(command="metta sweep list")
    yield Call(command="metta sweep list --json", has_whole_lines=True, lines=12)
    yield Call(command=f"metta sweep status {SWEEP}", lines=24)
    yield Call(command=f"metta sweep status {SWEEP} --runs", lines=10)
    yield Call(command=f"metta sweep status {SWEEP} --json", has_whole_lines=True, lines=12)
    yield Call(
        command=f"metta sweep status {SWEEP} --watch",
        until="IN_TRAINING",
        keys=_INTERRUPT,
        code=130,
        lines=40,
        in_pipe=False,
    )
    yield Call(
        command=f"metta sweep status --tail {running}",
        until="epoch 2",
        keys=_INTERRUPT,
        code=130,
        lines=40,
        in_pipe=False,
    )
    yield Call(command=f"metta sweep show {best}", lines=30)
    yield Call(command=f"metta sweep best {SWEEP} --top 5")
    yield Call(command=f"metta sweep best {SWEEP} --format yaml", has_whole_lines=True)
    yield Call(command=f"metta sweep best {SWEEP} --top 2 --format cli", has_whole_lines=True)
    yield Call(command="metta sweep schema", has_whole_lines=True, lines=8)
    yield Call(command=f"metta sweep logs {killed}", lines=12)
    yield Call(command=f"metta sweep logs {running} -f", until="epoch 2", keys=_INTERRUPT, code=130, in_pipe=False)
    yield Call(command=f"metta sweep events {SWEEP} --run {stopped}", shows_pipe=True)
    yield Call(
        command=f"metta sweep events {SWEEP} -f --type 'job_*'",
        until="job_started",
        keys=_INTERRUPT,
        code=130,
        in_pipe=False,
    )
    yield Call(command=f"metta sweep events {SWEEP} --tail 3 --json | cut -c -78", has_whole_lines=True)
    yield Call(command=f"metta sweep why {stopped}", lines=20)
    yield Call(command=f"metta sweep why {failed}", lines=20)
    yield Call(command=f"metta sweep replay {SWEEP} --to 100", lines=24)
    yield Call(
        command=f"metta sweep replay {SWEEP} --step",
        note="Enter goes on to the next event, q ends it.",
        until="1>",
        keys=("Enter", "@2>", "Enter", "@3>", "q", "Enter"),
        shows_end=True,
        lines=40,
        in_pipe=False,
    )
    yield Call(
        command=f"metta sweep replay {SWEEP}",
        note="A film of it all, on a terminal.",
        until=r"runs +[1-9]\d+ of",
        keys=_INTERRUPT,
        code=130,
        lines=24,
        in_pipe=False,
    )


def _analysis(sample: Sample) -> Iterator[Call]:
    yield Call(command=f"metta sweep analyze {SWEEP}", lines=60, most_s=20.0)
    yield Call(command=f"metta sweep analyze {SWEEP} --html report.html", most_s=30.0)
    yield Call(command=f"metta sweep compare {SWEEP} {OTHER}", lines=40)


def _elsewhere() -> Iterator[Call]:
    yield Call(command=f"metta sweep export {SWEEP} --format yaml", has_whole_lines=True, lines=30)
    yield Call(command=f"metta sweep export {SWEEP} --format json -o {SWEEP}.json", in_pipe=False)
    yield Call(command=f"metta sweep export {SWEEP} --format csv", has_whole_lines=True, lines=4)
    yield Call(command=f"metta sweep import {SWEEP}.json --store elsewhere.db", in_pipe=False, most_s=30.0)
    yield Call(
        command=f"metta sweep export {SWEEP} -o sweep_config.yaml && "
        "metta sweep import sweep_config.yaml --name again --store elsewhere.db",
        in_pipe=False,
        has_whole_lines=True,
    )
    yield Call(command=f"metta sweep doctor {SWEEP}", lines=24, most_s=20.0)
    yield Call(command="metta sweep serve-metrics --once", has_whole_lines=True)
    yield Call(
        command="metta sweep serve-metrics --port 0",
        until="Ctrl-C ends it",
        keys=_INTERRUPT,
        has_whole_lines=True,
        in_pipe=False,
    )
    yield Call(
        command="metta sweep notify --test --channel chat",
        note="In the file `chat` is a URL of Apprise.",
        has_whole_lines=True,
    )
    yield Call(
        command=f"metta sweep notify {SWEEP} --once --channel chat",
        note="For cron; where nothing is due, it says nothing.",
        has_whole_lines=True,
    )
    yield Call(command="metta sweep backup copy.db", in_pipe=False, has_whole_lines=True, most_s=10.0)
    yield Call(
        command="metta sweep report accuracy=0.93 epoch=3", note="Outside of a sweep it only checks what it is given."
    )
    yield Call(command="metta sweep checkpoint train.py --step 5", note="Outside of a sweep nothing is saved.")


def _changing(sample: Sample) -> Iterator[Call]:
    yield Call(command="metta sweep run train.py --dry-run --steps 5", has_whole_lines=True)
    yield Call(command=f"metta sweep pause {SWEEP}", in_pipe=False, after=sample.release)
    yield Call(
        command="metta sweep run train.py --max-trials 60",
        until=r"running; [^\n]*COMPLETED(?s:.*)IN_TRAINING",
        most_s=30.0,
        lines=30,
        shows_pipe=True,
    )
    yield Call(
        command=f"metta sweep resume {SWEEP}",
        note="It becomes the controller; Ctrl-C lets running jobs finish, a second one cancels them.",
        before=sample.hold,
        until="IN_TRAINING",
        keys=("C-c", "@again", "C-c"),
        code=130,
        in_pipe=False,
        lines=30,
        most_s=30.0,
        after=sample.release,
    )
    yield Call(
        command=f"metta sweep debug {SWEEP}",
        until="> *$",
        keys=("Enter", r"@(?s)>.*\n> *$", "q", "Enter"),
        shows_end=True,
        has_whole_lines=True,
        in_pipe=False,
        lines=30,
        most_s=30.0,
    )
    yield Call(command=f"metta sweep rollback {SWEEP} --jobs 5", in_pipe=False, has_whole_lines=True)
    yield Call(command=f"metta sweep rollback {SWEEP} --undo", in_pipe=False, has_whole_lines=True)
    yield Call(command=f"metta sweep stop {SWEEP}", in_pipe=False, most_s=30.0)
