"""Flags: when each is raised, that it is documented, and that it reaches the reader."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gitbench.attacker.tools.optimisation import Falling
from gitbench.cli import main
from gitbench.identity.case import Case
from gitbench.judge.flags import FLAGS, blocking, compared_flags, explained, own_flags
from gitbench.run.bench import Bench, case_of
from gitbench.store.folder import Store
from gitbench.store.result import Baselines, Environment, Measure, Result, Utility

DOCS = Path(__file__).parents[1] / "docs" / "flags.md"
ENVIRONMENT = Environment(gitbench="0", torch="0", torchvision="0", python="3", platform="x", device="cpu", threads=1)


def measure(*values: float | None, width: float = 0.1) -> Measure:
    mean = sum(value or 0 for value in values) / len(values)
    return Measure(mean=mean, low=mean - width, high=mean + width, values=values)


def case(**changes: object) -> Case:
    given = {"attack": "ridge", "defense": "clipping(max_norm=1.0)", "model": "mlp", "dataset": "photos", "threat": "server"}
    return case_of(**{**given, "profile": "quick", "victims": 8, "batch_size": 1, "seed": 0, **changes})


def result(
    *gains: float, utility: Utility | None = None, ssim: float | None = None, flags: tuple[str, ...] = (), **changes: object
) -> Result:
    found = case(victims=len(gains), **changes)
    metrics = {"psnr_gain": measure(*gains)}
    if ssim is not None:
        metrics["ssim"] = measure(*[ssim] * len(gains), width=0.01)
    return Result(
        case=found, case_id=found.case_id, status="done", verdict="inconclusive", verdict_reason="", metrics=metrics, flags=flags,
        baselines=Baselines(blind={"ssim": 0.4}), utility=utility, environment=ENVIRONMENT, finished_at="2026-01-01T00:00:00.000+00:00",
    )  # fmt: skip


def utility(**changes: object) -> Utility:
    given = {"alignment": measure(1.0, 1.0), "cosine": 1.0, "descent": 1.0, "norm_ratio": 1.0, "equal": 0.0, "random": False}
    return Utility(**{**given, **changes})


EIGHT = (1.0,) * 8


@pytest.mark.parametrize(
    ("changes", "flags"),
    [
        ({}, set()),
        ({"random": True}, {"randomised-defense"}),
        ({"equal": 0.125}, {"raw-update"}),
        ({"norm_ratio": None, "alignment": measure(None, None), "cosine": None, "descent": None}, {"vanishing-update"}),
        ({"norm_ratio": 1e-4}, {"scale-changed"}),
        ({"norm_ratio": 2e3}, {"scale-changed"}),
        ({"norm_ratio": 1e-6}, {"scale-changed", "vanishing-update"}),
        ({"alignment": measure(0.05, 0.05)}, {"destroys-utility"}),
        ({"alignment": measure(-1.0, -1.0)}, {"destroys-utility"}),
        ({"descent": 0.0, "cosine": 0.001}, {"destroys-utility"}),
        ({"descent": 0.0, "cosine": 0.5}, set()),
        ({"descent": 0.2, "cosine": 0.001}, set()),
        ({"descent": 0.0, "cosine": None}, {"destroys-utility"}),
    ],
)
def test_flags_of_utility(changes: dict[str, object], flags: set[str]) -> None:
    assert own_flags(result(*EIGHT, utility=utility(**changes)), still_improving=False) == flags


@pytest.mark.parametrize(("gain", "ssim", "raised"), [(-1.0, 0.6, True), (-1.0, 0.45, False), (1.0, 0.9, False)])
def test_structure_without_brightness_is_flagged(gain: float, ssim: float, raised: bool) -> None:
    assert ("similar-but-blind" in own_flags(result(*[gain] * 8, ssim=ssim), still_improving=False)) is raised


def test_few_victims_and_a_short_budget_are_flagged() -> None:
    assert own_flags(result(1.0, 1.0), still_improving=True) == {"few-victims", "still-improving"}


def test_the_control_has_no_flags_of_a_defense() -> None:
    assert own_flags(result(*EIGHT, defense="none", utility=utility(equal=1.0)), still_improving=False) == set()


def test_comparisons_are_paired_over_victims() -> None:
    low = [1.0, 9.0, 3.0, 20.0, 5.0, 2.0, 7.0, 4.0]
    high = [value + 0.5 + 0.01 * index for index, value in enumerate(low)]
    assert compared_flags(result(*high), control=result(*low, defense="none"), oblivious=None) == {"leaks-more-than-undefended"}
    assert compared_flags(result(*low), control=result(*high, defense="none"), oblivious=None) == set()
    assert compared_flags(result(*low), control=None, oblivious=result(*high, attack="ridge(adapt=False)")) == {"adaptive-weaker"}
    assert compared_flags(result(*high), control=None, oblivious=result(*low, attack="ridge(adapt=False)")) == set()


@pytest.mark.parametrize(
    ("attack", "spellings"),
    [
        ("ridge", {"ridge(adapt=False)"}),
        ("ig(iterations=3)", {"ig(adapt=False, iterations=3)", "ig(iterations=3, adapt=False)"}),
        ("ig(adapt=True)", {"ig(adapt=False)"}),
        ("ridge+ig", {"ridge(adapt=False)+ig(adapt=False)"}),
        ("ig(adapt=False)", set()),
    ],
)
def test_the_oblivious_attacker_is_found_as_people_spell_it(attack: str, spellings: set[str]) -> None:
    assert {found.attack for found in case(attack=attack).oblivious()} == spellings


def test_an_adaptive_attack_is_compared_with_its_stored_oblivious_variant(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for found in (result(*EIGHT), result(*EIGHT, defense="none"), result(*[2.0] * 4, *[2.1] * 4, attack="ridge(adapt=False)")):
        store.save(found)
    assert "adaptive-weaker" in Bench(store=store).measure(case()).flags


def test_only_flags_that_leave_no_success_block() -> None:
    assert blocking([result(*EIGHT, flags=("few-victims", "randomised-defense"))]) == []
    assert blocking([result(*EIGHT), result(*EIGHT, flags=("vanishing-update",))]) == ["vanishing-update"]


def test_every_flag_is_documented_with_if_why_and_what_to_do() -> None:
    text = DOCS.read_text()
    for name, flag in FLAGS.items():
        section = text.partition(f"## `{name}`")[2].partition("\n## ")[0]
        for said in (flag.raised, flag.why, flag.what_to_do):
            assert said in section.replace("\n", " "), (name, said)
        assert ("does not hold" in section) is flag.blocks, name


def test_the_command_line_explains_flags_and_offers_the_nearest_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flags"]) == 0
    said = capsys.readouterr().out
    assert all(part in said for flag in FLAGS.values() for part in (flag.name, flag.raised, flag.why, flag.what_to_do))
    assert main(["flags", "few-victims"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "few-victims"
    assert main(["flags", "few-victim"]) == 2
    assert "Did you mean 'few-victims'?" in capsys.readouterr().err


def test_explained_names_the_reason_and_passes_on_what_it_does_not_know() -> None:
    assert "few-victims (fewer than 8 victims)" in explained(["lpips-not-measured", "few-victims"])


@pytest.mark.parametrize(
    ("losses", "still"),
    [([8.0, 4.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0], False), ([8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0], True), ([1.0] * 8, False), ([], False)],
)
def test_falling_looks_at_the_last_quarter(losses: list[float], still: bool) -> None:
    falling = Falling(len(losses))
    for iteration, loss in enumerate(losses):
        falling.see(iteration, torch.tensor([loss, loss, 5.0]))
    assert falling.still is still


@pytest.mark.parametrize("stored", [(), ("destroys-utility", "scale-changed"), ("no-slope",)])
def test_flags_of_a_stored_result_are_raised_from_its_figures_anew(stored: tuple[str, ...], tmp_path: Path) -> None:
    bench = Bench(store=Store(tmp_path))
    found = result(*EIGHT, utility=utility(descent=0.0, cosine=0.001), flags=stored)
    for one in (found, result(*[10.0, 11.0] * 4, defense="none")):
        Store(tmp_path).save(one)
    judged = bench.measure(found.case)
    assert set(judged.flags) == {"destroys-utility"} | ({"no-slope"} & set(stored))
    assert judged.verdict == "inconclusive"
    assert "destroys-utility" in judged.verdict_reason


def test_a_reader_that_has_read_enough_is_no_error():
    """As with ``gitbench flags | head -1``."""
    command = [sys.executable, "-c", "from gitbench.cli import main; raise SystemExit(main())", "flags"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
        assert process.wait() == 0
