"""Reports: complete, in one file, and harmless whatever names say."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from analysis.runs import metadata, run, runs_of
from metta.sweep.analysis.summary import analyse
from metta.sweep.display.report import html, markdown
from metta.sweep.display.views import number
from metta.sweep.model.fidelity import Fidelity
from metta.sweep.model.run import JobStatus

RUNS = [
    *runs_of(lambda config: config["momentum"], 30),
    run(30, status=JobStatus.FAILED, failure_reasons=("train failed: <b>boom</b> | & more",)),
]


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_from_elsewhere() -> None:
    sweep = metadata(name="<script>alert(1)</script>", fidelity=Fidelity(maximum=9))
    page = html(sweep, RUNS, analyse(sweep, RUNS), {})
    tags = _Tags()
    tags.feed(page)
    assert tags.open == []
    assert not [attributes for _, attributes in tags.seen if "src" in attributes or "href" in attributes]
    assert "<script>alert(1)" not in page
    assert "&lt;b&gt;boom&lt;/b&gt;" in page
    # Those of eight figures, and the script of Plotly itself.
    assert page.count("Plotly.newPlot(") >= 8


def test_markdown_has_the_sections_and_their_rows() -> None:
    sweep = metadata()
    found = analyse(sweep, RUNS)
    text = markdown(sweep, found)
    titles = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert titles == ["Best runs", "Importance", "Convergence", "Failures", "Bottlenecks", "Cost"]
    for best in found.best:
        assert f"| {best.run_id} | {number(best.score)} |" in text
    assert "\\<b\\>boom\\</b\\> \\| & more" in text
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("| ")}
    assert max(widths) == 3 + 5 + 1


def test_a_sweep_without_runs_makes_reports_too() -> None:
    sweep = metadata()
    found = analyse(sweep, [])
    assert "No completed run yet." in html(sweep, [], found)
    assert "No completed run yet." in markdown(sweep, found)
