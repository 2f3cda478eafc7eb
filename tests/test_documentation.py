"""The documents name tests; they must exist."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
#: `tests/FILE.py`, perhaps with `::test_name` or `::TestClass::test_name` behind it.
_REFERENCE = re.compile(r"\b(tests/[\w/.-]+\.py)((?:::\w+)*)")
_DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


@cache
def _names_in(file: Path) -> set[str]:
    return set(re.findall(r"^\s*(?:async def|def|class) (\w+)", file.read_text(), re.MULTILINE))


@pytest.mark.parametrize("document", _DOCUMENTS, ids=lambda document: document.name)
def test_the_tests_that_a_document_names_exist(document: Path) -> None:
    missing = [
        f"{file}{names}"
        for file, names in _REFERENCE.findall(document.read_text())
        if not (ROOT / file).is_file() or not set(names.split("::")[1:]) <= _names_in(ROOT / file)
    ]
    assert missing == []


def test_the_promises_of_reliability_each_name_the_test_that_holds_them() -> None:
    rows = [line for line in (ROOT / "docs/reliability.md").read_text().splitlines() if line.startswith("| ")]
    promises = [row for row in rows if not re.match(r"\| (what|---)", row)]
    assert len(promises) > 20
    assert [row for row in promises if not _REFERENCE.search(row)] == []
