"""The pages that the documentation site makes by itself; `tox -e docs` builds the whole, strictly."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import gitbench
from doc_blocks import PAGES, read
from gitbench.identity.names import entry_points

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pages_of_the_site", ROOT / "tools" / "pages.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules[spec.name] = found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_every_public_name_and_component_has_a_page(pages: ModuleType) -> None:
    assert set(pages.public_names()) == set(gitbench.__all__)
    for kind in ("attack", "defense"):
        assert pages.project()[kind] == entry_points(kind)


def test_a_component_has_its_own_rows_of_the_committed_leaderboards(pages: ModuleType) -> None:
    head, *rows = pages.rows_of_defense("pruning")
    assert head[:3] == ["leaderboard", "defense", "verdict"]
    boards = {board.file for board in pages.boards()}
    assert len({row[0] for row in rows}) == len(boards)
    assert {row[1] for row in rows} == {f"`pruning(rate={rate})`" for rate in (0.5, 0.9, 0.99)}
    assert len(pages.rows_of_defense("soteria")) == 3  # with its heading: it is on two of them
    assert pages.rows_of_defense("nowhere") == []
    _, *got = pages.rows_of_attack("recursion")
    assert {row[0] for row in got} == {
        f"[photos · {model} · batches of 4](../leaderboards/photos-{model}-batch_size%3D4.md)" for model in ("lenet", "mlp")
    }
    assert {row[1] for row in got} >= {"`none`", "`pruning(rate=0.5)`"}


def test_a_table_is_read_with_its_escapes(pages: ModuleType) -> None:
    text = "# a · b\n\n- Setting: batch\\_size 1\n\n## Defenses\n\n| defense | x |\n|:--|:--|\n| `a(b='\\|')` | 1 |\n\n## Every attack\n"
    found = pages.board("f.md", text)
    assert (found.title, found.defenses, found.attacks) == ("a · b", [["defense", "x"], ["`a(b='\\|')`", "1"]], [])


def test_links_of_the_front_page_lead_within_the_site(pages: ModuleType) -> None:
    moved = pages.moved("[a](docs/a.md#b) [c](CHANGELOG.md) ![d](docs/pictures/d.png) [e](leaderboards) [f](https://f.org/docs/x)")
    assert moved == "[a](a.md#b) [c](changelog.md) ![d](pictures/d.png) [e](leaderboards/index.md) [f](https://f.org/docs/x)"


def test_links_of_pages_from_the_root_lead_to_pages(pages: ModuleType) -> None:
    made = pages.copied()
    there = {*made, *(page.removeprefix("docs/") for page in PAGES)}
    for address in ("index.md", "contributing.md", "changelog.md"):
        links = {link for link in re.findall(r"\]\(([^)\s#]+)", made[address]) if ":" not in link and not link.startswith("pictures/")}
        assert links <= there, (address, sorted(links - there))


def test_every_page_is_in_the_navigation_and_plain_markdown() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    named = [page for section in nav if isinstance(section, dict) for pages in section.values() for page in pages]
    assert sorted(f"docs/{page}" for page in named) == [page for page in PAGES if page.startswith("docs/")]
    for page in PAGES:  # they are read on GitHub too
        assert not re.search(r"^(!!!|\?\?\?|===|:::|\{%)", read(page), flags=re.MULTILINE), page
