"""A hook of mkdocs: pages that are made when the site is built, and a check of what was built. Nothing of the libraries is imported.

The front page is the README; each attack and defense has a page of its docstring, its options and its rows of the committed leaderboards;
each public name has one of its docstrings.
"""

from __future__ import annotations

import ast
import logging
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    import griffe
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
TITLES = {"attack": "Attacks", "defense": "Defenses"}
REQUIRED = "required"
SCHEMA = "gitbench/publish/report/schema.json"
BENCHMARKS = "benchmarks/RESULTS.md"
_LOG = logging.getLogger("mkdocs.plugins.gitbench")  # what it warns of fails a strict build
_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data):(`|<code>)~?")
_PAGE = re.compile(r"\bdocs/([\w-]+\.md)")
_COMMENT = re.compile(r"^(<!--.*-->)\n(?=\S)", re.MULTILINE)
_LINK = re.compile(r"(\]\()([^)\s#:]+)(#[^)\s]*)?\)")
_REMOTE = re.compile(r"""<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=["']?(?:https?:)?//[^"'> ]+""")


# ---------------------------------------------------------------- what there is


@cache
def project() -> dict[str, dict[str, str]]:
    """Kind to the names of its built-in components and where they are."""
    points = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
    return {kind: points[f"gitbench.{kind}s"] for kind in TITLES}


@cache
def public_names() -> dict[str, str]:
    """The names of ``gitbench.__all__`` and the modules that they are from, read from the source."""
    tree = ast.parse((ROOT / "gitbench" / "__init__.py").read_text(encoding="utf-8"))
    (where,) = (ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign) and _is_named(node, "_WHERE"))
    return {**{name: f"gitbench.{module}" for name, module in where.items()}, "__version__": "gitbench._version"}


def _is_named(node: ast.Assign, name: str) -> bool:
    return any(isinstance(target, ast.Name) and target.id == name for target in node.targets)


# ---------------------------------------------------------------- leaderboards


@dataclass(frozen=True)
class Board:
    """A committed leaderboard: its title, and its tables as rows of cells, headings first."""

    file: str
    title: str
    defenses: list[list[str]]
    attacks: list[list[str]]


@cache
def boards() -> list[Board]:
    return [board(path.name, path.read_text(encoding="utf-8")) for path in sorted((ROOT / "leaderboards").glob("*.md"))]


def board(file: str, text: str) -> Board:
    setting = re.search(r"^- Setting: (.*)$", text, flags=re.MULTILINE)
    batch = re.search(r"batch\\?_size (\d+)", setting[1]) if setting else None
    title = text.partition("\n")[0].removeprefix("# ") + (f" · batches of {batch[1]}" if batch and batch[1] != "1" else "")
    return Board(file, title, _table(text, "## Defenses"), _table(text, "## Every attack"))


def _table(text: str, heading: str) -> list[list[str]]:
    """The first table below a heading; its second line is only dashes."""
    lines = text.partition(f"{heading}\n")[2].partition("\n## ")[0].splitlines()
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines if line.startswith("|")]
    return rows[:1] + rows[2:]


def component_of(cell: str) -> str:
    """The name within a cell: ``pruning`` of a ``pruning(rate=0.5)`` in backticks."""
    return cell.strip("`").partition("(")[0]


def rows_of_defense(name: str) -> list[list[str]]:
    found: list[list[str]] = []
    for one in boards():
        head, *rows = one.defenses
        own = [[_link(one), *row] for row in rows if component_of(row[0]) == name]
        if own:
            found = found or [["leaderboard", *head]]
            found += own
    return found


def rows_of_attack(name: str) -> list[list[str]]:
    """A row for each leaderboard and defense: what this attack got."""
    found: list[list[str]] = []
    for one in boards():
        head, *rows = one.attacks
        for column in (number for number, cell in enumerate(head) if component_of(cell) == name):
            found += [[_link(one), row[0], row[column]] for row in rows if row[column]]
    return [["leaderboard", "defense", "psnr_gain in dB, verdict"], *found] if found else []


def _link(one: Board) -> str:
    return f"[{one.title}](../leaderboards/{quote(one.file)})"


def markdown_table(rows: list[list[str]]) -> str:
    head, *rest = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rest))


# ---------------------------------------------------------------- components


@cache
def sources() -> griffe.ModulesCollection:
    """Our packages as griffe reads them."""
    import griffe

    loader = griffe.GriffeLoader(
        search_paths=[ROOT, ROOT / "plugins", ROOT / "defenses"], allow_inspection=False, docstring_parser="google"
    )
    for package in ("gitbench", "gitbench_defenses"):
        loader.load(package)
    return loader.modules_collection


