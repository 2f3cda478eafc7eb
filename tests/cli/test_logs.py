"""`metta sweep logs`."""

from __future__ import annotations

from cli.command_line import CommandLine
from waiting import wait_until


def test_logs_are_followed_until_the_run_ends_and_printed_whole_afterwards(metta: CommandLine) -> None:
    running = metta.start_held()
    run_id = metta.executions()[0]
    begun = metta("logs", run_id)
    assert (begun.code, begun.err) == (0, f"==> {run_id}.train.1 <==\n")
    followers = [
        metta.start("logs", address, option) for address, option in ((run_id, "-f"), (f"train/{run_id}", "--follow"))
    ]
    wait_until(lambda: all(f"training {run_id}\n" in follower.out for follower in followers), what="the first line")
    metta.release()
    text = f"training {run_id}\ntrained\n"
    assert begun.out in {"", f"training {run_id}\n"}
    assert [follower.wait().out for follower in followers] == [text, text]
    assert running.wait().code == 0
    assert metta("logs", run_id[:4]).out == text


def test_a_log_is_copied_byte_for_byte_and_its_loss_is_told(metta: CommandLine) -> None:
    metta.write(
        "sweep.yaml",
        r"""
        command: [python, -c, "import sys; sys.stdout.buffer.write(bytes(range(256)))"]
        search_space: {x: {constant: 1}}
        metric: score
        max_trials: 1
    """,
    )
    assert metta("run", "sweep.yaml").code == 1
    [run] = metta.runs()
    # Read back through the same decoding, so that every byte counts.
    assert metta("logs", run.run_id).out == bytes(range(256)).decode(errors="surrogateescape")
    (metta.folder / "sweeps" / run.sweep_id / "runs" / run.run_id / "train-1.log").unlink()
    gone = metta("logs", run.run_id)
    assert (gone.code, gone.out) == (2, "")
    assert "is gone" in gone.err


def test_the_loss_of_a_log_that_is_followed_is_told_once(metta: CommandLine) -> None:
    running = metta.start_held()
    run_id = metta.executions()[0]
    follower = metta.start("logs", run_id, "-f")
    wait_until(lambda: "training" in follower.out, what="the first line")
    (metta.folder / "sweeps" / metta.latest().sweep_id / "runs" / run_id / "train-1.log").unlink()
    wait_until(lambda: "is gone" in follower.err, what="that it is gone")
    others = metta("status", "--json")  # some looks later
    metta.release()
    assert (others.code, running.wait().code) == (0, 0)
    assert follower.wait().err.count("is gone") == 1
