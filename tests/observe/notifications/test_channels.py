"""Channels: what they are sent arrives, and nothing of their URLs is ever shown."""

from __future__ import annotations

import logging
import os
import re
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from metta.sweep.errors import ConfigError, MissingExtraError
from metta.sweep.model.notify import DEFAULT_CHANNEL, Notify
from metta.sweep.observe.notifications.channels import check_channels, default_notify, open_channels
from metta.sweep.observe.notifications.notices import Message, Severity
from observe.notifications.endpoints import free_port, mailbox, webhook

MESSAGE = Message(title="demo: 2 runs failed", body="2 runs failed\na < b & *c*", severity=Severity.FAILURE)
SECRET = "T0KENinTHEpath"
#: A process that sends twice, and ends.
SEND = """
import logging
from pathlib import Path
from metta.sweep.model.notify import Notify
from metta.sweep.observe.notifications import channels
from metta.sweep.observe.notifications.notices import Message

logging.basicConfig(level=logging.DEBUG)
channels._PATIENCE_S = 0.5
[channel] = channels.open_channels(Notify(channels=("$HOOK",)), Path())
for _ in range(2):
    print(channel.send(Message(title="title", body="body")), flush=True)
"""


def notify(*channels: str) -> Notify:
    return Notify(channels=channels)


def test_a_webhook_and_a_mailbox_take_messages_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with webhook() as hook, mailbox() as box:
        monkeypatch.setenv("HOOK", hook.url("hook"))
        (tmp_path / "apprise.yml").write_text(f"urls:\n  - {box.url}\n")
        opened = open_channels(notify("$HOOK", "apprise.yml"), tmp_path)
        assert [channel.send(MESSAGE) for channel in opened] == [None, None]
        [message] = hook.received
        assert (message["title"], message["message"], message["type"]) == (MESSAGE.title, MESSAGE.body, "failure")
        [mail] = box.mails
        assert (mail["subject"], mail["to"]) == (MESSAGE.title, "me@example.org")
        text = mail.get_body(("plain", "html")).get_content()
        assert "2 runs failed" in text


def test_the_examples_of_the_documentation_are_read_by_apprise(tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "docs/notifications.md").read_text()
    [example] = re.findall(r"```yaml\n(# apprise\.yml\n.*?)```", text, re.DOTALL)
    (tmp_path / "apprise.yml").write_text(example)
    services = [channel.service for channel in open_channels(notify("apprise.yml"), tmp_path)]
    assert services == ["Slack", "E-Mail", "Pager Duty", "JSON"]


def test_several_urls_of_one_name_are_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWO", "json://localhost:1 json://localhost:2")
    assert [channel.name for channel in open_channels(notify("$TWO"), tmp_path)] == ["$TWO", "$TWO#2"]


def test_a_variable_may_hold_the_path_of_a_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "apprise.conf").write_text("json://localhost:1\n")
    monkeypatch.setenv("FILE", str(tmp_path / "apprise.conf"))
    [channel] = open_channels(notify("$FILE"), Path("/"))
    assert (channel.name, channel.service) == ("$FILE", "JSON")


@pytest.mark.parametrize("is_up", [True, False], ids=["refused", "down"])
def test_what_goes_wrong_is_said_without_the_secrets_of_the_url(
    is_up: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with webhook() as hook:
        hook.status = 500
        port = hook.port if is_up else free_port()
        monkeypatch.setenv("HOOK", f"json://somebody:PASSword@localhost:{port}/{SECRET}?+X-Key=HEADERkey")
        [channel] = open_channels(notify("$HOOK"), tmp_path)
        with caplog.at_level(logging.DEBUG):
            problem = channel.send(MESSAGE)
    assert problem is not None
    assert ("500" if is_up else "onnection error") in problem
    out, err = capfd.readouterr()
    for said in (problem, caplog.text, out, err, repr(channel)):
        assert not any(secret in said for secret in (SECRET, "PASSword", "HEADERkey"))


def test_a_server_that_answers_without_end_is_given_up_and_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "send.py").write_text(SEND)
    with socket.create_server(("127.0.0.1", 0)) as server:
        over = threading.Event()

        def drip() -> None:
            while not over.is_set():
                with suppress(OSError), server.accept()[0] as connection:
                    connection.recv(1 << 16)
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
                    while not over.wait(0.1):
                        connection.sendall(b"x")

        dripping = threading.Thread(target=drip)
        dripping.start()
        environment = {**os.environ, "HOOK": f"json://127.0.0.1:{server.getsockname()[1]}/{SECRET}"}
        command = [sys.executable, tmp_path / "send.py"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=True)
        over.set()
        server.shutdown(socket.SHUT_RDWR)
        dripping.join()
    assert done.stdout.splitlines() == ["it did not answer within 0.5 s", "it still does not answer"]
    assert SECRET not in done.stderr


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (None, "HOOK is not set"),
        (f"slakc://{SECRET}/b/c", "does not know"),
        (f"slack://{SECRET}", "does not know"),
        ("nowhere.yml", "no such file"),
        ("empty.yml", "finds no URL"),
    ],
)
def test_what_cannot_be_sent_to_is_refused_and_not_shown(
    value: str | None,
    why: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty.yml").write_text("urls: []\n")
    monkeypatch.chdir(tmp_path)
    if value is not None:
        monkeypatch.setenv("HOOK", value)
    with pytest.raises(ConfigError, match=why) as caught:
        check_channels(notify("$HOOK"), tmp_path)
    assert "HOOK" in str(caught.value)
    assert SECRET not in str(caught.value) + "".join(capfd.readouterr())


def test_without_apprise_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apprise", None)
    with pytest.raises(MissingExtraError, match=r'pip install "metta-sweep\[notify\]"'):
        check_channels(notify("$HOOK"), Path())


def test_a_variable_speaks_for_sweeps_that_name_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DEFAULT_CHANNEL[1:], raising=False)
    assert default_notify() is None
    check_channels(None, Path())
    monkeypatch.setenv(DEFAULT_CHANNEL[1:], "json://localhost:1")
    assert default_notify() == Notify()
    monkeypatch.setenv(DEFAULT_CHANNEL[1:], "nonsense://localhost:1")
    with pytest.raises(ConfigError, match="METTA_SWEEP_NOTIFY"):
        check_channels(None, Path())
