"""Messages about sweeps from real processes, which are killed, to real endpoints, which are down at times."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from cli.command_line import CommandLine
from metta.sweep.model.events import Notified
from observe.notifications.endpoints import Webhook, webhook
from waiting import wait_until

SECRET = "T0KENinTHEpath"
#: Ten runs, two at a time, of which every other fails. While there is a file `hold` the last ones wait.
FAILING = """
    import time
    from pathlib import Path
    from metta.sweep import Range, current_run, sweep

    @sweep(search_space={"x": Range(0, 9)}, strategy="grid", metric="score", max_trials=10, max_parallel=2, seed=7,
           same_error_limit=0)
    def train(config):
        while config["x"] >= 6 and Path("hold").exists():
            time.sleep(0.01)
        if config["x"] % 2:
            raise ValueError("x is odd")
        return {"score": config["x"]}
"""
TITLE = "train: COMPLETED, best score 8"


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    with webhook() as hook:
        monkeypatch.setenv("HOOK", hook.url(SECRET))
        yield hook


def notified(metta: CommandLine) -> list[Notified]:
    events = metta.store.read(metta.latest().sweep_id)
    return [event.body for event in events if isinstance(event.body, Notified)]


def failures_told(hook: Webhook) -> int:
    lines = [line for body in hook.bodies for line in body.splitlines() if "failed for good" in line]
    return sum(int(line.split()[0]) for line in lines)


def test_a_sweep_tells_of_its_failures_and_its_end_and_nothing_shows_the_secrets(
    metta: CommandLine, hook: Webhook
) -> None:
    metta.write("train.py", FAILING)
    logging = {"METTA_SWEEP_LOG": "json", "METTA_SWEEP_LOG_LEVEL": "debug"}
    done = metta("run", "train.py", "--notify", "$HOOK", **logging)
    assert done.code == 0
    assert hook.titles[-1].startswith(TITLE)
    assert len(hook.titles) <= 2
    assert failures_told(hook) == 5
    assert set(hook.paths) == {f"/{SECRET}"}
    exported = metta("export", "--format", "json").out
    assert "$HOOK" in exported
    told = [event.through for event in notified(metta)]
    assert told == sorted(told)
    for said in (done.out, done.err, exported, metta("events", "--json").out):
        assert SECRET not in said
    written = [path for path in metta.files() if path.is_file()]
    assert [path for path in written if SECRET.encode() in path.read_bytes()] == []
    # An imported sweep has the history of its messages, too.
    metta.write("copy.json", exported)
    copy = metta("import", "copy.json", "--store", "copy.db")
    assert copy.code == 0
    assert metta("events", "--store", "copy.db", "--type", "notified", "--json").out == (
        metta("events", "--type", "notified", "--json").out
    )


def test_nothing_begins_where_a_channel_is_missing(metta: CommandLine) -> None:
    metta.write("train.py", FAILING)
    before = metta.files()
    assert "environment variable NOWHERE is not set" in metta("run", "train.py", "--notify", "$NOWHERE").error
    error = metta("run", "train.py", "--notify", f"slack://{SECRET}").error
    assert "in single quotes" in error
    assert SECRET not in error
    assert metta("run", "train.py", METTA_SWEEP_NOTIFY="nothing.yml").code == 2
    assert metta.files() == before


def test_a_controller_killed_between_the_delivery_and_its_note_says_it_again_and_loses_nothing(
    metta: CommandLine, hook: Webhook
) -> None:
    metta.write("train.py", FAILING)
    (metta.folder / "hold").touch()
    victims: list[int] = []

    def kill(_message: dict[str, Any]) -> None:
        if victims:
            os.kill(victims.pop(), signal.SIGKILL)

    hook.on_message = kill
    hook.down()  # so that nothing is sent before the process to kill is known
    running = metta.start("run", "train.py", "--notify", "$HOOK")
    victims.append(running.process.pid)
    hook.up()
    assert running.process.wait(timeout=60) == -signal.SIGKILL
    assert len(hook.received) == 1
    assert [event.title for event in notified(metta) if event.title] == []
    metta.release()
    assert metta("run", "train.py", "--notify", "$HOOK").code == 0
    assert hook.titles[-1].startswith(TITLE)
    # What the first message said was said again; all that failed was told.
    repeated = int(next(line for line in hook.bodies[0].splitlines() if "failed for good" in line).split()[0])
    assert failures_told(hook) == 5 + repeated


def test_a_controller_killed_before_the_delivery_leaves_the_message_to_the_next(
    metta: CommandLine, hook: Webhook
) -> None:
    metta.write("train.py", FAILING)
    (metta.folder / "hold").touch()
    hook.down()
    running = metta.start("run", "train.py", "--notify", "$HOOK")
    wait_until(lambda: "did not take a message" in running.err, what="an attempt")
    running.process.kill()
    running.process.wait()
    hook.up()
    metta.release()
    assert metta("run", "train.py", "--notify", "$HOOK").code == 0
    assert failures_told(hook) == 5
    assert hook.titles[-1].startswith(TITLE)


@pytest.mark.slow
def test_what_an_endpoint_would_not_take_to_the_end_is_sent_later(metta: CommandLine, hook: Webhook) -> None:
    metta.write("train.py", FAILING)
    hook.status = 500
    done = metta("run", "train.py", "--notify", "$HOOK")
    assert done.code == 0
    assert "send it later with: metta sweep notify" in done.err
    failed = metta("notify", "--once", "--json")
    assert failed.code == 1
    [delivery] = failed.json
    assert "500" in delivery["problem"]
    hook.status = 200
    sent = metta("notify", "--once")
    assert sent.code == 0
    assert f"$HOOK told of sweep {metta.latest().sweep_id}: {TITLE}, 5 runs failed" in sent.out
    assert hook.titles == [f"{TITLE}, 5 runs failed"]
    assert metta("notify", "--once").out == ""


def test_who_is_told_may_change_in_the_middle_and_the_controller_follows(metta: CommandLine, hook: Webhook) -> None:
    running = metta.start_held()
    again = metta("run", "train.py", "--notify", "$HOOK")
    assert again.code == 0
    assert "goes on with the new notify" in again.err
    wait_until(lambda: "$HOOK" in metta.latest().notified, what="the channel's beginning")
    metta.release()
    assert running.wait().code == 0
    assert hook.titles[-1].startswith("train: COMPLETED")
    assert len(metta.store.fetch_sweeps()) == 1


def test_a_sweep_that_goes_on_in_the_background_may_tell_others(metta: CommandLine, hook: Webhook) -> None:
    running = metta.start_held()
    running.process.kill()
    running.process.wait()
    assert metta("run", "train.py", "--notify", "$HOOK", "--detach").code == 0
    metta.release()
    wait_until(lambda: hook.titles, what="the message")
    assert hook.titles[-1].startswith("train: COMPLETED")
    metta.wait_for_the_end_of_all_processes()


def test_a_sweep_that_has_begun_may_be_resumed_with_channels(metta: CommandLine, hook: Webhook) -> None:
    running = metta.start_held()
    running.process.kill()
    running.process.wait()
    metta.release()
    sweep_id = metta.latest().sweep_id
    assert "NOWHERE is not set" in metta("run", "--resume", sweep_id, "--notify", "$NOWHERE").error
    assert metta("run", "--resume", sweep_id, "--notify", "$HOOK").code == 0
    assert hook.titles[-1].startswith("train: COMPLETED")


def test_a_test_message_says_who_took_it(metta: CommandLine, hook: Webhook, monkeypatch: pytest.MonkeyPatch) -> None:
    good = metta("notify", "--test", "--channel", "$HOOK")
    assert (good.code, good.out) == (0, "$HOOK (JSON): took it\n")
    assert hook.titles == ["metta sweep: a test"]
    with webhook() as other:
        other.status = 404
        monkeypatch.setenv("METTA_SWEEP_NOTIFY", f"{hook.url()} {other.url(SECRET)}")
        bad = metta("notify", "--test", "--json")
    assert bad.code == 1
    assert [(each["channel"], each["problem"] is None) for each in json.loads(bad.out)] == [
        ("$METTA_SWEEP_NOTIFY", True),
        ("$METTA_SWEEP_NOTIFY#2", False),
    ]
    assert "404" in bad.out
    assert SECRET not in bad.out + bad.err


def test_a_test_without_channels_is_refused(metta: CommandLine) -> None:
    assert "METTA_SWEEP_NOTIFY" in metta("notify", "--test").error


def test_a_job_of_cron_that_would_tell_nobody_is_refused(metta: CommandLine) -> None:
    metta.write("train.py", FAILING)
    assert metta("run", "train.py").code == 0
    assert "nobody is to be told" in metta("notify", "--once").error


def test_a_watcher_tells_of_sweeps_that_name_nobody(
    metta: CommandLine, hook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = metta.start_held()
    watcher = metta.start("notify", "--channel", "$HOOK")
    wait_until(lambda: "$HOOK" in metta.latest().notified, what="the watcher")
    metta.release()
    assert running.wait().code == 0
    wait_until(lambda: hook.titles, what="the message")
    wait_until(lambda: "told of sweep" in watcher.out, what="the line of it")
    watcher.process.send_signal(signal.SIGINT)
    assert watcher.wait().code == 130
    assert [title.startswith("train: COMPLETED") for title in hook.titles] == [True]
