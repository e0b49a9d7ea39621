"""What training makes of a network and of the gradients its victims send: the second table of the epochs in docs/threat-models.md.

python benchmarks/trained_networks.py cifar10.npz [--model "lenet(trained_epochs=10)"] [--victims 16] [--cache epochs/models]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn

import gitbench
from gitbench.clients.client import gradients
from gitbench.clients.data import draw_victims


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("archive")
    parser.add_argument("--model", action="append")
    parser.add_argument("--victims", type=int, default=16)
    parser.add_argument("--cache", type=Path, help="models/ of a results folder: what a run trained is not trained again")
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = gitbench.load_dataset(f"npz(path={given.archive!r})")
    inputs, labels = draw_victims(data.private, victims=given.victims, batch_size=1, seed=0)
    print(
        "| model | private images right | public images right | victims right | probability of the victim's class | norm of its gradient |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for spec in given.model or ["lenet", "lenet(trained_epochs=10)"]:
        model = gitbench.load_model(spec, data, seed=0, cache=given.cache)
        update = gradients(model, inputs, labels)
        norms = torch.stack([tensor.flatten(1).square().sum(1) for tensor in update.tensors.values()]).sum(0).sqrt()
        with torch.no_grad():
            # One by one: in train mode the images of a batch are normalised together, as a client's are.
            logits = torch.cat([model(one) for one in inputs])
        probable = logits.softmax(1).gather(1, labels)[:, 0]
        victims = int((logits.argmax(1) == labels[:, 0]).sum())
        model.eval()
        shares = [f"{100 * right(model, split):.1f} %" for split in (data.private, data.public)]
        print(f"| `{spec}` | {' | '.join(shares)} | {victims} of {given.victims} | {spread(probable)} | {spread(norms)} |", flush=True)


def right(model: nn.Module, split: gitbench.Split) -> float:
    with torch.no_grad():
        found = torch.cat([model(inputs).argmax(1) for inputs in split.inputs.split(500)])
    return float((found == split.labels).float().mean())


def spread(values: torch.Tensor) -> str:
    """Median, and from the smallest to the largest."""
    return f"{float(values.median()):.3g} ({float(values.min()):.3g} to {float(values.max()):.3g})"


if __name__ == "__main__":
    main()
