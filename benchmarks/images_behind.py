"""How well the image behind a changed one is found, on held-out public images alone: by what constants were chosen.

python benchmarks/images_behind.py [--dataset photos] [--victims 32] [--seed 5]

The changed images are known exactly here. Printed is the mean PSNR: of images that ``ats`` transformed, for several sequences of errors
that are granted to a pixel, each with forty iterations in all; of images that ``instahide`` mixed and mirrored, for several errors that
are granted to an average, and of the mean public image.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from unittest import mock

import torch

import gitbench
from gitbench.attacker.attacks.auto import mirrored, preparation
from gitbench.attacker.attacks.auto.mirrored import middle_of, unmasked
from gitbench.attacker.tools.priors import Gaussian, of_spectrum
from gitbench.clients.update import Batch
from gitbench.core.progress import silent
from gitbench.core.random import make_generator

ERRORS = ((0.05,), (0.2, 0.1, 0.05), (0.5, 0.2, 0.1, 0.05), (0.5, 0.2, 0.05, 0.02), preparation.ERRORS)


DOUBTS = (0.0, 0.02, 0.05, 0.1, 0.2)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dataset", default="photos")
    parser.add_argument("--victims", type=int, default=32)
    parser.add_argument("--seed", type=int, default=5)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    data = gitbench.load_dataset(given.dataset)
    held = torch.arange(given.victims) * len(data.public) // given.victims
    left = torch.ones(len(data.public), dtype=torch.bool).index_fill_(0, held, False)
    truth, public = data.public.inputs[held, None], gitbench.Split(data.public.inputs[left], data.public.labels[left])
    prior = of_spectrum(public.inputs)

    def changed(spec: str) -> tuple[torch.Tensor, gitbench.Observation]:
        """Of the held-out images, and what an attacker knows of it."""
        defense, model = gitbench.load_defense(spec), gitbench.load_model("lenet", data)
        labels = torch.zeros(len(truth), 1, dtype=torch.long)
        images, _ = defense.prepare_batch(Batch(model, truth, labels), public=public, generator=make_generator(given.seed))
        none = gitbench.Update({name: torch.zeros(len(truth), *one.shape) for name, one in model.named_parameters()})
        known = {"update": none, "model": model, "input_shape": data.input_shape, "public": public, "defense": defense}
        return images, gitbench.Observation(**known)

    def psnr(found: torch.Tensor) -> str:
        each = -10 * (found - truth).square().flatten(1).mean(1).log10()
        return f"{float(each.mean()):.2f}"

    sent, observation = changed("ats()")
    print("| ats: errors | PSNR, dB |\n|---|---|")
    for errors in ERRORS:
        with mock.patch.object(preparation, "ERRORS", errors):
            print(f"| {', '.join(map(str, errors))} | {psnr(untransformed(sent, observation, prior))} |", flush=True)
    sent, observation = changed("instahide()")
    middle = middle_of(observation)
    assert middle is not None
    print("\n| instahide: error | PSNR, dB |\n|---|---|")
    for error in DOUBTS:
        with mock.patch.object(mirrored, "ERROR", error):
            print(f"| {error} | {psnr(unmasked(sent, middle, observation, prior, progress=silent))} |", flush=True)
    print(f"| the mean public image | {psnr(public.inputs.mean(0))} |")


def untransformed(sent: torch.Tensor, observation: gitbench.Observation, prior: Gaussian) -> torch.Tensor:
    return preparation.untransformed(sent, observation, prior, iterations=40, progress=silent)


if __name__ == "__main__":
    main()
