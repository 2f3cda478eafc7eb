"""Spans of real sweeps, as they reach a real collector, from all processes that have a part in them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cli.command_line import CommandLine
from metta.sweep.agent.location import read_address
from observe.tracing.collector import Collected, Collector
from waiting import wait_until

TARGET = """
    import json, os
    from metta.sweep import Uniform, current_run, report_metrics, run_directory, save_checkpoint, sweep

    @sweep(search_space={"x": Uniform(0.0, 1.0)}, metric="score", max_trials=4, max_parallel=2, seed=7,
           strategy="tpe", retry={"max_retries": 0}, same_error_limit=0)
    def train(config):
        told = {name: value for name, value in os.environ.items() if name == "TRACEPARENT" or name.startswith("OTEL")}
        with open("told", "a") as stream:
            stream.write(json.dumps([current_run().job_id, told]) + "\\n")
        if config["x"] > 0.7:
            raise ValueError("too large")
        report_metrics({"score": 0.0})
        save_checkpoint({"weights": 1}, step=1)
        return {"score": config["x"]}
"""


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """One that every command of the test knows of, and that gets spans soon."""
    with Collector() as running:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", running.url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        yield running


def told(metta: CommandLine) -> dict[str, dict[str, str]]:
    """What the jobs found in their environment."""
    return dict(map(json.loads, (metta.folder / "told").read_text().splitlines()))


def of_jobs(spans: list[Collected]) -> dict[str, Collected]:
    by_id = {span.attributes["metta.job_id"]: span for span in spans}
    assert len(by_id) == len(spans)
    return by_id


def test_what_belongs_to_what_is_known_across_processes(metta: CommandLine, collector: Collector) -> None:
    metta.write("train.py", TARGET)
    assert metta("run", "train.py", "--name", "traced").code == 0
    metta.wait_for_the_end_of_all_processes()
    [sweep_id] = {run.sweep_id for run in metta.runs()}
    jobs, dispatches = of_jobs(collector.named("job")), of_jobs(collector.named("dispatch"))
    assert jobs.keys() == dispatches.keys() == told(metta).keys()
    assert len(jobs) == 4
    steps = {span.traceparent: span for span in collector.named("step")}
    for job_id, job in jobs.items():
        dispatch = dispatches[job_id]
        assert (job.trace_id, job.parent_id) == dispatch.traceparent
        step = steps[dispatch.trace_id, dispatch.parent_id]
        assert step.parent_id == ""
        assert step.start <= dispatch.start <= job.start <= job.end
        assert dispatch.end <= step.end
        assert dispatch.attributes["metta.dispatcher"] == "local"
        assert dispatch.resource["process.pid"] != job.resource["process.pid"]
        # What the job is told makes its own spans children of this one, and it finds where to send them.
        version, *parent, _ = told(metta)[job_id]["TRACEPARENT"].split("-")
        assert (version, tuple(parent)) == ("00", job.traceparent)
        assert told(metta)[job_id]["OTEL_EXPORTER_OTLP_ENDPOINT"] == collector.url
    assert len({step.trace_id for step in steps.values()}) == len(steps)
    assert {span.attributes["metta.sweep_id"] for span in collector.spans} == {sweep_id}
    kinds = {(span.resource["service.name"], span.resource["metta.sweep_name"]) for span in collector.spans}
    assert kinds == {("metta-sweep", "traced")}


def test_how_jobs_end_and_what_was_suggested_is_in_the_spans(metta: CommandLine, collector: Collector) -> None:
    metta.write("train.py", TARGET)
    assert metta("run", "train.py").code == 0
    metta.wait_for_the_end_of_all_processes()
    outcomes = {run.run_id: "failed" if run.score is None else "succeeded" for run in metta.runs()}
    assert Counter(outcomes.values()) == {"succeeded": 2, "failed": 2}
    for job in collector.named("job"):
        run_id = job.attributes["metta.run_id"]
        assert job.attributes["metta.outcome"] == outcomes[run_id]
        assert (job.attributes["metta.kind"], job.attributes["metta.attempt"]) == ("train", 1)
        if outcomes[run_id] == "failed":
            assert job.error == "user_error: ValueError: too large (train.py:12)"
            assert job.attributes["metta.failure"] == "user_error"
            assert job.events == ["started"]
        else:
            assert job.error is None
            assert job.events == ["started", "first metrics", "checkpoint"]
    suggests = collector.named("suggest")
    assert sum(span.attributes["metta.suggestions"] for span in suggests) == 4
    assert suggests[0].attributes.items() >= {"metta.optimizer": "tpe", "metta.k": 0, "metta.observations": 0}.items()
    assert suggests[-1].attributes["metta.observations"] >= 1
    for step in collector.named("step"):
        acts = [*collector.children(step, "append"), *collector.children(step, "dispatch")]
        news = sum(span.attributes["metta.events"] for span in collector.children(step, "read"))
        assert acts or news or step.end - step.start >= 50e6, "a step that nobody wants to see"
        [decide] = collector.children(step, "decide")
        [first, *_] = collector.children(step, "read")
        assert first.end <= decide.start
        suggests = [span for span in suggests if span not in collector.children(decide, "suggest")]
    assert suggests == []


def test_jobs_are_traced_to_their_end_while_no_controller_lives(metta: CommandLine, collector: Collector) -> None:
    running = metta.start_held()
    wait_until(lambda: len(collector.named("dispatch")) == 2, what="the spans of two dispatches")
    before = of_jobs(collector.named("dispatch"))
    running.process.kill()
    running.process.wait()
    metta.release()
    wait_until(lambda: len(collector.named("job")) == 2, what="the spans of two jobs")
    orphans = of_jobs(collector.named("job"))
    assert {job_id: (job.trace_id, job.parent_id) for job_id, job in orphans.items()} == {
        job_id: dispatch.traceparent for job_id, dispatch in before.items()
    }
    assert metta("run", "train.py").code == 0
    metta.wait_for_the_end_of_all_processes()
    jobs, dispatches = of_jobs(collector.named("job")), of_jobs(collector.named("dispatch"))
    assert len(jobs) == 4
    assert all((job.trace_id, job.parent_id) == dispatches[job_id].traceparent for job_id, job in jobs.items())
    assert {job.attributes["metta.outcome"] for job in jobs.values()} == {"succeeded"}


def test_a_training_joins_as_the_documentation_says(metta: CommandLine, collector: Collector) -> None:
    text = (Path(__file__).parents[2] / "docs/tracing.md").read_text()
    [block] = [part.partition("```")[0] for part in text.split("```python\n")[1:]]
    imports = "from metta.sweep import Uniform, report_metrics, sweep\n"
    decorator = '@sweep(search_space={"x": Uniform(0, 1)}, metric="score", max_trials=2, seed=1)\n'
    trained = block.replace("def train", f"{decorator}def train").replace("...", 'report_metrics({"score": 1.0})')
    metta.write("train.py", imports + trained)
    assert metta("run", "train.py").code == 0
    metta.wait_for_the_end_of_all_processes()
    assert [len(collector.children(job, "epoch")) for job in collector.named("job")] == [1, 1]


def test_an_agent_that_is_terminated_says_so_of_its_jobs(metta: CommandLine, collector: Collector) -> None:
    running = metta.start_held()
    address = read_address(str(metta.folder / "sweeps" / metta.latest().sweep_id))
    assert address is not None
    agent = psutil.Process(address.pid)
    os.kill(agent.pid, signal.SIGTERM)
    wait_until(lambda: not agent.is_running() or agent.status() == psutil.STATUS_ZOMBIE, what="the end of the agent")
    assert [span.error for span in collector.named("job")] == ["the agent was terminated"] * 2
    metta.release()
    assert running.wait().code == 0  # with another agent
    metta.wait_for_the_end_of_all_processes()
    outcomes = Counter(span.attributes.get("metta.outcome") for span in collector.named("job"))
    assert outcomes == {None: 2, "succeeded": 4}


def test_a_collector_that_is_not_there_is_told_of_once_and_disturbs_nothing(metta: CommandLine) -> None:
    with socket.socket() as nobody:  # bound and not listening: who connects is refused
        nobody.bind(("127.0.0.1", 0))
        metta.write("train.py", TARGET)
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        done = metta("run", "train.py", OTEL_EXPORTER_OTLP_ENDPOINT=url, OTEL_BSP_SCHEDULE_DELAY="10")
        metta.wait_for_the_end_of_all_processes()
    assert done.code == 0
    assert done.err.count("cannot be exported") == 1
    assert len(done.err.splitlines()) == 8  # the start, four runs, that, the end, the best
    agent_log = (metta.folder / "sweeps" / metta.latest().sweep_id / "agent.log").read_text()
    assert agent_log.count("cannot be exported") == 1
    assert "Traceback" not in done.err + agent_log


@pytest.fixture
def without_extra(tmp_path: Path) -> dict[str, str]:
    """The environment of an interpreter in which nothing of OpenTelemetry can be imported."""
    folder = tmp_path / "blocking"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        "class Blocked:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'opentelemetry':\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Blocked())\n"
    )
    return {"PYTHONPATH": str(folder)}


@pytest.mark.parametrize(
    "asked",
    [
        {"OTEL_TRACES_EXPORTER": "otlp"},
        {"OTEL_TRACES_EXPORTER": "console"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h"},
    ],
)
def test_without_the_extra_who_asks_is_told_how_to_get_it(
    metta: CommandLine, without_extra: dict[str, str], asked: dict[str, str]
) -> None:
    metta.write("train.py", TARGET)
    for options in ([], ["--detach"]):
        error = metta("run", "train.py", *options, **without_extra, **asked).error
        assert 'pip install "metta-sweep[tracing]"' in error
        assert "OTEL_TRACES_EXPORTER=none" in error
    assert not (metta.folder / "sweeps.db").exists()


@pytest.mark.parametrize("unasked", [{}, {"OTEL_TRACES_EXPORTER": "none"}, {"OTEL_SDK_DISABLED": "true"}])
def test_without_the_extra_who_does_not_ask_misses_nothing(
    metta: CommandLine, without_extra: dict[str, str], unasked: dict[str, str]
) -> None:
    metta.write("train.py", TARGET)
    around = {} if not unasked else {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318"}
    assert metta("run", "train.py", **without_extra, **around, **unasked).code == 0
    assert {"TRACEPARENT" in environment for environment in told(metta).values()} == {False}


def test_what_the_variables_cannot_say_is_refused_before_there_is_a_sweep(metta: CommandLine) -> None:
    metta.write("train.py", TARGET)
    assert "did you mean 'console'" in metta("run", "train.py", OTEL_TRACES_EXPORTER="consle").error
    assert not (metta.folder / "sweeps.db").exists()


def test_spans_on_the_console_leave_standard_output_to_the_results(metta: CommandLine) -> None:
    metta.write("train.py", TARGET)
    done = metta("run", "train.py", "--json", OTEL_TRACES_EXPORTER="console")
    assert done.json["name"] == "train"
    spans = [json.loads(line) for line in done.err.splitlines() if line.startswith("{")]
    assert {"step", "read", "decide", "suggest", "append", "dispatch"} <= {span["name"] for span in spans}


PROGRAM = """
    import json, sys
    from train import train

    def without_tracing():
        train.run(progress=False)
        return sorted(name for name in sys.modules if name.startswith("opentelemetry"))

    def with_a_provider():
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
        exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        trace.set_tracer_provider(provider)
        with trace.get_tracer("program").start_as_current_span("experiment") as span:
            train.run(progress=False)
        around = span.get_span_context().span_id
        spans = exporter.get_finished_spans()
        return {
            "names": sorted({span.name for span in spans}),
            "linked": [
                [link.context.span_id == around for link in span.links] for span in spans if span.name == "step"
            ],
            "dispatches": {
                span.attributes["metta.job_id"]: format(span.context.span_id, "016x")
                for span in spans
                if span.name == "dispatch"
            },
        }

    def opened():
        from msgspec.structs import replace
        from metta.sweep.clock import SystemClock
        from metta.sweep.errors import MissingExtraError
        from metta.sweep.model.state import EMPTY, fold
        from metta.sweep.observe.tracing.spans import open_tracing
        from metta.sweep.testing.sweeps import sweep_created
        try:
            open_tracing(fold(EMPTY, [replace(sweep_created(), seq=1)]).sweep, SystemClock())
        except MissingExtraError as error:
            return str(error)

    print(json.dumps(globals()[sys.argv[1]]()))
