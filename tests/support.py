"""The table of docs/model-support.md: which attack runs on which model. `python tests/support.py [torchvision]` writes it."""

from __future__ import annotations

import functools
import re
import sys
from pathlib import Path

import torch
from torch import nn

import gitbench
import zoo
from gitbench.attacker.attack import load_attack
from gitbench.attacker.observation import Observation
from gitbench.clients.client import client_update
from gitbench.clients.data import Data
from gitbench.clients.output import output_of
from gitbench.core.errors import GitbenchError
from gitbench.core.random import make_generator
from helpers import make_data

DOCS = Path(__file__).parents[1] / "docs" / "model-support.md"
ZOO = Path(zoo.__file__)
SMALL = {
    "ridge": "ridge(limit=20)",
    "lti": "lti(epochs=1, limit=20, width=8)",
    "git": "git(limit=40, epochs=1, width=8, coarse_width=8, sketch=32, draws=1)",
    "git(variant='module')": "git(variant='module', limit=40, epochs=1, coarse_width=8, sketch=32, draws=1)",
    "ig": "ig(iterations=1)",
    "dlg": "dlg(iterations=1, labels='idlg')",
    "gias": "gias(latent_iterations=1, iterations=1, restarts=1, epochs=1, limit=20, channels=2, latent=4)",
    "recursion": "recursion(limit=20, iterations=1, rehearsal=16, samples=0, prior='spectrum')",
    "gifd": "gifd(latent_iterations=1, iterations=3, restarts=1, epochs=1, limit=20, channels=2, latent=4)",
    "gradinversion": "gradinversion(iterations=2, seeds=2, group_every=1)",
}
"""The attacks, with the smallest budget."""
OF_LARGE = [attack for attack in SMALL if attack not in ("gifd", "gradinversion")]
"""Those that large models are tried with: the others match gradients as `gias` and `ig` do, and take longer."""
TORCHVISION = {
    "alexnet": 64, "vgg11": 32, "squeezenet1_1": 32, "resnet18": 32, "resnext50_32x4d": 32, "densenet121": 32, "googlenet": 32,
    "inception_v3": 96, "mobilenet_v2": 32, "mobilenet_v3_small": 32, "shufflenet_v2_x0_5": 32, "mnasnet0_5": 32, "efficientnet_b0": 32,
    "regnet_y_400mf": 32, "convnext_tiny": 32, "vit_b_16": 32, "swin_t": 32,
}  # fmt: skip
"""The smallest of each family, and the side of its images."""


@functools.cache
def data_of(kind: str) -> Data:
    return make_data(public=40, private=8, classes=2 if kind.startswith("one_") else 4)


@functools.cache
def images_of(side: int) -> Data:
    return make_data(size=side, public=24, private=4)


@functools.lru_cache(1)
def loaded(spec: str, data: Data) -> nn.Module:
    return gitbench.load_model(spec, data)


def outcome(spec: str, attack: str, data: Data, *, victims: int = 8) -> str:
    """What the attack says of the model; nothing where it reconstructs.

    Raises:
        Exception: whatever is not gitbench's own.
    """
    model = loaded(spec, data)
    inputs, labels = data.private.inputs[:victims, None], data.private.labels[:victims, None]
    update = client_update(model, inputs, labels)
    seen = Observation(update=update, model=model, input_shape=data.input_shape, public=data.public, defense="none")
    try:
        found = load_attack(SMALL[attack])(seen, generator=make_generator(0)).inputs
    except GitbenchError as error:
        return str(error)
    assert found.shape == inputs.shape
    assert torch.isfinite(found).all()
    return ""


@functools.cache
def zoo_outcome(kind: str, attack: str) -> str:
    return outcome(f"{ZOO}:{kind}", attack, data_of(kind))


@functools.cache
def torchvision_outcome(name: str, attack: str) -> str:
    return outcome(f"torchvision(name={name!r})", attack, images_of(TORCHVISION[name]), victims=4)


def zoo_table() -> str:
    rows = {label: {attack: zoo_outcome(kind, attack) for attack in SMALL} for kind, label in zoo.KINDS.items()}
    taken = {label: output_of(loaded(f"{ZOO}:{kind}", data_of(kind))) for kind, label in zoo.KINDS.items()}
    return table(rows, {label: str(output) for label, output in taken.items()})


def torchvision_table() -> str:
    rows = {
        f"`{name}`, {side}x{side}": {attack: torchvision_outcome(name, attack) for attack in OF_LARGE} for name, side in TORCHVISION.items()
    }
    return table(rows, dict.fromkeys(rows, "logits"))


def table(rows: dict[str, dict[str, str]], taken: dict[str, str]) -> str:
    """Markdown: a mark where an attack runs, elsewhere the number of the reason, and the reasons below."""
    reasons: dict[str, int] = {}
    attacks = next(iter(rows.values()))
    lines = [f"| model | what is taken | {' | '.join(f'`{attack}`' for attack in attacks)} |", "|" + " --- |" * (2 + len(attacks))]
    for label, outcomes in rows.items():
        cells = ["✓" if not said else f"({reasons.setdefault(general(said), len(reasons) + 1)})" for said in outcomes.values()]
        lines.append(f"| {label} | {taken[label]} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"{number}. {reason}" for reason, number in reasons.items())])


def general(message: str) -> str:
    """A message without what it says of one model and one attack."""
    for pattern, instead in (
        (r"'[\w.]+' \(\w+\)", "…"),
        (r"'[\w.]+' \(\w+: (.*?)\)", r"… (\1)"),
        (r"attack \w+\([^)]*\)", "attack …"),
        (r"but \w+ raised .*?\. Use git", "but it raised an error. Use git"),
        (r"(logits|gradient|layer) of \w+ (come|has)", r"\1 of … \2"),
        (r"The layer … \(Parameter\)", "The layer …"),
        (r"\s+", " "),
    ):
        message = re.sub(pattern, instead, message)
    return message


def block(name: str) -> str:
    """What stands between the marks of this name."""
    return DOCS.read_text().partition(f"<!-- {name} -->\n")[2].partition(f"\n<!-- /{name} -->")[0]


def write(name: str, text: str) -> None:
    DOCS.write_text(DOCS.read_text().replace(f"<!-- {name} -->\n{block(name)}\n", f"<!-- {name} -->\n{text}\n"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    write("zoo", zoo_table())
    if "torchvision" in sys.argv[1:]:
        write("torchvision", torchvision_table())
