"""What auto makes of an update that does not speak of its victim: docs/attacks.md has the figures.

python benchmarks/negative_control.py cifar10.npz [--model lenet] [--victims 32] [--profile quick]
"""

from __future__ import annotations

import argparse

import torch

import gitbench
from gitbench.attacker.attack import load_attack
from gitbench.attacker.attacks.auto.criterion import Criterion
from gitbench.attacker.tools.rehearsal import rehearse
from gitbench.clients.data import draw_victims
from gitbench.core.random import make_generator, randn_like
from gitbench.measure.scoring import score


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("archive")
    parser.add_argument("--model", action="append")
    parser.add_argument("--victims", type=int, default=32)
    parser.add_argument("--profile", default="quick")
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = gitbench.load_dataset(f"npz(path={given.archive!r})")
    attack = load_attack("auto", profile=given.profile)
    inputs, labels = draw_victims(data.private, victims=given.victims, batch_size=1, seed=0)
    blind = data.public.inputs.mean(0)
    print("| model | update | psnr_gain in dB | updates matched by what auto found | by the victim's true image |")
    print("| --- | --- | --- | --- | --- |")
    for spec in given.model or ["lenet", "mlp"]:
        model = gitbench.load_model(spec, data, seed=0)
        sent = gitbench.client_update(model, inputs, labels, public=data.public)
        updates = {
            "its own": sent,
            "another image's": sent.map(lambda _, tensor: tensor.roll(1, dims=0)),
            "noise of the same norms": sent.map(noise_like(make_generator(1))),
        }
        for name, update in updates.items():
            observation = gitbench.Observation(
                update=update, model=model, input_shape=data.input_shape, batch_size=1, public=data.public, defense="none"
            )
            found = attack(observation, generator=make_generator(0, "attack")).inputs
            criterion = Criterion(observation, rehearse(observation, generator=make_generator(0)))
            classes = torch.arange(data.classes)
            by_found = torch.stack([matched(criterion, found, torch.full_like(labels, label)) for label in classes.tolist()]).any(0)
            by_truth = matched(criterion, inputs, labels)
            gain = float(score(found, inputs, blind=blind)["psnr_gain"].mean())
            print(f"| `{spec}` | {name} | {gain:.1f} | {int(by_found.sum())} of {len(inputs)} | {int(by_truth.sum())} |", flush=True)


def matched(criterion: Criterion, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Whether images ``(V, 1, C, H, W)`` with these labels explain the updates to numerical precision, ``(V,)``."""
    with torch.no_grad():
        return criterion.matched(criterion.misfit(images, labels))


def noise_like(generator: torch.Generator):
    """Noise with the norm that each victim's tensor has."""

    def noise(_: str, tensor: torch.Tensor) -> torch.Tensor:
        drawn = randn_like(tensor, generator)
        own, other = (part.flatten(1).norm(dim=1).reshape(-1, *[1] * (part.ndim - 1)) for part in (tensor, drawn))
        return drawn * own / other

    return noise


if __name__ == "__main__":
    main()
