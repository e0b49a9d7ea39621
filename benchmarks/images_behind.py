"""How well the image behind a transformed one is found, on held-out public images alone: by what its constants were chosen.

python benchmarks/images_behind.py [--dataset photos] [--victims 32] [--seed 5]

The transformed images are known exactly here. Printed is the mean PSNR for several sequences of errors that are
granted to a pixel, each with forty iterations in all.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from unittest import mock

import torch

import gitbench
from gitbench.attacker.attacks.auto import preparation
from gitbench.attacker.tools.priors import of_spectrum
from gitbench.core.progress import silent
from gitbench.core.random import make_generator

ERRORS = ((0.05,), (0.2, 0.1, 0.05), (0.5, 0.2, 0.1, 0.05), (0.5, 0.2, 0.05, 0.02), preparation.ERRORS)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dataset", default="photos")
    parser.add_argument("--victims", type=int, default=32)
    parser.add_argument("--seed", type=int, default=5)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    data, defense = gitbench.load_dataset(given.dataset), gitbench.load_defense("ats()")
    model = gitbench.load_model("lenet", data)
    held = torch.arange(given.victims) * len(data.public) // given.victims
    left = torch.ones(len(data.public), dtype=torch.bool).index_fill_(0, held, False)
    truth, prior = data.public.inputs[held, None], of_spectrum(data.public.inputs[left])
    sent, _ = defense.prepare(truth, torch.zeros(len(truth), 1, dtype=torch.long), generator=make_generator(given.seed))
    none = gitbench.Update({name: torch.zeros(len(truth), *one.shape) for name, one in model.named_parameters()})
    observation = gitbench.Observation(update=none, model=model, input_shape=data.input_shape, public=data.public, defense=defense)
    print("| errors | PSNR, dB |\n|---|---|")
    for errors in ERRORS:
        with mock.patch.object(preparation, "ERRORS", errors):
            found = preparation.untransformed(sent, observation, prior, iterations=40, progress=silent)
        psnr = -10 * (found - truth).square().flatten(1).mean(1).log10()
        print(f"| {', '.join(map(str, errors))} | {float(psnr.mean()):.2f} |", flush=True)


if __name__ == "__main__":
    main()
