"""An attack, and the same followed by ``denoise``: docs/attacks.md has the table.

python benchmarks/denoise.py [--dataset photos] [--model lenet] [--profile quick] [--victims 16] [--results .gitbench] [--attack ATTACK]
    [--refiner REFINER] [--defense DEFENSE] [--seed SEED]

Each of several refiners after each attack. With --dataset benchmarks/held_out.py:HeldOut public images play the victims: what is chosen
is chosen on these.

Prints a Markdown table: both in dB above the blind guess, and the difference, paired over victims. What is stored in the results folder
is taken, so that a run that was cut off goes on.
"""

from __future__ import annotations

import argparse
import sys

import torch

import gitbench
from benchmarks.breaks import gain
from gitbench.core.progress import silent
from gitbench.judge.statistics import interval
from gitbench.store.result import Result

ATTACKS = ("ridge", "recursion", "git", "ig")
DEFENSES = ("none", "gaussian_noise(std=0.01)", "dp_sgd(noise_multiplier=0.1)", "dp_sgd(noise_multiplier=1.0)", "pruning(rate=0.9)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="photos")
    parser.add_argument("--model", default="lenet")
    parser.add_argument("--profile", default="quick")
    parser.add_argument("--victims", type=int, default=16)
    parser.add_argument("--results", default=".gitbench")
    parser.add_argument("--attack", action="append", help=f"SPEC; repeatable (default: {', '.join(ATTACKS)})")
    parser.add_argument("--refiner", action="append", help="SPEC; repeatable (default: denoise)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--defense", action="append", help=f"SPEC; repeatable (default: {', '.join(DEFENSES)})")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| data | defense | attack | alone | refiner | refined | difference |\n|" + " --- |" * 7)
    for defense in given.defense or DEFENSES:
        for attack in given.attack or ATTACKS:
            alone = measured(attack, defense, given)
            for refiner in given.refiner or ["denoise"]:
                refined = measured(f"{attack}+{refiner}", defense, given)
                cells = [f"`{given.dataset}`", f"`{defense}`", f"`{attack}`", gain(alone), f"`{refiner}`", gain(refined)]
                print(f"| {' | '.join(cells)} | {difference(alone, refined)} |", flush=True)


def measured(attack: str, defense: str, given: argparse.Namespace) -> Result:
    print(f"{defense}: {attack}", file=sys.stderr)
    return gitbench.evaluate(
        attack=attack, defense=defense, model=given.model, dataset=given.dataset, profile=given.profile, victims=given.victims,
        seed=given.seed, results=given.results, progress=silent,
    )  # fmt: skip


def difference(alone: Result, refined: Result) -> str:
    """Paired over victims."""
    if not alone.metrics or not refined.metrics:
        return "unknown"
    pairs = zip(alone.metrics["psnr_gain"].values, refined.metrics["psnr_gain"].values, strict=True)
    found = interval([[None if before is None or after is None else after - before for before, after in pairs]])
    return "unknown" if found.mean is None else f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"


if __name__ == "__main__":
    main()
