"""Write docs/cli.md: every command of `metta sweep`, executed in a terminal and in a pipe, with what it shows.

    make docs

It trains a sweep of a thousand runs, starts ten more that wait, and tries each command on it. It fails when a command
is missing here, ends with another exit code than it should, gives a traceback, takes too long, is wider than the
terminal, or sends control characters into a pipe. It needs tmux.
"""

from __future__ import annotations

import argparse
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import typer

from _commands import Call, calls
from _sample import Sample
from _terminal import WIDTH, Terminal, faults, pipe
from metta.sweep.cli.main import sweep as sweep_commands

PAGE = Path(__file__).parent.parent / "docs" / "cli.md"
#: Always the same, so that lines break at the same places.
FOLDER = Path(tempfile.gettempdir()) / "digits"
#: Lines shown of what comes out of a pipe.
_MOST_PIPED = 12
_INTRODUCTION = """\
# The commands

Written by `make docs`, which executes each of them in a terminal of 80 columns and in a pipe, on a sweep of
{finished:,} runs that have ended and {running} under way. What they are for is told in
[running.md](running.md), [events.md](events.md) and [analysis.md](analysis.md).
"""


def main() -> int:
    """Write the page; 1 when a command does not behave."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--finished", type=int, default=1000, help="runs that have ended (default: %(default)s)")
    parser.add_argument("--running", type=int, default=10, help="runs under way (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=PAGE, help="the page (default: docs/cli.md)")
    parser.add_argument(
        "--folder", type=Path, default=FOLDER, help="where to work; must not exist (default: %(default)s)"
    )
    parser.add_argument("--only", nargs="+", metavar="COMMAND", help="try these alone, and print instead of writing")
    options = parser.parse_args()
    sample = Sample(options.folder, options.finished, options.running)
    try:
        sections, problems = try_all(sample, options.only)
    finally:
        sample.close()
    commands = all_commands()
    if options.only is None:
        problems += [f"{name}: is not in scripts/_commands.py" for name in commands if name not in sections]
    page = _INTRODUCTION.format(finished=options.finished, running=options.running)
    page += "".join(section(name, command, sections[name]) for name, command in commands.items() if name in sections)
    if options.only is None:
        options.output.write_text(page, encoding="utf-8")
    else:
        sys.stdout.write(page)
    sys.stderr.writelines(f"{problem}\n" for problem in problems)
    return 1 if problems else 0


def all_commands() -> dict[str, Any]:
    """Those of `metta sweep`, in the order of its help."""
    group: Any = typer.main.get_command(sweep_commands)  # of Click, or of Typer's own copy of it
    return dict(group.commands)


def try_all(sample: Sample, only: Sequence[str] | None) -> tuple[dict[str, list[str]], list[str]]:
    """By command, what the page says of each call of it; and what is wrong."""
    sections: dict[str, list[str]] = {}
    problems: list[str] = []
    with closing(Terminal(sample.folder, sample.environment)) as terminal:
        for call in calls(sample):
            if only is None or call.name in only:
                call.before()
                sys.stderr.write(f"$ {call.command}\n")
                block, found = try_one(call, terminal, sample.folder, sample.environment)
                call.after()
                sections.setdefault(call.name, []).append(block)
                problems += [f"{call.command}: {problem}" for problem in found]
    return sections, problems


def try_one(call: Call, terminal: Terminal, folder: Path, environment: Mapping[str, str]) -> tuple[str, list[str]]:
    """What the page says of a call, and what is wrong with it."""
    try:
        shown = terminal.run(call.command, until=call.until, keys=call.keys, shows_end=call.shows_end)
    except TimeoutError as error:
        return "", [str(error)]
    found = faults(shown, code=call.code, most_s=call.most_s, widest=None if call.has_whole_lines else WIDTH)
    note = f"{call.note}\n\n" if call.note else ""
    block = f"{note}```console\n$ {call.command}\n{abridged(shown.text, call.lines)}```\n"
    if call.in_pipe:
        piped = pipe(call.command, folder, environment)
        found += [f"piped: {each}" for each in faults(piped, code=call.code, most_s=call.most_s, widest=None)]
        if call.shows_pipe:
            text = abridged(piped.text, min(call.lines, _MOST_PIPED))
            block += f"\nIn a pipe:\n\n```console\n$ {call.command} | cat\n{text}```\n"
    return block, found


def abridged(text: str, lines: int) -> str:
    """So many lines of it at most, and how many are left out."""
    all_lines = text.rstrip("\n").replace(socket.gethostname(), "node1").splitlines()
    kept = all_lines
    if len(all_lines) > lines:
        left_out = len(all_lines) - lines + 1
        kept = [*all_lines[: lines - 2], f"[... {left_out} lines left out ...]", all_lines[-1]]
    return "".join(f"{line.rstrip()}\n" for line in kept)


def section(name: str, command: Any, blocks: Sequence[str]) -> str:
    """A command's part of the page."""
    purpose = " ".join((command.help or "").split("\n\n")[0].split())
    return "\n".join([f"\n## {name}\n", f"{purpose}\n", f"{command.epilog}\n", *blocks])


if __name__ == "__main__":
    sys.exit(main())
