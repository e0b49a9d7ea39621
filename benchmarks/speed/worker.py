"""One implementation in a process of its own: ``python worker.py IMPLEMENTATION THREADS``. A JSON request a line, and an answer likewise.

Each attacks by Adam on signed gradients of the cosine distance plus total variation, with granted labels. gitbench takes all victims in one
stack; breaching takes one image after the other, as its users do who attack several clients.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Run = Callable[[str, int, int], tuple[int, list[float]]]


def gitbench_run(name: str, victims: int, iterations: int) -> tuple[int, list[float]]:
    """Attack with gitbench: the image-iterations that were made, and the loss of each victim that was attacked."""
    from networks import examples, gradients, network

    import gitbench
    from gitbench.clients.client import gradients as gradients_of_stack

    model, (images, labels) = network(name), examples(victims)
    rows = [gradients(model, *one) for one in zip(images, labels, strict=True)]
    gradients_of_stack(model, images[:1, None], labels[:1, None])  # looks at the model once, as gitbench does when it loads one
    update = gitbench.Update(stacked(model, rows))
    seen = gitbench.Observation(update=update, model=model, input_shape=tuple(images.shape[1:]), labels=labels[:, None])
    options = "distance='cosine', schedule='step', signed=True, tv=0.1, labels='known'"
    attack = gitbench.load_attack(f"ig(iterations={iterations}, {options})")

    def run() -> torch.Tensor:
        return attack(seen, generator=torch.Generator().manual_seed(2)).inputs[:, 0]

    found, seconds = timed(run)
    return victims * iterations, [seconds, *distances(model, found, rows, labels)]


def breaching_run(name: str, victims: int, iterations: int) -> tuple[int, list[float]]:
    """The same with breaching's ``invertinggradients``."""
    from networks import examples, gradients, network

    model, (images, labels) = network(name), examples(victims)
    rows = [gradients(model, *one) for one in zip(images, labels, strict=True)]
    found, seconds = timed(breaching_attack(model, rows, labels, tuple(images.shape[1:]), iterations))
    return victims * iterations, [seconds, *distances(model, found, rows, labels)]


def breaching_attack(
    model: torch.nn.Module, rows: list[list[torch.Tensor]], labels: torch.Tensor, shape: tuple[int, ...], iterations: int
) -> Callable[[], torch.Tensor]:
    """``invertinggradients`` on one image's gradient after the other; what it finds, ``(N, C, H, W)``."""
    import breaching

    config = breaching.get_attack_config("invertinggradients", overrides=[f"optim.max_iterations={iterations}"])
    setup = {"device": torch.device("cpu"), "dtype": torch.float32}
    attacker = breaching.attacks.prepare_attack(model, torch.nn.CrossEntropyLoss(), config, setup)
    metadata = types.SimpleNamespace(shape=shape, modality="vision")
    payload = [{"parameters": [*model.parameters()], "buffers": [*model.buffers()], "metadata": metadata}]

    def run() -> torch.Tensor:
        found = []
        for row, label in zip(rows, labels, strict=True):
            told = {"num_data_points": 1, "labels": label[None], "local_hyperparams": None}
            found.append(attacker.reconstruct(payload, [{"gradients": row, "buffers": None, "metadata": told}], {})[0]["data"][0])
        return torch.stack(found)

    return run


def read(path: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Images ``(N, C, H, W)`` in [0, 1] and labels ``(N,)`` of a file."""
    import numpy as np

    with np.load(path) as file:
        return torch.from_numpy(file["images"]).permute(0, 3, 1, 2).float() / 255, torch.from_numpy(file["labels"]).long()


def seen(found: torch.Tensor, truth: torch.Tensor, seconds: float) -> dict[str, Any]:
    error = (found.clamp(0, 1) - truth).square().flatten(1).mean(1).clamp_min(1e-12)
    return {"seconds": seconds, "psnr": (-10 * error.log10()).tolist()}


def gitbench_quality(request: dict[str, Any]) -> dict[str, Any]:
    """One of gitbench's attacks on images of a file, what it learns from public ones included."""
    from networks import gradients, network

    import gitbench
    from gitbench.core.memory import keep_freed_memory

    keep_freed_memory()
    model, (images, labels) = network("lenet"), read(request["images"])
    rows = [gradients(model, *one) for one in zip(images, labels, strict=True)]
    update = gitbench.Update(stacked(model, rows))
    public = None if request["public"] is None else gitbench.load_dataset(f"npz(path={request['public']!r})").public
    shown = gitbench.Observation(
        update=update, model=model, input_shape=tuple(images.shape[1:]), labels=labels[:, None], public=public, defense="none"
    )
    attack = gitbench.load_attack(request["attack"])
    before = time.process_time()
    found = attack(shown, generator=torch.Generator().manual_seed(2)).inputs[:, 0]
    return seen(found, images, time.process_time() - before)


def breaching_quality(request: dict[str, Any]) -> dict[str, Any]:
    """breaching's ``invertinggradients`` on the same images."""
    from networks import gradients, network

    model, (images, labels) = network("lenet"), read(request["images"])
    rows = [gradients(model, *one) for one in zip(images, labels, strict=True)]
    run = breaching_attack(model, rows, labels, tuple(images.shape[1:]), request["iterations"])
    before = time.process_time()
    found = run()
    return seen(found, images, time.process_time() - before)


def stacked(model: torch.nn.Module, rows: list[list[torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Each image's gradients, all images' in one stack by the names of the parameters."""
    names = [name for name, _ in model.named_parameters()]
    return {name: torch.stack(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def timed(run: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, float]:
    before = time.perf_counter()
    found = run()
    return found, time.perf_counter() - before


def distances(model: torch.nn.Module, found: torch.Tensor, rows: list[list[torch.Tensor]], labels: torch.Tensor) -> list[float]:
    """Cosine distances of the gradients of what was found, by plain autograd: both ran the same search if both fell."""
    from networks import gradients

    flat = [torch.cat([part.flatten() for part in row]) for row in rows]
    mine = (torch.cat([part.flatten() for part in gradients(model, *one)]) for one in zip(found, labels, strict=True))
    return [1 - float(torch.cosine_similarity(one, other, dim=0)) for one, other in zip(mine, flat, strict=True)]


RUNS: dict[str, Run] = {"gitbench": gitbench_run, "breaching": breaching_run}
QUALITY = {"quality": gitbench_quality, "breaching quality": breaching_quality}


def matrix_rate() -> float:
    """Multiplications and additions a second in a product of large matrices: what a floor is computed from."""
    left, right = torch.rand(1024, 1024), torch.rand(1024, 1024)
    best = min(timed(lambda: left @ right)[1] for _ in range(10))
    return 2 * 1024**3 / best


def answer(run: Run, request: dict[str, Any]) -> dict[str, Any]:
    made, (seconds, *losses) = run(request["network"], request["victims"], request["iterations"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return {"made": made, "seconds": seconds, "losses": losses, "peak_mib": peak, "torch": torch.__version__}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an implementation prints is not an answer
    sys.path.insert(0, str(Path(__file__).parent))
    warnings.simplefilter("ignore")
    torch.set_num_threads(int(sys.argv[2]))
    for line in sys.stdin:
        request = json.loads(line)
        if sys.argv[1] in QUALITY:
            found = QUALITY[sys.argv[1]](request)
        else:
            found = {"rate": matrix_rate()} if request == {} else answer(RUNS[sys.argv[1]], request)
        print(json.dumps(found), file=answers, flush=True)


if __name__ == "__main__":
    main()
