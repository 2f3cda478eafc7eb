"""Shared by the tests of what is observed."""

from __future__ import annotations

from postgresql import postgresql_server, postgresql_url  # noqa: F401 (fixtures)
