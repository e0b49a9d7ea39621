"""benchmarks/speed, tiny and without the other implementation: that it runs, and that what it times is what it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gitbench.clients.data import Data
from helpers import make_data, write_npz

HERE = Path(__file__).parents[1]


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = HERE / "benchmarks" / "speed"
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.mark.slow
def test_a_tiny_run_writes_a_table(tmp_path: Path) -> None:
    output = tmp_path / "RESULTS.md"
    tiny = ["--alone", "--threads", "1", "--rounds", "2", "--seconds", "0.01", "--networks", "lenet", "--victims", "1", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.speed", *tiny, "--output", str(output)], cwd=HERE, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = [line for line in output.read_text().splitlines() if line.startswith("| `lenet`")]
    assert [row.split("|")[2].strip() for row in rows] == ["1", "2"]
    assert "python -m benchmarks.speed --alone" in output.read_text()


def test_the_networks_are_those_that_the_table_names(speed: Path) -> None:
    import networks

    import gitbench

    data: Data = make_data(size=networks.SIDE, public=8, private=2, classes=networks.CLASSES)
    built = gitbench.load_model("lenet(layers=4)", data)
    copied = networks.network("lenet")
    with torch.no_grad():
        for mine, other in zip(built.parameters(), copied.parameters(), strict=True):
            mine.copy_(other)
        torch.testing.assert_close(built(data.private.inputs), copied(data.private.inputs))
    assert networks.products(copied) == 4 * 230400 + 7680
    assert sum(parameter.numel() for parameter in networks.network("convnet").parameters()) == 733642  # as in breaching 0.1.2


def test_the_search_lowers_the_distance_that_it_is_timed_at(speed: Path) -> None:
    import worker

    first, last = (worker.gitbench_run("lenet", 2, iterations)[1][1:] for iterations in (1, 40))
    assert all(after < before / 2 for before, after in zip(first, last, strict=True))


def test_what_an_attack_learns_and_sees_is_timed_and_scored(speed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HERE))
    import worker

    from benchmarks.speed import quality

    data = write_npz(tmp_path / "data.npz", make_data(size=32, public=120, private=4, classes=10))
    images = quality._victims(data, 3, tmp_path / "victims.npz")
    found = worker.gitbench_quality({"attack": "ridge(limit=100)", "images": str(images), "public": str(data)})
    assert len(found["psnr"]) == 3
    assert found["seconds"] > 0
    assert min(found["psnr"]) > 10
    table = quality._table([quality.Row("ridge", None, 1.25, [30.0, 9.0]), quality.Row("theirs", 6000, 9.0, [25.0])], 20)
    assert [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]] == [
        ["`ridge`", "", "1.2", "19.5", "9.0", "no"],
        ["`theirs`", "6,000", "9.0", "25.0", "25.0", "yes"],
    ]
