"""Where messages go: Slack, mail, PagerDuty, webhooks and whatever else Apprise knows.

A URL of Apprise holds tokens and passwords, also in places that Apprise does not take for secret, such as the path of a
webhook. So nothing here ever shows one: a channel goes by the name of the variable or file that it comes from.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote

from metta.sweep.errors import ConfigError, MissingExtraError
from metta.sweep.model.notify import DEFAULT_CHANNEL, Notify
from metta.sweep.observe.notifications.notices import Message

#: So long a channel is waited for: one whose answer comes byte by byte would keep the others waiting for ever.
_PATIENCE_S = 60.0
#: Shorter parts of a URL are words such as `v1` or a port; hiding them would garble what a server said.
_SHORTEST_SECRET = 4
#: Longer ones that are in every URL.
_NO_SECRETS = {"POST", "overflow", "upstream", "retry", "optional"}


class Channel:
    """One place that takes messages.

    Args:
        name: As in the settings, with a number from the second on where one name stands for several.
        plugin: What Apprise made of the URL.
    """

    def __init__(self, name: str, plugin: Any) -> None:
        self.name = name
        #: What kind it is, such as `Slack`.
        self.service = str(plugin.service_name)
        self._plugin = plugin
        #: At work on the last message.
        self._sending = threading.Thread()

    def send(self, message: Message) -> str | None:
        """Hand the message over; takes seconds where the other side does not answer.

        Returns:
            What went wrong, without anything of the URL in it; None when the message was accepted.
        """
        if self._sending.is_alive():
            return "it still does not answer"
        with _overheard() as said:
            answers: list[bool] = []
            # A daemon, which keeps no process from its end.
            self._sending = threading.Thread(
                target=lambda: answers.append(self._send(message, said)), name=_SENDER, daemon=True
            )
            self._sending.start()
            self._sending.join(_PATIENCE_S)
            if not answers:
                return f"it did not answer within {_PATIENCE_S:g} s"
        return None if answers[0] else self._without_secrets("; ".join(said) or f"{self.service} did not take it")

    def _send(self, message: Message, said: list[str]) -> bool:
        import apprise

        sender = apprise.Apprise()
        sender.add(self._plugin)
        try:
            # In some versions a bool, in others an object that is true or false.
            return bool(
                sender.notify(
                    body=message.body,
                    title=message.title,
                    notify_type=apprise.NotifyType(message.severity.value),
                    body_format=apprise.NotifyFormat.TEXT,
                )
            )
        except Exception as error:  # noqa: BLE001 (a hundred plugins, and no sweep may suffer from one)
            said.append(f"{type(error).__name__}: {error}")
            return False

    def _without_secrets(self, text: str) -> str:
        url = str(self._plugin.url(privacy=False)).partition("://")[2]
        parts = {unquote(part) for part in re.split(r"[^\w%.+~-]+", url)} | set(re.split(r"[^\w%]+", url))
        for part in sorted(parts, key=len, reverse=True):
            if len(part) >= _SHORTEST_SECRET and part not in _NO_SECRETS:
                text = text.replace(part, "***")
        return " ".join(text.split())


def default_notify() -> Notify | None:
    """Whom METTA_SWEEP_NOTIFY names for all sweeps that name nobody; None without it."""
    return Notify() if os.environ.get(DEFAULT_CHANNEL[1:]) else None


def open_channels(notify: Notify, folder: Path) -> list[Channel]:
    """The channels that the settings name, ready to be sent to; nothing is sent.

    Args:
        notify: The settings.
        folder: What paths are relative to.

    Raises:
        ConfigError: a variable or file is missing, or holds nothing that Apprise could send to.
        MissingExtraError: Apprise is not installed.
    """
    _silence()
    try:
        import apprise
    except ImportError as error:
        raise MissingExtraError(
            f"notify: {', '.join(notify.names)}: sending messages needs Apprise; "
            'install it with: pip install "metta-sweep[notify]"'
        ) from error
    opened: list[Channel] = []
    for name in notify.names:
        with _overheard():
            plugins = (
                _in_variable(apprise, name)
                if name.startswith("$")
                else _in_file(apprise, name, folder / Path(name).expanduser())
            )
        opened += [Channel(name if k == 1 else f"{name}#{k}", plugin) for k, plugin in enumerate(plugins, start=1)]
    return opened


def _silence() -> None:
    """Keep Apprise from logging, or printing, URLs; what is to be said of a failure is said here."""
    logger = logging.getLogger("apprise")
    logger.propagate = False
    logger.setLevel(logging.WARNING)
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    for name in _LOG_PATHS:
        logging.getLogger(name).addFilter(_is_of_others)


def _in_variable(library: ModuleType, name: str) -> list[Any]:
    value = os.environ.get(name[1:], "").strip()
    if not value:
        raise ConfigError(
            f"notify: the environment variable {name[1:]} is not set; let it hold URLs of Apprise, "
            "or the path of a configuration file of Apprise"
        )
    if "://" not in value:
        return _in_file(library, name, Path(value).expanduser())
    urls = library.Apprise(asset=_asset(library))
    if not urls.add(value):
        raise ConfigError(f"notify: {name} holds a URL that Apprise does not know; it may be misspelt or incomplete")
    return list(urls)


def _in_file(library: ModuleType, name: str, path: Path) -> list[Any]:
    if not path.is_file():
        raise ConfigError(f"notify: {name}: there is no such file; expected a configuration file of Apprise")
    urls = library.Apprise()
    urls.add(library.AppriseConfig(paths=[str(path)], asset=_asset(library)))
    found = list(urls)
    if not found:
        raise ConfigError(f"notify: {name}: Apprise finds no URL that it knows in that file")
    return found


def _asset(library: ModuleType) -> Any:
    """By which Apprise sends in the thread that asks it to: those that it gives up keep a process from its end."""
    try:
        return library.AppriseAsset(service_timeout=0)
    except (AttributeError, TypeError):  # versions that give up nothing
        return library.AppriseAsset()


def check_channels(notify: Notify | None, folder: Path) -> None:
    """Refuse settings by which nobody could be told; as `open_channels`, by METTA_SWEEP_NOTIFY without any."""
    wanted = notify or default_notify()
    if wanted is not None:
        open_channels(wanted, folder)


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


#: Apprise speaks in threads of its own, so who it speaks of is told apart by letting one speak at a time.
_one_at_a_time = threading.Lock()


#: They log what is requested, of which the path may be the password.
_LOG_PATHS = ("urllib3.connectionpool", "requests_oauthlib.oauth1_session", "requests_oauthlib.oauth2_session")
#: Name of the threads that send, also of those that were given up and may still say something.
_SENDER = "metta-sweep-channel"


def _is_of_others(record: logging.LogRecord) -> bool:
    return record.threadName != _SENDER


@contextmanager
def _overheard() -> Iterator[list[str]]:
    """What Apprise says of failures meanwhile, which it says to its logger only."""
    collector = _Collector()
    logger = logging.getLogger("apprise")
    with _one_at_a_time:
        logger.addHandler(collector)
        try:
            yield collector.said
        finally:
            logger.removeHandler(collector)