def component(kind: str, name: str) -> griffe.Object | griffe.Alias:
    return sources()[project()[kind][name].replace(":", ".")]


def component_page(kind: str, name: str) -> str:
    """The page of one attack or defense."""
    target = project()[kind][name]
    found = component(kind, name)
    rows = rows_of_attack(name) if kind == "attack" else rows_of_defense(name)
    parts = [f"# {name}", prose(found), "## Options", options_table(kind, found)]
    parts += budgets(found) if kind == "attack" else []
    parts += ["## In the leaderboards", markdown_table(rows) if rows else _unmeasured(kind, name)]
    mentioned = [path for path in DOCS if re.search(rf"`{re.escape(name)}[`(+]", path.read_text(encoding="utf-8"))]
    parts += ["## Where else", "\n".join(f"- [{title_of(path)}](../{path.name})" for path in mentioned)] if mentioned else []
    parts.append(f"Its code: `{target}`.")
    return "\n\n".join(part for part in parts if part) + "\n"


def _unmeasured(kind: str, name: str) -> str:
    control = " --gitbench-defense none" if kind == "defense" else ""
    required = "(...)" if any(row[1] == REQUIRED for row in options_of(kind, component(kind, name))) else ""
    return (
        f"The committed leaderboards, which are those of the built-in matrix, do not have it. To measure it, with your options:\n\n"
        f'```sh\npytest --gitbench{control} --gitbench-{kind} "{name}{required}"\n```'
    )


def title_of(path: Path) -> str:
    return path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def prose(found: griffe.Object | griffe.Alias) -> str:
    """The text of a docstring without its sections."""
    if found.docstring is None:
        return ""
    text = plain("\n\n".join(str(section.value) for section in found.docstring.parsed if section.kind.value == "text"))
    return _PAGE.sub(r"[\1](../\1)", text)


def plain(text: str) -> str:
    """Text without the roles that Sphinx knows."""
    return _ROLE.sub(r"\1", text)


def options_table(kind: str, found: griffe.Object | griffe.Alias) -> str:
    rows = options_of(kind, found)
    return markdown_table([["option", "default", "means"], *rows]) if rows else "None."


def options_of(kind: str, found: griffe.Object | griffe.Alias) -> list[list[str]]:
    """Name, default and meaning of each option."""
    if kind == "attack" and "Options" in found.all_members:
        options = found.all_members["Options"]
        while options.is_attribute:  # Options = GitOptions
            options = sources()[found.resolve(str(options.value))]
        return _fields(options)
    init = found.all_members.get("__init__")
    if init is None or init.path.startswith("builtins."):
        return []
    described = {**_described(init), **_described(found)}
    return [_row(one.name, one.default, described) for one in init.parameters if one.name != "self"]


def _fields(options: griffe.Object | griffe.Alias) -> list[list[str]]:
    """Of a dataclass and its bases, the nearest first."""
    described: dict[str, str] = {}
    rows: dict[str, list[str]] = {}
    for one in (options, *options.mro()):
        described = {**_described(one), **described}
        for name, member in one.members.items():
            if member.is_attribute and "property" not in member.labels and member.annotation is not None and not name.startswith("_"):
                rows.setdefault(name, _row(name, member.value, described))
    return list(rows.values())


def _row(name: str, default: object, described: dict[str, str]) -> list[str]:
    value = REQUIRED if default is None else f"`{default}`"
    return [f"`{name}`", value, described.get(name, "").replace("|", "\\|")]


def _described(found: griffe.Object | griffe.Alias) -> dict[str, str]:
    if found.docstring is None:
        return {}
    sections = [section.value for section in found.docstring.parsed if section.kind.value in ("parameters", "attributes")]
    return {one.name: plain(" ".join(one.description.split())) for section in sections for one in section}


def budgets(found: griffe.Object | griffe.Alias) -> list[str]:
    """The options that a profile sets."""
    member = found.all_members.get("profiles")
    try:
        told = ast.literal_eval(str(member.value)) if member is not None and member.is_attribute else {}
    except ValueError:
        told = {}
    rows = [
        [f"`{profile}`", ", ".join(f"`{name}={value!r}`" for name, value in values.items())] for profile, values in told.items() if values
    ]
    return ["## Budgets", markdown_table([["profile", "sets"], *rows])] if rows else []


# ---------------------------------------------------------------- pages


