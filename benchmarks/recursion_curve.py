"""How fast Exact-GIT's trained weights reach an MLP's: the curve in docs/attacks.md.

python benchmarks/recursion_curve.py [DATASET] [MODEL]
"""

from __future__ import annotations

import sys

import torch

import gitbench
from gitbench.attacker.attacks.git.trained import train_weights
from gitbench.attacker.layers.chain import read_chain
from gitbench.clients.client import gradients
from gitbench.core.progress import silent
from gitbench.core.random import make_generator


def main(dataset: str = "photos", spec: str = "mlp") -> None:
    torch.set_num_threads(1)
    data = gitbench.load_dataset(dataset)
    model = gitbench.load_model(spec, data)
    chain = read_chain(model, data.input_shape)
    rows = torch.randperm(len(data.public), generator=make_generator(1))[:1024]
    inputs, labels = data.public.inputs[rows], data.public.labels[rows]
    raw = gradients(model, inputs[:, None], labels[:, None])
    name = f"{chain.layers[-1].name}.weight"
    truth = dict(model.named_parameters())[name].detach()
    truth = truth - truth.mean(0)  # a softmax does not see a row common to all classes

    def watch(step: int, wrong: float, weights: dict[str, torch.Tensor]) -> None:
        found = weights[name] - weights[name].mean(0)
        print(f"step {step:4}  distance {float((found - truth).norm() / truth.norm()):.5f}  input MSE {wrong:.3g}", flush=True)

    train_weights(chain, raw, inputs, generator=make_generator(0), progress=silent, watch=watch)


if __name__ == "__main__":
    main(*sys.argv[1:])
