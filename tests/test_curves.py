"""Curves from a handful of results with made-up numbers: what stands where, and that no folder of this machine is shown."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

from gitbench.judge.statistics import interval
from gitbench.store.folder import Store
from gitbench.store.result import Result
from results import LEAKING, SAFE, result

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "curves.py"


@pytest.fixture(scope="module")
def curves() -> ModuleType:
    spec = importlib.util.spec_from_file_location("curves", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["curves"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    del sys.modules["curves"]
    return module


def trained() -> list[Result]:
    dataset = "npz(path='/home/someone/images.npz')"
    return [
        result(LEAKING, dataset=dataset, model="lenet", attack="git"),
        result(SAFE, dataset=dataset, model="lenet(trained_epochs=10)", attack="git"),
        result(LEAKING, dataset=dataset, model="lenet(trained_epochs=2)", attack="git"),
        result(error="boom", dataset=dataset, model="lenet(trained_epochs=2)", attack="ig"),
        result(LEAKING, dataset=dataset, model="resnet(trained_epochs=1, mode='train')", attack="git"),
        result(LEAKING, dataset=dataset, model="resnet(mode='train')", attack="git"),
        result(LEAKING, dataset=dataset, model="mlp", attack="git"),  # alone: no curve
    ]


def test_epochs_of_training_are_read_from_the_typed_case(curves: ModuleType) -> None:
    panels = curves.panels_of(trained(), curves.AXES["trained_epochs"])
    found = {panel.setting["model"]: panel for panel in panels}
    assert sorted(found) == ["lenet", "resnet(mode='train')"]
    assert found["lenet"].places == [0, 2, 10]
    assert [found["lenet"].curves["git"][place].word for place in (0, 2, 10)] == ["leaks", "leaks", "no control"]
    text = curves.markdown(panels, curves.AXES["trained_epochs"])
    assert "someone" not in text
    rows = [line for line in text.splitlines() if line.startswith("| `lenet`")]
    assert [row.split(" | ")[1] for row in rows] == ["0", "2", "10", "0 → 10"]
    assert rows[2].startswith("| `lenet` | 10 | +0.5 [")
    assert rows[2].endswith(", no control |  |")
    assert rows[1].endswith("| error |")
    # Paired over victims: the difference of the same images, and nothing of an attack that lacks an end.
    lost = interval([[after - before for before, after in zip(LEAKING, SAFE, strict=True)]])
    assert rows[3] == f"| `lenet` | 0 → 10 | {lost.mean:+.1f} [{lost.low:.1f}, {lost.high:.1f}] |  |"


def test_steps_and_batch_sizes(curves: ModuleType) -> None:
    clients = ("fedsgd", "fedavg", "fedavg(steps=20)", "secure_aggregation(client='fedavg(lr=0.01)')")
    clients = (*clients, "secure_aggregation(client='fedavg(steps=2, lr=0.01)')")
    panels = curves.panels_of([result(client=client) for client in clients], curves.AXES["steps"])
    # What no step is taken of is not on the axis; what is not typed is the client's default.
    places = {panel.setting["client"]: panel.places for panel in panels}
    assert places == {"fedavg": [5, 20], "secure_aggregation(client='fedavg(lr=0.01)')": [2, 5]}
    panels = curves.panels_of([result(batch_size=size) for size in (8, 1, 32)], curves.AXES["batch_size"])
    assert [panel.places for panel in panels] == [[1, 8, 32]]
    assert "→" not in curves.markdown(panels, curves.AXES["batch_size"])  # other images at each place: no pairs


def test_rounds_are_of_the_same_victims(curves: ModuleType) -> None:
    found = [result(SAFE), result(LEAKING, rounds=16), result(SAFE, rounds=4), result(SAFE, model="mlp", batch_size=2)]
    panels = curves.panels_of(found, curves.AXES["rounds"])
    assert [panel.places for panel in panels] == [[1, 4, 16]]
    text = curves.markdown(panels, curves.AXES["rounds"])
    gained = interval([[after - before for before, after in zip(SAFE, LEAKING, strict=True)]])
    assert text.splitlines()[-1] == f"| `lenet` | 1 → 16 | {gained.mean:+.1f} [{gained.low:.1f}, {gained.high:.1f}] |"
    # On another axis they tell panels apart.
    several = [result(batch_size=size, rounds=rounds) for size in (1, 8) for rounds in (1, 4)]
    panels = curves.panels_of(several, curves.AXES["batch_size"])
    assert curves.differing(panels) == ["model", "rounds"]
    assert [panel.setting["rounds"] for panel in panels] == ["1", "4"]


def test_a_folder_without_curves_is_refused(curves: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="Expected what a run kept"):
        curves.main([str(tmp_path)])
    Store(tmp_path).save(result())
    with pytest.raises(SystemExit, match="two or more values of batch size"):
        curves.main([str(tmp_path), "--axis", "batch_size"])


def test_pictures_are_drawn_and_equal_results_give_equal_files(
    curves: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    for one in trained():
        Store(tmp_path / ".gitbench").save(one)
    for name in ("first", "second"):
        curves.main([str(tmp_path), "--out", str(tmp_path / "pictures" / name)])
    assert "| `lenet` | 10 |" in capsys.readouterr().out
    first, second = ((tmp_path / "pictures" / name).with_suffix for name in ("first", "second"))
    for suffix in (".svg", ".png"):
        assert first(suffix).read_bytes() == second(suffix).read_bytes()
    assert first(".png").read_bytes().startswith(b"\x89PNG")
    texts = {element.text for element in ElementTree.fromstring(first(".svg").read_text()).iter() if element.tag.endswith("text")}
    assert {
        "lenet",
        "resnet(mode='train')",
        "git",
        "epochs of training",
        "psnr_gain in dB",
        "leaks past 3 dB",
        "hollow: no control",
    } <= texts