"""


def run_program(metta: CommandLine, function: str, **environment: str) -> object:
    metta.write("train.py", TARGET)
    program = metta.write("program.py", PROGRAM)
    done = subprocess.run(
        [sys.executable, program, function],
        cwd=metta.folder,
        env={**os.environ, **environment},
        capture_output=True,
        timeout=60,
        check=True,
    )
    return json.loads(done.stdout)


def test_an_agent_without_the_extra_can_tell_what_is_missing(metta: CommandLine, without_extra: dict[str, str]) -> None:
    said = run_program(metta, "opened", **without_extra, OTEL_TRACES_EXPORTER="otlp")
    assert 'pip install "metta-sweep[tracing]"' in str(said)


def test_nothing_of_it_is_imported_unless_it_is_asked_for(metta: CommandLine) -> None:
    assert run_program(metta, "without_tracing") == []


def test_the_provider_of_a_program_around_is_used_and_its_span_linked_to(metta: CommandLine) -> None:
    said = run_program(metta, "with_a_provider")
    assert isinstance(said, dict)
    assert {"append", "decide", "dispatch", "experiment", "read", "step", "suggest"} <= set(said["names"])
    assert set(map(tuple, said["linked"])) == {(True,)}
    # Nobody told the agent where spans go, so those that a job makes are children of the dispatch.
    parents = {job_id: environment["TRACEPARENT"].split("-")[2] for job_id, environment in told(metta).items()}
    assert parents == said["dispatches"]
