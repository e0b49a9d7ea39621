"""The figures of docs/text.md: dager on both sides of the rank limit, what embeddings recovers, and searches side by side.

python benchmarks/text.py [limit] [bag] [searches]
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator

import torch

import gitbench
from gitbench.clients.task import data_for
from gitbench.measure.token_counts import recovered

WIDTH, LENGTH = 64, 16
SHOWN = ("exact_match", "token_accuracy", "token_bag", "rouge_l", "edit_distance", "token_gain")


def attacked(attack: str, model: str, *, length: int, batch: int, victims: int, defense: str | None = None) -> str:
    """One line of a table: the metrics, the batch's own bag and the seconds."""
    data = gitbench.load_dataset(f"text(length={length})")
    network = gitbench.load_model(model, data)
    if defense is not None:
        network = gitbench.load_defense(defense).modify_model(network)
    data = data_for(network, data)
    inputs, labels = gitbench.draw_victims(data.private, victims=victims, batch_size=batch, seed=0)
    update = gitbench.client_update(network, inputs, labels, defense=defense)
    seen = gitbench.Observation(
        update=update, model=network, input_shape=(length,), batch_size=batch, public=data.public, modality=data.modality, defense=defense
    )
    start = time.perf_counter()
    found = gitbench.load_attack(attack, profile="quick")(seen, generator=gitbench.make_generator(0))
    seconds = time.perf_counter() - start
    blind = data.modality.blind(data.public.inputs)
    scores = gitbench.score(found.inputs, inputs, blind=blind, modality=data.modality)
    told = ", ".join(f"{name} {float(scores[name].mean()):.3f}" for name in SHOWN)
    bag = float(recovered(found.inputs.flatten(1), inputs.flatten(1)).mean())
    setting = f"{attack} | {model} | {defense or 'none'} | batch {batch} of {length} | {victims} victims"
    return f"{setting} | {told}, batch's bag {bag:.3f} | {seconds:.1f} s{' | ' + ', '.join(sorted(found.flags)) if found.flags else ''}"


def limit() -> Iterator[str]:
    """Tokens of a batch from a quarter of the width to twice of it."""
    sizes = ((1, 16), (2, 16), (3, 16), (5, 12), (4, 16), (8, 16))
    yield from (attacked("dager", "transformer", length=length, batch=batch, victims=32) for batch, length in sizes)
    yield from (attacked("dager", "encoder", length=length, batch=batch, victims=32) for batch, length in sizes)


def bag() -> Iterator[str]:
    """What the closed form recovers, with the embedding's gradient and without."""
    settings = itertools.product(("transformer", "encoder"), (1, 4), (None, "frozen_embeddings"))
    yield from (
        attacked("embeddings", model, length=LENGTH, batch=batch, victims=64, defense=defense) for model, batch, defense in settings
    )


def searches() -> Iterator[str]:
    """Batch 1, length 16."""
    settings = itertools.product(("transformer", "encoder"), ("dlg", "tag", "lamp"))
    yield from (attacked(attack, model, length=LENGTH, batch=1, victims=16) for model, attack in settings)


def main() -> None:
    torch.set_num_threads(1)
    tables = {"limit": limit, "bag": bag, "searches": searches}
    parser = argparse.ArgumentParser()
    parser.add_argument("table", nargs="*", choices=[*tables, []], help="default: all")
    for name in parser.parse_args().table or tables:
        for line in tables[name]():
            print(line, flush=True)


if __name__ == "__main__":
    main()
