"""Broken defenses must look broken: pairs of cells, of an attack that the defense fools and of one that it does not (docs/breaks.md).

python benchmarks/breaks.py [--dataset photos] [--profile quick] [--victims 16] [--results .gitbench] [--only TEXT]

Prints a Markdown table: both cells in dB above the blind guess, and the difference, paired over victims. What is stored in the results
folder is taken, so that a run that was cut off goes on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch

import gitbench
from gitbench.core.progress import silent
from gitbench.judge.statistics import interval
from gitbench.store.result import Result

_SHOWN = 3.0  # dB that an adaptive attack must leak more, for the break to count as shown


@dataclass(frozen=True, kw_only=True)
class Break:
    """One defense and two attackers.

    Args:
        defense: SPEC.
        fooled: the attack that takes the defense at its word.
        adaptive: the one that does not.
        how: what it does, in a few words.
        model: SPEC.
        client: SPEC.
        batch_size: images of a victim.
        rounds: that each of the two sees.
    """

    defense: str
    fooled: str
    adaptive: str
    how: str
    model: str = "lenet"
    client: str = "fedsgd"
    batch_size: int = 1
    rounds: tuple[int, int] = (1, 1)


IG, PLAIN_IG, PLAIN_RIDGE = "ig", "ig(adapt=False)", "ridge(adapt=False)"
BREAKS = (
    Break(
        defense="clipping(max_norm=1.0)", batch_size=4, fooled=PLAIN_RIDGE, adaptive="ridge",
        how="the factor is one more unknown of the last layer",
    ),
    Break(defense="clipping(max_norm=0.1)", fooled="dlg(adapt=False)", adaptive=IG, how="cosine does not see a scale"),
    Break(defense="pruning(rate=0.9)", fooled=PLAIN_IG, adaptive=IG, how="match the entries that were sent"),
    Break(defense="dropout(rate=0.5)", model="mlp", fooled=PLAIN_IG, adaptive=IG, how="the mask is seen: match under it"),
    Break(defense="soteria(rate=0.9)", fooled=PLAIN_IG, adaptive=IG, how="leave out what its layer did not send"),
    Break(defense="sign()", fooled=PLAIN_IG, adaptive=IG, how="match a smooth sign"),
    Break(defense="sign()", fooled=PLAIN_RIDGE, adaptive="ridge", how="learn from signs of public images"),
    Break(defense="sign()", fooled=PLAIN_RIDGE, adaptive="auto", how="search what has these signs, by a likelihood that grows sharp"),
    Break(defense="quantization(bits=2)", rounds=(1, 16), fooled="ridge", adaptive="ridge", how="average the rounds"),
    Break(defense="gaussian_noise(std=0.1)", rounds=(1, 16), fooled="ridge", adaptive="ridge", how="average the rounds"),
    Break(defense="laplace_noise(scale=0.1)", rounds=(1, 16), fooled="ridge", adaptive="ridge", how="the median of the rounds"),
    Break(defense="dp_sgd(noise_multiplier=0.01)", rounds=(1, 16), fooled="ridge", adaptive="ridge", how="average the rounds"),
    Break(
        defense="pruning(rate=0.9, by='random')", rounds=(1, 16), fooled="ridge", adaptive="ridge",
        how="combine the rounds, entry by entry",
    ),
    Break(defense="topk(rate=0.01)", rounds=(1, 16), fooled="ridge", adaptive="ridge", how="what is late comes in the end"),
    Break(
        defense="ats()", fooled="recursion(adapt=False)", adaptive="auto",
        how="try what may have been drawn, and search the image behind",
    ),
    Break(
        defense="mixup()", fooled="recursion(adapt=False)", adaptive="auto",
        how="read the mixed label, and take the public partner out of the average",
    ),
    Break(
        defense="instahide()", fooled="recursion(adapt=False)", adaptive="auto",
        how="read the mixed label, find the signs of a smooth average, and take public partners out of it",
    ),
    Break(defense="precode()", fooled=IG, adaptive="auto", how="read the slope of the loss off the bottleneck's first layer"),
    Break(
        defense="precode()", model="resnet", fooled=IG, adaptive="auto", how="read the slope of the loss off the bottleneck's first layer",
    ),
    Break(
        defense="none", client="fedavg(steps=5, lr=0.1, batch_size=4)", batch_size=4, fooled=PLAIN_RIDGE, adaptive="ridge",
        how="rehearse the local steps",
    ),
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dataset", default="photos")
    parser.add_argument("--profile", default="quick")
    parser.add_argument("--victims", type=int, default=16)
    parser.add_argument("--results", default=".gitbench")
    parser.add_argument("--only", default="", help="a part of the defenses' SPECs")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print("| defense | setting | fooled | dB | adaptive | dB | difference | how |")
    print("|---|---|---|---|---|---|---|---|")
    for one in BREAKS:
        if given.only in one.defense:
            print(row(one, given), flush=True)


def row(one: Break, given: argparse.Namespace) -> str:
    """The line of one break."""
    fooled, adaptive = (measured(one, attack, rounds, given) for attack, rounds in zip((one.fooled, one.adaptive), one.rounds, strict=True))
    setting = [
        one.model,
        *([f"batches of {one.batch_size}"] if one.batch_size > 1 else []),
        *([one.client] if one.client != "fedsgd" else []),
    ]
    names = [
        f"`{attack}`" + (f", {rounds} rounds" if rounds > 1 else "")
        for attack, rounds in zip((one.fooled, one.adaptive), one.rounds, strict=True)
    ]
    cells = [
        f"`{one.defense}`",
        ", ".join(setting),
        names[0],
        gain(fooled),
        names[1],
        gain(adaptive),
        difference(fooled, adaptive),
        one.how,
    ]
    return "| " + " | ".join(cells) + " |"


def measured(one: Break, attack: str, rounds: int, given: argparse.Namespace) -> Result:
    print(f"{one.defense}: {attack}", file=sys.stderr)
    return gitbench.evaluate(
        attack=attack, defense=one.defense, model=one.model, client=one.client, batch_size=one.batch_size, rounds=rounds,
        dataset=given.dataset, profile=given.profile, victims=given.victims, results=given.results, progress=silent,
    )  # fmt: skip


def gain(result: Result) -> str:
    """``+13.1 [11.8, 14.6]``, or the error."""
    if result.status == "error":
        return f"error: {result.error}"
    found = result.metrics["psnr_gain"]
    if found.mean is None or found.low is None or found.high is None:
        return "unknown"
    return f"{found.mean:+.1f} [{found.low:.1f}, {found.high:.1f}]"


def difference(fooled: Result, adaptive: Result) -> str:
    """Paired over victims, with a mark where it is below what shows a break."""
    pairs = (
        zip(fooled.metrics["psnr_gain"].values, adaptive.metrics["psnr_gain"].values, strict=True)
        if fooled.metrics and adaptive.metrics
        else ()
    )
    found = interval([[None if before is None or after is None else after - before for before, after in pairs]])
    if found.mean is None:
        return "unknown"
    text = f"{found.mean:+.1f}" + ("" if found.low is None else f" [{found.low:.1f}, {found.high:.1f}]")
    return text if found.mean >= _SHOWN else f"{text}, not shown"


if __name__ == "__main__":
    main()
