"""The figures of docs/text.md: dager on both sides of the rank limit, what embeddings recovers, and searches side by side.

python benchmarks/text.py [limit] [bag] [searches] [lora]
python benchmarks/text.py choose    the constants of the searches, on public text alone: no victim of any benchmark is looked at
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import time
import unittest.mock
from collections.abc import Iterator

import torch

import gitbench
from gitbench.clients import token_embedding
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
    sizes = {1: 64, 4: 64, 8: 32, 16: 16}
    settings = itertools.product(("transformer", "encoder"), sizes, (None, "frozen_embeddings"))
    yield from (
        attacked("embeddings", model, length=LENGTH, batch=batch, victims=sizes[batch], defense=defense)
        for model, batch, defense in settings
    )


def searches() -> Iterator[str]:
    """Batch 1, length 16."""
    settings = itertools.product(("transformer", "encoder"), ("dlg", "tag", "lamp"))
    yield from (attacked(attack, model, length=LENGTH, batch=1, victims=16) for model, attack in settings)


def lora() -> Iterator[str]:
    """What the gradients of adapters alone still tell: batch 1, length 16."""
    settings = [*itertools.product(("transformer", "encoder", "bilstm"), (4, 32), ("embeddings", "dager", "dlg", "tag", "lamp"))]
    yield from (
        attacked(attack, model, length=LENGTH, batch=1, victims=16, defense=f"lora(rank={rank})")
        for model, rank, attack in settings
        if (model, attack) != ("bilstm", "dager")
    )


def held_out() -> gitbench.Data:
    """The public sequences, cut in two: 256 play the private ones."""
    found = gitbench.load_dataset(f"text(length={LENGTH})")
    order = torch.randperm(len(found.public), generator=torch.Generator().manual_seed(5))
    parts = [gitbench.Split(found.public.inputs[some], found.public.labels[some]) for some in (order[256:], order[:256])]
    return dataclasses.replace(found, public=parts[0], private=parts[1])


def rouge(data: gitbench.Data, model: str, attack: str, soft: float) -> float:
    """Mean ROUGE-L of 32 held-out sequences."""
    with unittest.mock.patch.object(token_embedding, "_SOFT", soft):
        network = gitbench.load_model(model, data)
        own = data_for(network, data)
        inputs, labels = gitbench.draw_victims(own.private, victims=32, batch_size=1, seed=0)
        update = gitbench.client_update(network, inputs, labels)
        seen = gitbench.Observation(update=update, model=network, input_shape=(LENGTH,), public=own.public, modality=own.modality)
        found = gitbench.load_attack(attack, profile="quick")(seen, generator=gitbench.make_generator(0))
    return float(
        gitbench.score(found.inputs, inputs, blind=data.modality.blind(data.public.inputs), modality=data.modality)["rouge_l"].mean()
    )


def choose() -> Iterator[str]:
    """One constant after the other, the rest as at first or as chosen so far: where the mean ROUGE-L over both models is highest."""
    data = held_out()
    options: dict[str, dict[str, object]] = {
        "tag": {"units": "tensor", "lr": 0.2, "alpha": 0.01},
        "lamp": {"lr": 0.2},
        "dlg": {},
    }

    def judged(attack: str, model: str, soft: float, **tried: object) -> float:
        told = ", ".join(f"{name}={value!r}" for name, value in {**options[attack], **tried}.items())
        return rouge(data, model, f"{attack}({told})" if told else attack, soft)

    shares = {}
    for value in (2.0, 4.0, 8.0, 16.0, 32.0):
        each = [judged(attack, "transformer", value) for attack in options]
        shares[value] = sum(each) / len(each)
        yield f"soft={value} | transformer | {', '.join(f'{name} {one:.3f}' for name, one in zip(options, each, strict=True))}"
    soft = max(shares, key=shares.__getitem__)
    yield f"chosen: soft={soft}"
    grids = (("tag", "units", ("tensor", "update")), ("tag", "lr", (0.05, 0.1, 0.2, 0.4)), ("tag", "alpha", (0.0, 0.01, 0.1)))
    for attack, name, values in (*grids, ("lamp", "lr", (0.1, 0.2, 0.4, 0.8, 1.6))):
        shares = {}
        for value in values:
            each = [judged(attack, model, soft, **{name: value}) for model in ("transformer", "encoder")]
            shares[value] = sum(each) / len(each)
            yield f"{attack}({name}={value!r}) | transformer {each[0]:.3f}, encoder {each[1]:.3f}"
        options[attack][name] = max(shares, key=shares.__getitem__)
        yield f"chosen: {attack}({name}={options[attack][name]!r})"


def main() -> None:
    torch.set_num_threads(1)
    tables = {"limit": limit, "bag": bag, "searches": searches, "lora": lora, "choose": choose}
    parser = argparse.ArgumentParser()
    parser.add_argument("table", nargs="*", choices=[*tables, []], help="default: all but choose")
    for name in parser.parse_args().table or [*tables][:-1]:
        for line in tables[name]():
            print(line, flush=True)


if __name__ == "__main__":
    main()
