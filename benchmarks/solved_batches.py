"""How often the last layer's inputs of a batch are solved, and how well: docs/attacks.md has the table.

python benchmarks/solved_batches.py "npz(path='cifar10.npz')" [--split public] [--model lenet] [--batch-size 8] [--tolerance 1e-14]

With ``--split public`` held-out public images play the victims: what is chosen is chosen on these.
"""

from __future__ import annotations

import argparse
import time

import torch
from scipy.optimize import linear_sum_assignment

import gitbench
from gitbench.attacker.tools.features import forward_features
from gitbench.attacker.tools.labels import infer_labels
from gitbench.attacker.tools.last_layer import EXACT, solved_inputs
from gitbench.clients.data import Data, Split
from gitbench.core.progress import silent
from gitbench.core.random import make_generator

_WRONG = 0.25  # squared error, in units of the inputs' own variance


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("dataset", help="SPEC")
    parser.add_argument("--split", choices=("private", "public"), default="private")
    parser.add_argument("--model", action="append")
    parser.add_argument("--batch-size", type=int, action="append")
    parser.add_argument("--defense", default="none")
    parser.add_argument("--victims", type=int, default=16)
    parser.add_argument("--tolerance", type=float, default=EXACT)
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = gitbench.load_dataset(given.dataset)
    if given.split == "public":
        data = _public_alone(data)
    columns = [
        "model", "batch size", "labels right", "solved", "wrongly", "misfit: right, at most", "wrong, at least",
        "error: median, largest", "s a victim",
    ]  # fmt: skip
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    for spec in given.model or ["lenet", "resnet", "mlp"]:
        model = gitbench.load_model(spec, data, seed=0)
        for size in given.batch_size or [4, 8]:
            print(f"| `{spec}` | {size} | {' | '.join(_cells(data, model, size, given))} |", flush=True)


def _public_alone(data: Data) -> Data:
    """The public images alone, the last of them as victims."""
    cut = len(data.public) * 4 // 5
    public = data.public
    return Data(Split(public.inputs[:cut], public.labels[:cut]), Split(public.inputs[cut:], public.labels[cut:]), data.classes, data.name)


def _cells(data: Data, model: torch.nn.Module, size: int, given: argparse.Namespace) -> list[str]:
    inputs, labels = gitbench.draw_victims(data.private, victims=given.victims, batch_size=size, seed=0)
    generator = make_generator(0, "defense", given.defense)
    update = gitbench.client_update(model, inputs, labels, defense=given.defense, generator=generator, public=data.public)
    observation = gitbench.Observation(
        update=update, model=model, input_shape=data.input_shape, batch_size=size, public=data.public, defense=given.defense
    )
    start = time.perf_counter()
    guessed = infer_labels(observation)
    found = solved_inputs(observation, guessed, progress=silent, tolerance=given.tolerance)
    seconds = (time.perf_counter() - start) / given.victims
    variance = forward_features(model, data.public.inputs)[0].var(0).sum()
    truth = forward_features(model, inputs.flatten(0, 1))[0].reshape(found.inputs.shape)
    errors = torch.stack([_matched(own, true) for own, true in zip(found.inputs, truth, strict=True)]) / variance
    right = errors < _WRONG
    named = int((guessed == labels.sort(dim=1).values).all(1).sum())
    solved = int(found.solved.sum())
    return [
        f"{named} of {given.victims}", f"{solved} of {given.victims}",
        str(int((found.solved & ~right).sum())), _extreme(found.misfit[right], max),
        _extreme(found.misfit[~right], min), f"{errors.median():.1e}, {errors.max():.1e}", f"{seconds:.2f}",
    ]  # fmt: skip


def _matched(found: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Mean squared distance of inputs ``(B, F)`` to the true ones under the best assignment."""
    costs = torch.cdist(truth, found).square()
    rows, columns = linear_sum_assignment(costs.numpy())
    return costs[rows, columns].mean()


def _extreme(values: torch.Tensor, of: object) -> str:
    return f"{of(values.tolist()):.0e}" if len(values) and callable(of) else "-"


if __name__ == "__main__":
    main()
