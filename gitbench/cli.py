"""The ``gitbench`` command: everything that needs no measurement."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from gitbench._version import __version__
from gitbench.errors import GitbenchError
from gitbench.text import printable


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit status: 0, or 2 for a usage error."""
    parser = argparse.ArgumentParser(prog="gitbench", description="Leaderboards and lists. To measure, run: pytest --gitbench")
    parser.add_argument("--version", action="version", version=f"gitbench {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="show the attacks, defenses, models and datasets that are installed")
    listing.add_argument("kind", nargs="?", choices=("attack", "defense", "model", "dataset"))
    board = commands.add_parser("leaderboard", help="rebuild leaderboards from stored results")
    board.add_argument("results", type=Path, nargs="?", default=Path(".gitbench"), help="results folder (default: %(default)s)")
    board.add_argument("--out", type=Path, default=Path("leaderboards"), help="where the Markdown goes (default: %(default)s)")
    given = parser.parse_args(arguments)
    try:
        lines = _list(given.kind) if given.command == "list" else _leaderboard(given.results, given.out)
    except GitbenchError as error:
        sys.stderr.write(f"gitbench: {printable(str(error))}\n")
        return 2
    sys.stdout.write("".join(f"{printable(line)}\n" for line in lines))
    return 0


def _list(kind: str | None) -> list[str]:
    from gitbench.registry import entry_points
    from gitbench.spec import KINDS

    chosen = [one for one in KINDS if kind in (None, one)]
    return [f"{one:8} {name:16} {where}" for one in chosen for name, where in sorted(entry_points(one).items())]


def _leaderboard(results: Path, out: Path) -> list[str]:
    from gitbench import leaderboard
    from gitbench.errors import StoreError
    from gitbench.store import Store

    found = leaderboard.tables(list(Store(results).results()))
    if not found:
        raise StoreError(f"No finished result in {results / 'cases'}. Measure some first: pytest --gitbench --gitbench-results {results}")
    lines = []
    for table in found:
        path, refused = leaderboard.write(table, out, list(table.results))
        lines.append(f"{path}: not written, {refused}" if refused else f"wrote {path}")
    return lines
