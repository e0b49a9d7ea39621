"""gradinversion step by step, and on large models and images: docs/attacks.md has the tables.

python benchmarks/gradinversion.py steps TINYIMAGENET [--victims 2] [--batch-size 8] [--seeds 4] [--iterations 200] [--models DIR]
python benchmarks/gradinversion.py large IMAGENET [--iterations 40]

``steps``: gradients alone with labels drawn at random, then labels restored, BatchNorm statistics and the group, each added to the
row before; and ``ig`` for as long as the whole took. ``large``: one 224 px image through torchvision's resnet50, and a batch of 8
through its resnet18, freshly drawn: for time and memory, not for figures.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import gitbench
from gitbench.attacker.observation import Observation
from gitbench.clients.data import Data, Split
from gitbench.core.memory import peak_memory_mb, reset_peak
from gitbench.core.random import make_generator
from gitbench.judge.statistics import interval

_CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=("steps", "large"))
    parser.add_argument("path")
    parser.add_argument("--split", choices=("private", "public"), default="private")
    parser.add_argument("--victims", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--trained-epochs", type=int, default=2)
    parser.add_argument("--width", type=int, default=8, help="of the resnet's first block")
    parser.add_argument("--limit", type=int, default=20, help="images of a class, public and private")
    parser.add_argument("--models", type=Path, help="folder that keeps the trained model")
    parser.add_argument("--row", type=int, action="append", help="of gradinversion's, counted from 0 (default: all)")
    parser.add_argument("--options", default="", help="of gradinversion, for all rows: 'tv=0.03, lr=0.1'")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    (steps if given.table == "steps" else large)(given)


def steps(given: argparse.Namespace) -> None:
    data = gitbench.load_dataset(f"folder(path={given.path!r}, size=64, limit={given.limit})")
    if given.split == "public":
        data = Data(data.public, data.public, data.classes, data.name)
    start = time.perf_counter()
    model = gitbench.load_model(f"resnet(width={given.width}, trained_epochs={given.trained_epochs})", data, seed=0, cache=given.models)
    print(f"model: {time.perf_counter() - start:.0f} s\n", flush=True)
    inputs, labels = distinct(data.private, given.victims, given.batch_size)
    update = gitbench.client_update(model, inputs, labels)
    seen = Observation(update=update, model=model, input_shape=data.input_shape, batch_size=given.batch_size, public=data.public)
    print("| attack | PSNR | LPIPS | identification | s a victim |\n|" + " --- |" * 5, flush=True)
    seconds = 0.0
    for number, spec in enumerate(rows(given)):
        if given.row and number not in given.row:
            continue
        seconds = shown(spec, seen, inputs, data)
    if given.row and len(list(rows(given))) - 1 not in given.row:
        return
    # ig for as long as the last row took, as its iterations take on this machine now.
    tried = max(20, given.iterations // 2)
    once = timed(f"ig(iterations={tried})", seen) / tried
    shown(f"ig(iterations={max(1, math.floor(seconds / once))})", seen, inputs, data)


def rows(given: argparse.Namespace) -> Iterator[str]:
    common = f"iterations={given.iterations}, seeds={given.seeds}{', ' if given.options else ''}{given.options}"
    yield f"gradinversion({common}, labels='drawn', statistics='none', group=0.0)"
    yield f"gradinversion({common}, labels='restored', statistics='none', group=0.0)"
    yield f"gradinversion({common}, labels='restored', group=0.0)"
    yield f"gradinversion({common}, labels='restored')"


def distinct(split: Split, victims: int, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Batches of images of different classes, as the paper draws them."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
    batches: list[list[int]] = []
    for index in order.tolist():
        if not batches or len(batches[-1]) == batch:
            if len(batches) == victims:
                break
            batches.append([])
        if split.labels[index] not in split.labels[batches[-1]]:
            batches[-1].append(index)
    chosen = torch.tensor(batches)
    return split.inputs[chosen], split.labels[chosen]


def shown(spec: str, seen: Observation, inputs: torch.Tensor, data: Data) -> float:
    attack = gitbench.load_attack(spec)
    found = attack(seen, generator=make_generator(0, "attack"))
    scores = gitbench.score(found.inputs, inputs, private=data.private.inputs)
    cells = [spread(scores[name].mean(1), digits) for name, digits in (("psnr", 2), ("lpips", 3), ("identification", 2))]
    print(f"| `{spec}` | {' | '.join(cells)} | {found.attack_seconds / len(inputs):.0f} |", flush=True)
    return found.attack_seconds


def timed(spec: str, seen: Observation) -> float:
    return gitbench.load_attack(spec)(seen, generator=make_generator(0, "attack")).attack_seconds


def spread(values: torch.Tensor, digits: int) -> str:
    found = interval([values.tolist()])
    if found.low is None or found.high is None:  # of a single victim
        return f"{found.mean:.{digits}f}"
    return f"{found.mean:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def photographs(folder: Path) -> Data:
    """All of ``test/CLASS/IMAGE``, 224 px; public and private alike, for nothing is learned from them."""
    files = sorted(folder.glob("test/*/*"))
    classes = sorted({path.parent.name for path in files})
    images = [np.asarray(Image.open(path).convert("RGB").resize((224, 224)), dtype=np.float32) / 255 for path in files]
    labels = torch.tensor([classes.index(path.parent.name) for path in files])
    split = Split(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), labels)
    return Data(split, split, len(classes), "photographs")


def large(given: argparse.Namespace) -> None:
    found = photographs(Path(given.path))
    print("| model | batch | iterations | said beforehand, MiB | peak of the process, MiB | s | PSNR |\n|" + " --- |" * 7, flush=True)
    for name, batch in (("resnet50", 1), ("resnet18", 8)):
        model = gitbench.load_model(f"torchvision(name={name!r})", found, seed=0)
        inputs, labels = distinct(found.private, 1, batch)
        seen = Observation(
            update=gitbench.client_update(model, inputs, labels), model=model, input_shape=found.input_shape, batch_size=batch
        )
        attack = gitbench.load_attack(f"gradinversion(iterations={given.iterations}, seeds=1, labels='restored')")
        reset_peak(_CPU)
        start = time.perf_counter()
        made = attack(seen, generator=make_generator(0, "attack")).inputs
        seconds, psnr = time.perf_counter() - start, gitbench.score(made, inputs)["psnr"].mean()
        said = attack.memory(seen) / 2**20
        print(
            f"| `{name}` | {batch} | {given.iterations} | {said:.0f} | {peak_memory_mb(_CPU):.0f} | {seconds:.0f} | {psnr:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
