"""Leakage per victim when nothing but the randomness changes: what tests/reseeded.json holds.

python benchmarks/reseeding.py OUT.json [--victims 64] [--draws 4]

Images, labels and the model under attack stay the same; the draws of the defense and of the attack are fresh in
every column (of "same local model" those of the attack alone). So is the training of an attack that rehearses the
defense; one that does not (gias) keeps what it learned, as it does in a results folder. docs/regression.md says
what the gate's error rates are on these values.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch

from gitbench._version import __version__
from gitbench.attacker.attack import Attack
from gitbench.attacker.fit_cache import CaseFits
from gitbench.core.random import make_generator
from gitbench.measure.evaluator import Evaluator
from gitbench.run.bench import case_of

CELLS = (
    ("ridge", "none"),
    ("ridge", "dp_sgd(noise_multiplier=1.0)"),
    ("ridge", "gaussian_noise(std=0.01)"),
    ("ridge", "pruning(rate=0.5)"),
    ("ridge", "parameter_drift(epochs=1, samples=64)"),
    ("lti", "none"),
    ("lti", "dp_sgd(noise_multiplier=1.0)"),
    ("ig", "none"),
    ("ig", "gaussian_noise(std=0.01)"),
    ("ig", "parameter_drift(epochs=1, samples=64)"),
    ("dlg", "none"),
    ("dlg", "pruning(rate=0.5)"),
    ("gias", "none"),
    ("gias", "parameter_drift(epochs=1, samples=64)"),
)


KEPT = tuple((attack, "parameter_drift(epochs=1, samples=64)") for attack in ("ridge", "ig", "gias"))  # the same local model


@contextlib.contextmanager
def drawn_again(draw: int, *, defense: bool = True) -> Iterator[None]:
    """Other generators for everything but the victims, the model, and what is learned without the defense."""

    def of_chain(seed: int, *purpose: str) -> torch.Generator:
        fresh = purpose[0] in (("defense", "attack") if defense else ("attack",))
        return make_generator(seed, *purpose, *([f"draw {draw}"] if fresh else []))

    def of_fit(fits: CaseFits, attack: Attack) -> torch.Generator:
        read = attack.requires | attack.uses if attack.fit_uses is None else attack.fit_uses
        return make_generator(fits._case.seed, "fit", repr(attack), *([f"draw {draw}"] if "defense" in read else []))

    with mock.patch("gitbench.measure.evaluator.make_generator", new=of_chain), mock.patch.object(CaseFits, "_generator", new=of_fit):
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--victims", type=int, default=64)
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--attack", action="append", help="only this attack; repeatable")
    given = parser.parse_args()
    torch.set_num_threads(1)
    cells: dict[str, list[list[float]]] = {}
    for draw, kept in itertools.product(range(given.draws), (False, True)):
        with drawn_again(draw, defense=not kept):
            chain = Evaluator(store=None, device="cpu")
            for attack, defense in (cell for cell in (KEPT if kept else CELLS) if not given.attack or cell[0] in given.attack):
                case = case_of(
                    attack=attack, defense=defense, model="lenet", dataset="photos", threat="server", profile="quick",
                    victims=given.victims, batch_size=1, seed=0,
                )  # fmt: skip
                result = chain.run(case)
                if result.status == "error":
                    raise SystemExit(f"{defense}/{attack}: {result.error}")
                gains = result.metrics["psnr_gain"]
                name = f"{defense}/{attack}" + (", same local model" if kept else "")
                cells.setdefault(name, []).append([round(float(value or 0), 3) for value in gains.values])
                sys.stdout.write(f"{draw} {name} {gains.mean:.2f}\n")
                sys.stdout.flush()
        columns = {key: [list(row) for row in zip(*values, strict=True)] for key, values in cells.items()}
        about = {"gitbench": __version__, "torch": torch.__version__, "setting": "photos/lenet, quick, seed 0", "unit": "psnr_gain, dB"}
        rows = ",\n".join(f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}" for key, value in columns.items())
        given.out.write_text(f'{{"about": {json.dumps(about)},\n"cells": {{\n{rows}\n}}}}\n')


if __name__ == "__main__":
    main()
