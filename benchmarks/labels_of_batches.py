"""How many labels of a batch are inferred right: docs/attacks.md has the table.

python benchmarks/labels_of_batches.py cifar10.npz [--model lenet] [--defense none] [--victims 64]
"""

from __future__ import annotations

import argparse
import time

import torch
from torch.nn import functional

import gitbench
from gitbench.attacker.tools.labels import greedy_counts, infer_labels
from gitbench.core.random import make_generator


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("archive")
    parser.add_argument("--model", action="append")
    parser.add_argument("--defense", action="append")
    parser.add_argument("--batch-size", type=int, action="append")
    parser.add_argument("--victims", type=int, default=64)
    parser.add_argument("--distinct", action="store_true", help="no label twice in a batch")
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = gitbench.load_dataset(f"npz(path={given.archive!r})")
    print("| model | defense | batch size | greedy | parameters | public images | both |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for spec in given.model or ["lenet", "mlp", "resnet"]:
        model = gitbench.load_model(spec, data, seed=0)
        for defense in given.defense or ["none"]:
            for size in given.batch_size or [8, 16, 32]:
                inputs, labels = draw(data.private, size, given.victims, distinct=given.distinct)
                generator = make_generator(0, "defense", defense)
                update = gitbench.client_update(model, inputs, labels, defense=defense, generator=generator, public=data.public)
                true = functional.one_hot(labels, data.classes).sum(1)
                cells = []
                for parameters, public in ((None, None), (True, False), (False, True), (True, True)):
                    observation = gitbench.Observation(
                        update=update, model=model, input_shape=data.input_shape, batch_size=size, defense=defense,
                        public=data.public if public else None, parameters=bool(parameters),
                    )  # fmt: skip
                    start = time.perf_counter()
                    if parameters is None:
                        found = greedy_counts(observation)
                    else:
                        found = functional.one_hot(infer_labels(observation), data.classes).sum(1)
                    share = float((torch.minimum(found, true).sum(1) / size).mean())
                    whole = float((found == true).all(1).float().mean())
                    cells.append(f"{100 * share:.1f} % ({100 * whole:.0f} %, {time.perf_counter() - start:.1f} s)")
                print(f"| `{spec}` | `{defense}` | {size} | {' | '.join(cells)} |", flush=True)


def draw(private: gitbench.Split, size: int, victims: int, *, distinct: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Batches from the private split; an image may be in several of them, and once in each."""
    generator = torch.Generator().manual_seed(size)
    chosen = []
    for _ in range(victims):
        order = torch.randperm(len(private), generator=generator)
        if distinct:
            firsts = {int(private.labels[index]): int(index) for index in order.flip(0)}
            order = torch.tensor(sorted(firsts.values(), key=order.tolist().index))
        chosen.append(order[:size])
    index = torch.stack(chosen)
    return private.inputs[index], private.labels[index]


if __name__ == "__main__":
    main()
