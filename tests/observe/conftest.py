"""Shared by the tests of what is observed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from observe.notifications.endpoints import Webhook, webhook
from postgresql import postgresql_server, postgresql_url  # noqa: F401 (fixtures)


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    """A webhook that the variable HOOK leads to."""
    with webhook() as hook:
        monkeypatch.setenv("HOOK", hook.url())
        yield hook
