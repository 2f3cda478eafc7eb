"""Every store keeps the contract of all stores."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from metta.sweep.protocols import Store
from metta.sweep.stores import open_store
from metta.sweep.testing import StoreContract


class TestSqliteStore(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Store]:
        with closing(open_store(f"sqlite:///{tmp_path}/sweeps.db", create=True)) as store:
            yield store

    def reopen(self, store: Store) -> Store:
        return open_store(store.url)


class TestPostgresqlStore(StoreContract):
    @pytest.fixture
    def store(self, postgresql_url: str) -> Iterator[Store]:
        with closing(open_store(postgresql_url, create=True)) as store:
            yield store

    def reopen(self, store: Store) -> Store:
        return open_store(store.url)
