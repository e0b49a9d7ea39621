"""How near each example's own inputs bring auto to the images of a solved batch, from ridge's images: a table in docs/attacks.md.

python benchmarks/own_inputs.py cifar10.npz [--model lenet] [--batch-size 4] [--victims 4] [--iterations 200] [--split public|private]

The split `public` is for tuning: its victims are held-out public images (benchmarks/held_out.py).
"""

from __future__ import annotations

import argparse

import torch
from held_out import HeldOut

import gitbench
from gitbench.attacker.attacks.auto.own_inputs import OwnInputs
from gitbench.attacker.tools.labels import infer_labels
from gitbench.attacker.tools.last_layer import solved_inputs
from gitbench.attacker.tools.priors import Gaussian, of_samples
from gitbench.clients.data import draw_victims
from gitbench.core.progress import silent
from gitbench.core.random import make_generator
from gitbench.measure.scoring import score


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("archive")
    parser.add_argument("--model", default="lenet")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--victims", type=int, default=4)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--split", choices=("public", "private"), default="public")
    given = parser.parse_args()
    torch.set_num_threads(1)
    dataset, size = f"npz(path={given.archive!r})", given.batch_size
    held = given.split == "public"
    data = HeldOut(dataset=dataset).load() if held else gitbench.load_dataset(dataset)
    model = gitbench.load_model(given.model, data, seed=0)
    if held:  # in the order of the split
        inputs, labels = (part[: given.victims * size].unflatten(0, (-1, size)) for part in (data.private.inputs, data.private.labels))
    else:
        inputs, labels = draw_victims(data.private, victims=given.victims, batch_size=size, seed=0)
    observation = gitbench.Observation(
        update=gitbench.client_update(model, inputs, labels), model=model, input_shape=data.input_shape, batch_size=size, public=data.public
    )
    start = gitbench.load_attack("ridge")(observation, generator=make_generator(0, "attack")).inputs
    labels = infer_labels(observation)
    solution = solved_inputs(observation, labels, progress=silent)
    found = start.clone()
    rows = solution.solved.nonzero().flatten()
    if len(rows):
        own = OwnInputs(observation.of_victims(rows, labels=labels[rows]), labels[rows], solution.inputs[rows], prior(data))
        found[rows] = own.search(start[rows], iterations=given.iterations, progress=silent).clamp(0, 1)
    before, after = (score(images, inputs)["psnr"].mean(1) for images in (start, found))
    print(f"{len(rows)} of {given.victims} solved; ridge {before.mean():.2f} dB; own inputs {after.mean():.2f} dB, worst {after.min():.2f}")


def prior(data: gitbench.Data) -> Gaussian:
    return of_samples(data.public.inputs.split(128), hidden=False)


if __name__ == "__main__":
    main()
