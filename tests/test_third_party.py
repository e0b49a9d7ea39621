"""A package of somebody else's, built and installed as such, adds all kinds of components and a column without touching gitbench."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "third_party" / "gitbench_example"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of a process that finds the package: its wheel installed in a folder of its own, with its entry points."""
    folder = tmp_path_factory.mktemp("third_party")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    commands = (
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder), str(SOURCE)],
        [
            *pip,
            "install",
            "--no-deps",
            "--no-index",
            "--target",
            str(folder / "site"),
            str(folder / "gitbench_example-0.1.0-py3-none-any.whl"),
        ],
    )
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert (folder / "site" / "gitbench_example-0.1.0.dist-info" / "entry_points.txt").is_file()
    path = os.pathsep.join(filter(None, [str(folder / "site"), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "COLUMNS": "200"}


def run(environment: dict[str, str], folder: Path, *command: str) -> str:
    done = subprocess.run([sys.executable, "-m", *command], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_kind_and_a_column_are_added(environment: dict[str, str], tmp_path: Path) -> None:
    axes = (
        "attack=first_rows",
        "attack=ridge",
        "defense=none",
        "defense=signs(scale=0.1)",
        "model=softmax",
        "dataset=stripes",
        "client=halves",
    )
    options = (*axes, "threshold=close=50", "victims=12")
    told = run(environment, tmp_path, "pytest", "--gitbench", *(f"--gitbench-{option}" for option in options))
    rows = {line.split("  ")[0]: line for line in told.splitlines() if not line.startswith("[")}
    assert rows["none"].endswith("24 of 24")  # both attacks are exact
    assert "ok leaks 100.0 % [100.0, 100.0]" in rows["none"]
    assert "ok holds" in rows["signs(scale=0.1)"]
    assert rows["signs(scale=0.1)"].endswith("0 of 24")
    assert "close: share of the pixels within 0.1 of the truth, mean [95 % interval]" in told
    (board,) = (tmp_path / "leaderboards").glob("*.md")
    assert "A cell leaks past close ↑ 50 %" in board.read_text()
    assert [
        line.split("|")[-2].strip()
        for line in board.read_text().partition("## Every attack")[2].partition("## Flags")[0].splitlines()
        if line.startswith(("| `none`", "| `signs"))
    ] == [
        "0 of 24",
        "24 of 24",
    ]


def test_it_is_listed(environment: dict[str, str]) -> None:
    code = "from gitbench.cli import main; main(['list'])"
    listed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout
    for kind, name, where in (
        ("attack", "first_rows", "first_rows:FirstRows"),
        ("defense", "signs", "signs:Signs"),
        ("model", "softmax", "softmax:Softmax"),
        ("dataset", "stripes", "stripes:Stripes"),
        ("client", "halves", "halves:Halves"),
        ("metric", "close", "close:Close"),
    ):
        assert [kind, name, f"gitbench_example.{where}"] in [line.split() for line in listed.splitlines()]


def test_its_suite_is_found_by_the_folder_that_its_entry_point_names(environment: dict[str, str], tmp_path: Path) -> None:
    told = run(environment, tmp_path, "pytest", "--gitbench", "--gitbench-suite=example-table1", "--gitbench-dataset=stripes")
    lines = [line.split() for line in told.splitlines()]
    assert ["First", "rows", "close", "%", "↑", "99.50", "100.00", "[100.00,", "100.00]", "+0.50"] in lines
    assert (tmp_path / "leaderboards" / "suites" / "example-table1.md").is_file()
