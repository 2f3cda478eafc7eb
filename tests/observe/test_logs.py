"""What jobs have printed, as their logs grow."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metta.sweep.observe.logs import GrowingLog, Lines


def test_each_byte_is_read_once(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"one\ntw")
    log = GrowingLog(path)
    assert b"".join(log.new()) == b"one\ntw"
    with path.open("ab") as stream:
        stream.write(b"o\n" + b"x" * 200_000)
    assert b"".join(log.new()) == b"o\n" + b"x" * 200_000
    assert b"".join(log.new()) == b""
    path.unlink()
    with pytest.raises(FileNotFoundError):
        list(log.new())


@pytest.mark.parametrize(("last", "expected"), [(100, b"one\ntwo\nthree\n"), (8, b"three\n"), (1, b""), (None, None)])
def test_of_the_past_whole_lines_are_read(tmp_path: Path, last: int | None, expected: bytes | None) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"one\ntwo\nthree\n")
    log = GrowingLog(path, last=last)
    assert b"".join(log.new()) == (path.read_bytes() if expected is None else expected)
    with path.open("ab") as stream:
        stream.write(b"four\n")
    assert b"".join(log.new()) == b"four\n"


@given(st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]))), st.data())
def test_lines_come_whole_however_they_are_cut(lines: list[str], data: st.DataObject) -> None:
    text = "".join(f"{line}\n" for line in lines).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    pieces = [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    made = Lines()
    assert [*made.of(pieces), *made.rest()] == lines


def test_of_what_is_written_over_itself_the_last_is_seen() -> None:
    made = Lines()
    assert list(made.of([b"plain\r\n", b" 10%\r 20%", b"\r 30%"])) == ["plain"]
    assert list(made.of([b"\r100%\n", b"half"])) == ["100%"]
    assert list(made.rest()) == ["half"]
    assert list(made.rest()) == []
