"""gifd against gias with one generator and as many gradient evaluations, and without each of its parts: docs/attacks.md.

python benchmarks/gifd.py CIFAR10.npz [--split public] [--model lenet] [--batch-size 1] [--defense none] [--victims 8] [--state FILE]
    [--attack ATTACK] [--generator-data DATASET] [--style grey|edges|sketch]

A row for each setting and attack: PSNR, LPIPS, and the difference in PSNR from the first attack, paired over victims, with 95 % intervals.
The generator is trained once, from public images alone, and kept in FILE. With ``--split public`` held-out public images play the
victims: what is chosen is chosen on these.

Out of distribution: with ``--generator-data`` the generator is trained on the public images of another dataset, a SPEC; ``--style`` draws
the victims' images in a style that no public image has. A generator with classes is asked for with ``--attack "gifd(conditional=True)"``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from skimage.filters import gaussian, sobel

import gitbench
from gitbench.attacker.attack import Attack, Fit, Fitted
from gitbench.attacker.learning import NoCheckpoint
from gitbench.attacker.observation import Observation
from gitbench.clients.data import Data, Split
from gitbench.clients.update import Update
from gitbench.core.progress import silent
from gitbench.core.random import make_generator
from gitbench.judge.statistics import interval

ATTACKS = ("gias", "gifd", "gifd(radii=())", "gifd(staged=False)")
DEFENSES = ("none", "gaussian_noise(std=0.01)", "pruning(rate=0.9)")
STYLES: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "grey": lambda grey: grey,
    "edges": lambda grey: np.sqrt(sobel(grey)),
    "sketch": lambda grey: grey / np.maximum(gaussian(grey, sigma=2), 1e-3),  # dodged: dark lines on white
}
_HELD = 256


class OneGenerator:
    """Trains the generator once for all models, batches and defenses: it depends on the public images alone.

    Args:
        path: where it is kept.
        data: whose public images it is trained on; None for the attack's own.
    """

    def __init__(self, path: Path | None, data: Data | None = None) -> None:
        self._path, self._data = path, data
        self._kept: Mapping[str, torch.Tensor] | None = None

    def get(self, attack: Attack, observation: Observation, fit: Fit) -> Fitted:
        start = time.perf_counter()
        if self._kept is None and self._path is not None and self._path.exists():
            self._kept = load_file(self._path)
        if self._kept is None:
            drawn = make_generator(0, "fit", repr(attack))
            if self._data is None:
                self._kept = fit(drawn, NoCheckpoint())
            else:
                model = gitbench.load_model("mlp", self._data)  # nobody looks at it
                seen = Observation(update=Update({}), model=model, input_shape=self._data.input_shape, public=self._data.public)
                self._kept = attack.fit(seen.without_update(), generator=drawn, progress=silent, checkpoint=NoCheckpoint())
            print(f"generator: {time.perf_counter() - start:.0f} s\n", flush=True)
            if self._path is not None:
                save_file(dict(self._kept), self._path)
        return Fitted(self._kept, time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path")
    parser.add_argument("--split", choices=("private", "public"), default="private")
    parser.add_argument("--attack", action="append", help=f"SPEC; the first is compared with (default: {', '.join(ATTACKS)})")
    parser.add_argument("--model", action="append")
    parser.add_argument("--batch-size", type=int, action="append")
    parser.add_argument("--defense", action="append")
    parser.add_argument("--victims", type=int, default=8)
    parser.add_argument("--state", type=Path)
    parser.add_argument("--generator-data", help="SPEC of the dataset that the generator is trained on (default: the attack's)")
    parser.add_argument("--style", choices=tuple(STYLES))
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = held_out(gitbench.load_dataset(f"npz(path={given.path!r})"), given.split)
    if given.style:
        data = styled(data, given.style)
    generator = OneGenerator(given.state, gitbench.load_dataset(given.generator_data) if given.generator_data else None)
    print("| model | batch | defense | attack | PSNR | LPIPS | against the first | s a victim |\n|" + " --- |" * 8, flush=True)
    for model in given.model or ["lenet", "resnet"]:
        network = gitbench.load_model(model, data, seed=0)
        for batch in given.batch_size or [1, 4]:
            for defense in given.defense or DEFENSES:
                first: torch.Tensor | None = None
                for attack in given.attack or ATTACKS:
                    found = measured(data, network, attack, defense, batch, given.victims, generator)
                    first = found[0] if first is None else first
                    print(row(f"| `{model}` | {batch} | `{defense}` | `{attack}`", first, *found), flush=True)


def held_out(data: Data, split: str) -> Data:
    """The data without 256 public images, which play the victims where ``split`` is public: one generator serves both."""
    cut = len(data.public) - _HELD
    public = data.public
    victims = Split(public.inputs[cut:], public.labels[cut:]) if split == "public" else data.private
    return Data(Split(public.inputs[:cut], public.labels[:cut]), victims, data.classes, data.name)


def styled(data: Data, style: str) -> Data:
    """The data with private images in a style; public ones stay as they are."""
    grey = data.private.inputs.mean(1).numpy()
    drawn = torch.from_numpy(np.stack([STYLES[style](image) for image in grey])).float().clamp(0, 1)
    private = Split(drawn[:, None].expand_as(data.private.inputs).contiguous(), data.private.labels)
    return Data(data.public, private, data.classes, data.name)


def measured(
    data: Data, model: torch.nn.Module, attack: str, defense: str, batch: int, victims: int, generator: OneGenerator
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """PSNR and LPIPS ``(V, B)``, and the seconds a victim took."""
    inputs, labels = gitbench.draw_victims(data.private, victims=victims, batch_size=batch, seed=0)
    drawn = make_generator(0, "defense", defense)
    update = gitbench.client_update(model, inputs, labels, defense=defense, generator=drawn, public=data.public)
    seen = Observation(
        update=update, model=model, input_shape=data.input_shape, batch_size=batch, public=data.public, defense=defense
    )  # fmt: skip
    found = gitbench.load_attack(attack)(seen, generator=make_generator(0, "attack", attack.partition("(")[0]), fits=generator)
    scores = gitbench.score(found.inputs, inputs)
    return scores["psnr"], scores["lpips"], found.attack_seconds / victims


def row(start: str, first: torch.Tensor, psnr: torch.Tensor, lpips: torch.Tensor, seconds: float) -> str:
    """Means over victims of their batch's mean, with intervals."""
    cells = [spread(psnr.mean(1), 2), spread(lpips.mean(1), 3), spread((psnr - first).mean(1), 2, sign="+"), f"{seconds:.1f}"]
    return f"{start} | {' | '.join(cells)} |"


def spread(values: torch.Tensor, digits: int, sign: str = "") -> str:
    found = interval([values.tolist()])
    return " ".join([f"{found.mean:{sign}.{digits}f}", f"[{found.low:{sign}.{digits}f}, {found.high:{sign}.{digits}f}]"])


if __name__ == "__main__":
    main()
