"""What jobs have printed, as their logs grow."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metta.sweep.observe.logs import LONGEST_LINE, GrowingLog, Lines


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


def test_a_log_that_was_emptied_is_read_from_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"one\ntwo\n")
    log = GrowingLog(path)
    assert b"".join(log.new()) == b"one\ntwo\n"
    path.write_bytes(b"new\n")
    assert b"".join(log.new()) == b"new\n"


def test_what_is_added_while_it_is_read_waits_for_the_next_call(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"x" * 200_000)
    log = GrowingLog(path)
    read = 0
    with path.open("ab") as stream:
        for piece in log.new():
            read += len(piece)
            stream.write(b"y" * 100_000)  # faster than it is read
            stream.flush()
    assert read == 200_000
    assert set(b"".join(log.new())) == set(b"y")


def test_what_is_too_much_is_left_out_up_to_a_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"one\ntwo\nthree\n")
    log = GrowingLog(path)
    assert log.skip(100) == 0
    assert log.skip(8) == len(b"one\ntwo\n")
    assert b"".join(log.new()) == b"three\n"
    assert log.skip(0) == 0


@pytest.mark.parametrize("end", [b"\n", b"", b"\r\n"])
def test_of_a_line_without_end_the_beginning_is_seen_and_kept(end: bytes) -> None:
    made = Lines()
    pieces = [b"x" * 50_000] * 2_000  # a hundred megabytes
    seen = [*made.of([*pieces, end]), *made.rest(), *made.of([b"next\n"])]
    assert seen == ["x" * LONGEST_LINE + " ...", "next"]


def test_a_line_that_is_just_short_enough_is_seen_whole() -> None:
    made = Lines()
    line = "x" * LONGEST_LINE
    assert list(made.of([line.encode(), b"\r", b"\n"])) == [line]
    assert list(made.of([b"y" * 100_000, b"\rshort\n"])) == ["short"]
