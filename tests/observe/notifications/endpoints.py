"""Servers that take messages: a webhook over HTTP and a mailbox over SMTP, on ports of this machine."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email import message_from_bytes, policy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


class Webhook:
    """An HTTP server that remembers what was posted to it; it can be down, and come back on the same port.

    Args:
        on_message: Called with each message before it is answered.
    """

    def __init__(self, on_message: Callable[[dict[str, Any]], object] = lambda _: None) -> None:
        self.port = free_port()
        self.received: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.status = 200
        self.on_message = on_message
        self._server: ThreadingHTTPServer | None = None

    def url(self, path: str = "") -> str:
        return f"json://localhost:{self.port}/{path}"

    @property
    def titles(self) -> list[str]:
        return [message["title"] for message in self.received]

    @property
    def bodies(self) -> list[str]:
        return [message["message"] for message in self.received]

    def up(self) -> None:
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                hook.on_message(message)
                if hook.status < 300:
                    hook.paths.append(self.path)
                    hook.received.append(message)
                self.send_response(hook.status)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def down(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


@contextmanager
def webhook() -> Iterator[Webhook]:
    hook = Webhook()
    hook.up()
    try:
        yield hook
    finally:
        hook.down()


class Mailbox:
    """An SMTP server that keeps what it is sent."""

    def __init__(self) -> None:
        self.port = free_port()
        self.mails: list[Any] = []

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:
        self.mails.append(message_from_bytes(envelope.content, policy=policy.default))
        return "250 OK"

    @property
    def url(self) -> str:
        return f"mailto://localhost:{self.port}?from=sweeps@example.org&to=me@example.org&mode=insecure"


@contextmanager
def mailbox() -> Iterator[Mailbox]:
    from aiosmtpd.controller import Controller

    box = Mailbox()
    controller = Controller(box, hostname="127.0.0.1", port=box.port)
    controller.start()
    try:
        yield box
    finally:
        controller.stop()