def copied() -> dict[str, str]:
    """Address within the site to Markdown, of what lies elsewhere in the repository."""
    found = {f"{name.lower()}.md": moved((ROOT / f"{name}.md").read_text(encoding="utf-8")) for name in ("CONTRIBUTING", "CHANGELOG")}
    found["index.md"] = moved((ROOT / "README.md").read_text(encoding="utf-8"))
    found[BENCHMARKS] = (ROOT / BENCHMARKS).read_text(encoding="utf-8")
    for path in sorted((ROOT / "leaderboards").glob("*.md")):
        found[f"leaderboards/{path.name}"] = path.read_text(encoding="utf-8")
    found["leaderboards/index.md"] = (
        "# Committed leaderboards\n\n" + "\n".join(f"- [{one.title}]({quote(one.file)})" for one in boards()) + "\n"
    )
    return found


def generated() -> dict[str, str]:
    """The same, and the pages that are made of the code."""
    found = copied()
    for kind, names in project().items():
        found |= {f"{kind}s/{name}.md": component_page(kind, name) for name in names}
        found[f"{kind}s/index.md"] = _index(kind, names)
    for name, module in public_names().items():
        found[f"api/{name}.md"] = f"# gitbench.{name}\n\n::: {module}.{name}\n"
    found["api/hooks.md"] = "# Hooks\n\n::: pytest_gitbench.hooks\n"
    listed = "\n".join(f"- [`gitbench.{name}`]({name}.md)" for name in public_names())
    found["api/index.md"] = f"# Public names\n\n{listed}\n- [Hooks of the pytest plugin](hooks.md)\n"
    return found


def _index(kind: str, names: Iterable[str]) -> str:
    rows = [[f"[`{name}`]({name}.md)", first_sentence(prose(component(kind, name)))] for name in names]
    return f"# Built-in {kind}s\n\n{markdown_table([[kind, 'is'], *rows])}\n"


def first_sentence(text: str) -> str:
    return re.split(r"(?<=[.!?])\s", " ".join(text.split()))[0].replace("|", "\\|")


def moved(text: str) -> str:
    """The links of a page of the repository's root, as they are within the site."""

    def link(found: re.Match[str]) -> str:
        path = found[2].removeprefix("docs/")
        named = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "leaderboards": "leaderboards/index.md"}
        return f"{found[1]}{named.get(path, path)}{found[3] or ''})"

    return _LINK.sub(link, text)


# ---------------------------------------------------------------- mkdocs


def on_config(config: MkDocsConfig) -> None:
    """Add what is generated to the navigation."""
    names = {kind: [f"{kind}s/index.md", *(f"{kind}s/{name}.md" for name in found)] for kind, found in project().items()}
    config.nav += [
        *({TITLES[kind]: pages} for kind, pages in names.items()),
        {"Leaderboards": ["leaderboards/index.md", *({one.title: f"leaderboards/{one.file}"} for one in boards())]},
        {"Public names": ["api/index.md", *({name: f"api/{name}.md"} for name in public_names()), {"Hooks": "api/hooks.md"}]},
    ]
    next(section for section in config.nav if "Work on it" in section)["Work on it"] += [
        {"Speed": BENCHMARKS},
        "contributing.md",
        "changelog.md",
    ]


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add what is generated to the files."""
    from mkdocs.structure.files import File

    for address, text in generated().items():
        files.append(File.generated(config, address, content=text))
    for path in sorted((ROOT / "leaderboards" / "pictures").iterdir()):
        files.append(File.generated(config, f"leaderboards/pictures/{path.name}", abs_src_path=str(path)))
    files.append(File.generated(config, "schema.json", abs_src_path=str(ROOT / SCHEMA)))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """What a page of docs/ links to outside of it; and a comment is a paragraph of its own, as GitHub has it."""
    return _COMMENT.sub(r"\1\n\n", markdown.replace(f"(../{SCHEMA})", "(schema.json)"))


def on_page_content(html: str, **_: object) -> str:
    return plain(html)


def on_post_build(*, config: MkDocsConfig) -> None:
    """Warn of a name without a page, and of a page that loads anything from elsewhere."""
    site = Path(config.site_dir)
    wanted = [f"api/{name}.html" for name in public_names()]
    wanted += [f"{kind}s/{name}.html" for kind, names in project().items() for name in names]
    for address in wanted:
        if not (site / address).is_file():
            _LOG.warning("no page %s", address)
    for path in sorted(site.rglob("*.html")):
        text = path.read_text(encoding="utf-8")
        for found in _REMOTE.findall(text):
            _LOG.warning("%s loads from elsewhere: %s", path.relative_to(site), found)
