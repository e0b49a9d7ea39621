"""How near the signs of a gradient lead, on held-out public images alone: by what constants were chosen.

python benchmarks/signs_of_gradients.py [--dataset photos] [--model lenet] [--victims 16]

Printed is the mean gain in PSNR over the mean public image, for several sequences of doubts, and for several numbers of iterations at each.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from unittest import mock

import torch

import gitbench
from gitbench.attacker.attacks.auto import signs
from gitbench.attacker.tools.priors import of_spectrum
from gitbench.core.random import make_generator

DOUBTS = ((1.0, 0.1, 0.01, 0.001), (0.1, 0.03, 0.01, 0.003), signs.DOUBTS, (*signs.DOUBTS, 0.003, 0.001))
ITERATIONS = (20, 40, 60)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dataset", default="photos")
    parser.add_argument("--model", default="lenet")
    parser.add_argument("--victims", type=int, default=16)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    data, defense = gitbench.load_dataset(given.dataset), gitbench.load_defense("sign()")
    model, public = gitbench.load_model(given.model, data), data.public
    held = torch.arange(given.victims) * len(public) // given.victims
    left = torch.ones(len(public), dtype=torch.bool).index_fill_(0, held, False)
    truth, labels, known = public.inputs[held, None], public.labels[held, None], public.inputs[left]
    update = gitbench.client_update(model, truth, labels, defense=defense, generator=make_generator(0))
    observation = gitbench.Observation(update=update, model=model, input_shape=data.input_shape, defense=defense)

    def psnr(found: torch.Tensor) -> torch.Tensor:
        return -10 * (found - truth).square().flatten(1).mean(1).log10()

    print("| doubts | iterations at each | gain, dB |\n|---|---|---|")
    for doubts in DOUBTS:
        for iterations in ITERATIONS:
            with mock.patch.object(signs, "DOUBTS", doubts):
                found = signs.from_signs(observation, labels, of_spectrum(known), iterations=iterations, tell=lambda _done, _total: None)
            gain = float((psnr(found) - psnr(known.mean(0))).mean())
            print(f"| {', '.join(map(str, doubts))} | {iterations} | {gain:+.2f} |", flush=True)


if __name__ == "__main__":
    main()
