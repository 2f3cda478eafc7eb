"""Where a store is, as users write it: nothing that may hold a password is shown or taken for a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from metta.sweep.errors import ConfigError
from metta.sweep.stores import display_url, open_reader, open_store, sqlite_path


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql+psycopg://me:secret@host/db", "postgresql+psycopg://me:***@host/db"),
        ("a.b-c+d://me:secret@host/db", "a.b-c+d://me:***@host/db"),
        ("postgresql+psycopg://host/db?password=secret", "postgresql+psycopg://host/db?password=***"),
        ("host=h dbname=d password=secret", "host=h dbname=d password=***"),
        ("host=h PASSWORD = 'my secret' dbname=d", "host=h PASSWORD =***"),
        ("postgresql:me:secret@host/db", "postgres***"),
        ("sweeps.db", "sweeps.db"),
        ("/data/me:you@home/sweeps.db", "/data/me:you@home/sweeps.db"),
    ],
)
def test_no_password_is_shown(url: str, shown: str) -> None:
    assert display_url(url) == shown


@pytest.mark.parametrize(
    "url",
    [
        "host=h dbname=d password=secret",
        "host=h password = 'secret'",
        "dbname=d\npassword=secret",
        "postgresql:me:secret@host/db",
        "postgresql:/me:secret@host/db",
        "postgres:secret@host",
        "POSTGRESQL//me:secret@host/db",
    ],
)
def test_what_looks_like_a_server_but_is_no_url_is_no_file_either(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for use in (open_reader, open_store, sqlite_path, lambda url: open_store(url, create=True)):
        with pytest.raises(ConfigError, match=r"no URL; use postgresql://USER@HOST/DATABASE, or sqlite:///") as caught:
            use(url)
        assert "secret" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_an_unknown_scheme_is_refused_without_the_password() -> None:
    with pytest.raises(ConfigError, match=r"scheme 'postgresql\+psycopg' of .* is not known") as caught:
        open_reader("postgresql+psycopg://me:secret@host/db")
    assert "secret" not in str(caught.value)


def test_a_file_may_be_called_anything_in_a_url_or_behind_a_folder() -> None:
    assert sqlite_path("sqlite:///postgres.db") == Path("postgres.db").absolute()
    assert sqlite_path("./postgres.db") == Path("postgres.db").absolute()
