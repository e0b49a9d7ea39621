"""Which class of a conditional generator stands for an image by what its update shows, and whether that is a sensible one.

python -m benchmarks.label_mapping CIFAR10.npz --state FILE [--defense none] [--victims 128]

FILE is a generator with classes that benchmarks/gifd.py has trained. Held-out public images play the victims, so that truth may be looked
at: the classes are ordered by the distance of an image from the mean of their samples, and the place of the chosen one is told, as a share
of the classes, mean over victims; by chance it is a half.
"""

from __future__ import annotations

import argparse

import torch
from safetensors.torch import load_file

import gitbench
from benchmarks.gifd import DEFENSES, held_out
from gitbench.attacker.attacks.gifd import GIFD
from gitbench.attacker.observation import Observation
from gitbench.attacker.tools.generated import made
from gitbench.attacker.tools.label_mapping import classes_for
from gitbench.attacker.tools.labels import infer_labels
from gitbench.core.random import make_generator

_SAMPLES = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path")
    parser.add_argument("--state", required=True)
    parser.add_argument("--model", default="lenet")
    parser.add_argument("--defense", action="append")
    parser.add_argument("--victims", type=int, default=128)
    parser.add_argument("--latent", type=int, default=128)
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = held_out(gitbench.load_dataset(f"npz(path={given.path!r})"), "public")
    model = gitbench.load_model(given.model, data, seed=0)
    inputs, truth = gitbench.draw_victims(data.private, victims=given.victims, batch_size=1, seed=0)
    attack, state = GIFD(conditional=True, latent=given.latent), load_file(given.state)
    for number, defense in enumerate(given.defense or DEFENSES):
        drawn = make_generator(0, "defense", defense)
        update = gitbench.client_update(model, inputs, truth, defense=defense, generator=drawn, public=data.public)
        seen = Observation(update=update, model=model, input_shape=data.input_shape, public=data.public, defense=defense)
        network = attack.decoder.network(seen, state)
        images = samples(network)
        if not number:
            codes, classes = (images.var(dim).mean() for dim in (1, 0))
            print(f"variance of a pixel: {codes:.5f} over codes, {classes:.5f} over classes of one code\n")
            print("| defense | mapped | numbered |\n| --- | --- | --- |")
        labels = infer_labels(seen)
        chosen = [classes_for(seen, network, labels, mapped=mapped)[0].argmax(-1)[:, 0] for mapped in (True, False)]
        print(f"| `{defense}` | {' | '.join(f'{place(images, inputs, one):.3f}' for one in chosen)} |", flush=True)


def samples(network: torch.nn.Module) -> torch.Tensor:
    """Flat images ``(classes, samples, pixels)``, of the same codes for each class."""
    latent, classes = network.latent, network.classes
    codes = torch.randn(_SAMPLES, latent, generator=make_generator(1)).expand(classes, -1, -1)
    with torch.no_grad():
        return made(network.stages, (codes, torch.eye(classes)[:, None].expand(-1, _SAMPLES, -1))).flatten(2)


def place(images: torch.Tensor, inputs: torch.Tensor, chosen: torch.Tensor) -> float:
    """Mean share of classes whose samples' mean is nearer to an image than that of the chosen one."""
    distances = torch.cdist(inputs.flatten(1), images.mean(1))
    return float((distances < distances.gather(1, chosen[:, None])).float().mean())


if __name__ == "__main__":
    main()
