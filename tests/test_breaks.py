"""The pairs of benchmarks/breaks.py: every SPEC can be read, and the table says what was measured."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import gitbench
from gitbench.attacker.attack import load_attack
from gitbench.clients.defense import load_defense
from gitbench.clients.procedure import load_client
from results import result

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "breaks.py"


@pytest.fixture(scope="module")
def breaks() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("breaks", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["breaks"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["breaks"]


def test_every_pair_can_be_built_and_differs(breaks: ModuleType) -> None:
    assert len(breaks.BREAKS) >= 10
    for one in breaks.BREAKS:
        load_defense(one.defense), load_client(one.client)
        fooled, adaptive = (load_attack(attack, profile="quick") for attack in (one.fooled, one.adaptive))
        assert (repr(fooled), one.rounds[0]) != (repr(adaptive), one.rounds[1])


@pytest.mark.parametrize(("gains", "said"), [((0.0, 4.0), "+4.0 [4.0, 4.0] |"), ((0.0, 1.0), "+1.0 [1.0, 1.0], not shown |")])
def test_a_row_is_paired_over_victims(
    breaks: ModuleType, gains: tuple[float, float], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {"ridge(adapt=False)": gains[0], "ridge": gains[1]}
    monkeypatch.setattr(gitbench, "evaluate", lambda *, attack, **_: result([victim + values[attack] for victim in range(8)]))
    breaks.main(["--only", "clipping(max_norm=1.0)"])
    assert said in capsys.readouterr().out


def test_an_error_is_no_figure(breaks: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gitbench, "evaluate", lambda **_: result(error="it broke"))
    breaks.main(["--only", "clipping(max_norm=1.0)"])
    told = capsys.readouterr().out
    assert "error: it broke" in told
    assert "unknown" in told
