"""The ``gitbench`` command: everything that attacks nothing."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from gitbench._version import __version__
from gitbench.core.errors import GitbenchError
from gitbench.core.spec import Kind
from gitbench.core.text import printable
from gitbench.publish.cycles import without_cycle_search
from gitbench.publish.scaffold import scaffold

if TYPE_CHECKING:
    from gitbench.publish.baseline import Record

_Command = Callable[[str, Callable[[argparse.Namespace], Iterable[str]], str], argparse.ArgumentParser]
"""Adds a command: its name, what it does, and that in words."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit status: 0, 1 for a regression, or 2 for a usage error."""
    given = _parser().parse_args(arguments)
    try:
        status, lines = given.run(given)
    except GitbenchError as error:
        sys.stderr.write(f"gitbench: {printable(str(error))}\n")
        return 2
    try:
        sys.stdout.write("".join(f"{line}\n" for line in lines))
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads it has read enough, as `head` has: at the exit Python would write what is left again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return int(status)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gitbench", description="A first defense, leaderboards, comparisons, submissions, lists. To measure, run: pytest --gitbench"
    )
    parser.add_argument("--version", action="version", version=f"gitbench {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], Iterable[str]], what: str) -> argparse.ArgumentParser:
        found = commands.add_parser(name, help=what)
        found.set_defaults(run=lambda given: (0, [printable(line) for line in run(given)]))
        return found

    for add in (_add_first_steps, _add_tables, _add_suites, _add_submissions, _add_comparisons):
        add(command)
    return parser


def _add_first_steps(command: _Command) -> None:
    start = command(
        "init",
        lambda given: scaffold(given.folder, kind=given.kind),
        "write a first defense, its test and [tool.gitbench]; overwrites nothing",
    )
    start.add_argument("folder", metavar="DIR", type=Path, nargs="?", default=Path(), help="where to (default: this folder)")
    start.add_argument("--text", dest="kind", action="store_const", const="text", default="image", help="for models of text, not of images")
    listing = command(
        "list", lambda given: _list(given.kind), "show the attacks, defenses, models, datasets and metrics that are installed"
    )
    listing.add_argument("kind", nargs="?", choices=get_args(Kind))
    doubts = command("flags", lambda given: _flags(given.names), "explain the flags that stand beside a verdict")
    doubts.add_argument("names", metavar="NAME", nargs="*", help="which (default: all)")


def _add_tables(command: _Command) -> None:
    board = command("leaderboard", lambda _: (), "rebuild leaderboards from stored results, or check committed ones")
    board.set_defaults(run=lambda given: _leaderboard(given.results, given.out, given.entries, check=given.check))
    board.add_argument("results", type=Path, nargs="?", default=Path(".gitbench"), help="results folder (default: %(default)s)")
    board.add_argument("--out", type=Path, default=Path("leaderboards"), help="where the Markdown goes (default: %(default)s)")
    board.add_argument(
        "--entries", type=Path, action="append", default=[], metavar="PATH", help="results of others: a JSON file, or a folder; repeatable"
    )
    board.add_argument(
        "--check",
        action="store_true",
        help="write nothing; exit status 1 where a table or picture in --out does not follow from the results (docs/leaderboards.md)",
    )
    page = command(
        "report",
        _report,
        "one self-contained HTML page of stored results",
    )
    page.add_argument("results", type=Path, nargs="?", default=Path(".gitbench"), help="results folder (default: %(default)s)")
    page.add_argument("--out", type=Path, metavar="DIR", help="where index.html goes (default: gitbench-report; none with --sarif alone)")
    page.add_argument(
        "--redact",
        action=argparse.BooleanOptionalAction,
        help="leave out pictures of private images, and what was made of them (default: of all but the built-in photos)",
    )
    page.add_argument("--json", action="store_true", help="print the data as JSON instead (docs/report.md has the schema)")
    page.add_argument("--sarif", type=Path, metavar="FILE", help="write the leaks as SARIF 2.1.0, for code scanning (docs/ci.md)")
    ranks = command(
        "inspect",
        lambda given: _inspect(given.model, given.dataset, given.seed, as_json=given.json),
        "how much of each layer's input its gradient determines",
    )
    ranks.add_argument("model", help="SPEC of the model")
    ranks.add_argument("--dataset", default="photos", help="SPEC of the dataset that it is built for (default: %(default)s)")
    ranks.add_argument("--seed", type=int, default=0, help="of the weights (default: %(default)s)")
    ranks.add_argument("--json", action="store_true", help="as JSON")


def _add_suites(command: _Command) -> None:
    suite = command("suite", lambda _: (), "list the published tables, or rebuild the table of one from stored results")
    suite.set_defaults(run=lambda given: _suite(given.name, given.results, given.out, check=given.check))
    suite.add_argument("name", metavar="NAME", nargs="?", help="of a suite, or PATH.toml (default: list them)")
    suite.add_argument("--results", type=Path, default=Path(".gitbench"), help="results folder (default: %(default)s)")
    suite.add_argument("--out", type=Path, default=Path("leaderboards"), help="the Markdown goes into its suites/ (default: %(default)s)")
    suite.add_argument(
        "--check", action="store_true", help="write nothing; exit status 1 where the committed table does not follow from the results"
    )


def _add_submissions(command: _Command) -> None:
    looking = command(
        "observe",
        lambda given: _observe(given.claim, given.out),
        "write what the attacker of a case sees, for an attack of your own",
    )
    looking.add_argument("claim", type=Path, help="JSON file that names the case (docs/entries.md)")
    looking.add_argument("--out", type=Path, default=Path("observation.safetensors"), help="the file (default: %(default)s)")
    scoring = command(
        "score", lambda given: _score(given.claim, given.results), "score reconstructions that were made elsewhere, and keep the result"
    )
    scoring.add_argument("claim", type=Path, help="JSON file beside them that names their case (docs/entries.md)")
    scoring.add_argument("--results", type=Path, default=Path(".gitbench"), help="results folder (default: %(default)s)")


def _add_comparisons(command: _Command) -> None:
    base = command(
        "baseline",
        lambda given: _baseline(given.results, given.out),
        "write the one file for committing that --gitbench-baseline compares with",
    )
    base.add_argument("results", type=Path, nargs="?", default=Path(".gitbench"), help="results folder (default: %(default)s)")
    base.add_argument("--out", type=Path, default=Path("gitbench-baseline.json"), help="the file (default: %(default)s)")
    comparing = command("compare", lambda _: (), "compare two runs, as Markdown; exit status 1 where one leaks more or has no match")
    comparing.set_defaults(run=lambda given: _compare(given.before, given.after, given.tolerance))
    comparing.add_argument("before", type=Path, help="results folder, or file of gitbench baseline")
    comparing.add_argument("after", type=Path, help="the same of the later run")
    comparing.add_argument("--tolerance", type=float, default=0.5, help="how much worse is accepted, in dB (default: %(default)s)")


def _list(kind: str | None) -> list[str]:
    from gitbench.identity.names import entry_points

    chosen = [one for one in get_args(Kind) if kind in (None, one)]
    return [f"{one:8} {name:16} {where}" for one in chosen for name, where in sorted(entry_points(one).items())]


@without_cycle_search()
def _leaderboard(results: Path, out: Path, entries: Sequence[Path], *, check: bool) -> tuple[int, list[str]]:
    from gitbench.core.errors import StoreError
    from gitbench.publish import leaderboard
    from gitbench.publish.board_check import differences, read_strictly
    from gitbench.publish.entries import check_victims, read_entries
    from gitbench.publish.table import tables
    from gitbench.store.folder import Store

    own, others = read_strictly(results) if check else list(Store(results).results()), read_entries(entries)
    check_victims(others, own)
    found = tables(own, others)
    if not found:
        raise StoreError(f"No finished result in {results / 'cases'}. Measure some first: pytest --gitbench --gitbench-results {results}")
    if check:
        again = shlex.join(["gitbench", "leaderboard", str(results), "--out", str(out), *(f"--entries={path}" for path in entries)])
        return _checked(differences(found, out), len(found), again)
    lines = []
    for table in found:
        path, refused = leaderboard.write(table, out, list(table.results))
        lines.append(f"{path}: not written, {refused}" if refused else f"wrote {path}")
    return 0, [printable(line) for line in lines]


@without_cycle_search()
def _suite(name: str | None, results: Path, out: Path, *, check: bool) -> tuple[int, list[str]]:
    from gitbench.publish import suite_rebuild

    if name is None:
        return 0, [printable(line) for line in suite_rebuild.listed()]
    told, differ = suite_rebuild.checked(name, results, out) if check else (suite_rebuild.rebuilt(name, results, out), False)
    return int(differ), [printable(line) for line in told]


def _checked(differ: Sequence[str], count: int, again: str) -> tuple[int, list[str]]:
    if not differ:
        return 0, [f"{count} leaderboard{'s' if count > 1 else ''} and their pictures follow from the results"]
    told = [
        "",
        f"Write them again, look at what changed, and commit tables, pictures and results together: {again}",
        "If the tables are right, commit the results that they were made of.",
    ]
    return 1, [printable(line) for line in (*differ, *told)]


@without_cycle_search()
def _report(given: argparse.Namespace) -> list[str]:
    from gitbench.publish.report.build import report_of_results
    from gitbench.publish.report.sarif import repository_of, sarif_text
    from gitbench.store.folder import Store, write_atomic

    found = report_of_results(given.results, redact=given.redact)
    told = [found.data.sentence]
    if given.sarif:
        specs = {result.case_id: result.case.defense for result in Store(given.results).results()}
        write_atomic(given.sarif, sarif_text(found.data, specs, root=repository_of(Path())).encode())
        told.append(f"wrote {given.sarif}")
    if given.json:
        return [found.data.to_json()]
    if given.sarif and not given.out:
        return told
    path = found.write(given.out or Path("gitbench-report"))
    hidden = sum(setting.redacted for setting in found.data.settings)
    if hidden and not given.redact:
        told.append(f"pictures of {hidden} settings are left out: their images are private. --no-redact shows them.")
    return [*told, f"wrote {path}. Open it in a browser: it needs no server and no network."]


def _inspect(model: str, dataset: str, seed: int, *, as_json: bool) -> list[str]:
    import json

    from gitbench.clients.data import load_dataset
    from gitbench.clients.model import load_model
    from gitbench.publish.inspection import inspect_model, table

    public = (data := load_dataset(dataset)).public
    layers = inspect_model(load_model(model, data, seed=seed), public.inputs[:1], public.labels[:1])
    if as_json:
        found = {"model": model, "dataset": dataset, "seed": seed, "layers": [layer.to_dict() for layer in layers]}
        return json.dumps(found, indent=1).splitlines()
    return [*table(layers).splitlines(), "", "docs/inspect.md explains the columns. The example is the first public image."]


def _observe(claim: Path, out: Path) -> list[str]:
    from gitbench.publish.submission import write_observation

    granted = ", ".join(sorted(write_observation(claim, out).granted))
    return [f"wrote {out}: the update, and what else the threat model grants ({granted}; docs/entries.md)"]


def _score(claim: Path, results: Path) -> list[str]:
    from gitbench.publish.submission import score_submission
    from gitbench.store.folder import Store

    store = Store(results)
    found = score_submission(claim, store=store)
    return [
        f"{found.case.cell}: {found.verdict}: {found.verdict_reason}",
        f"wrote {store.case_path(found.case_id)}. gitbench leaderboard {results} shows it, as made by others",
    ]


def _flags(names: Sequence[str]) -> list[str]:
    from gitbench.core.errors import ConfigError, nearest
    from gitbench.judge.flags import FLAGS

    unknown = next((name for name in names if name not in FLAGS), None)
    if unknown is not None:
        raise ConfigError(f"Unknown flag {unknown!r}.{nearest(unknown, FLAGS)}")
    lines: list[str] = []
    for flag in (FLAGS[name] for name in names or FLAGS):
        ends = ". A cell with this flag does not hold." if flag.blocks else "."
        lines += [flag.name, f"  raised if   {flag.raised}.", f"  why         {flag.why}.", f"  what to do  {flag.what_to_do}{ends}", ""]
    return lines[:-1]


@without_cycle_search()
def _baseline(results: Path, out: Path) -> list[str]:
    from gitbench.publish.baseline import dump, load_baseline
    from gitbench.store.folder import write_atomic

    cells = load_baseline(results, errors=True)
    broken = [f"not in it, because it ended in an error: {key}" for key, seeds in cells.items() if _has_error(seeds)]
    kept = {key: seeds for key, seeds in cells.items() if not _has_error(seeds)}
    write_atomic(out, dump(kept).encode())
    return [*broken, f"wrote {out}: {len(kept)} cells. Commit it, and run: pytest --gitbench --gitbench-baseline {out}"]


def _has_error(seeds: Mapping[int, Record]) -> bool:
    return any(record.verdict == "error" for record in seeds.values())


@without_cycle_search()
def _compare(before: Path, after: Path, tolerance: float) -> tuple[int, list[str]]:
    from gitbench.core.errors import ConfigError
    from gitbench.publish.baseline import load_baseline
    from gitbench.publish.comment import markdown
    from gitbench.publish.comparison import compare, tolerances

    if not 0 <= tolerance < float("inf"):
        raise ConfigError(f"Expected a tolerance of zero or more dB, got {tolerance}.")
    if before.resolve() == after.resolve():
        raise ConfigError(f"Expected two runs to compare, got {before} twice.")
    found = compare(load_baseline(before), load_baseline(after, errors=True), tolerance=tolerances(tolerance))
    return int(found.failed), markdown(found).splitlines()
