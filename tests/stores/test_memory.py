"""The store that is forgotten with its process keeps the contract of all stores, as far as one process can tell."""

from __future__ import annotations

import pytest

from metta.sweep.protocols import Store
from metta.sweep.stores import sqlite_path
from metta.sweep.stores.memory import MemoryStore
from metta.sweep.testing import StoreContract


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def store(self) -> Store:
        return MemoryStore()

    def reopen(self, store: Store) -> Store:
        return store


def test_its_address_is_that_of_no_file() -> None:
    assert sqlite_path(MemoryStore.url) is None
