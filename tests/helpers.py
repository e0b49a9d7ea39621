"""Tiny data and projects, made on the spot, and where the real data lies beside this project."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from gitbench.clients.data import Data, Split

SHARED = Path(__file__).parents[2] / "shared"
CIFAR10 = SHARED / "data" / "cifar10.npz"


def make_data(*, size: int = 8, classes: int = 4, public: int = 96, private: int = 24, channels: int = 3, seed: int = 0) -> Data:
    """Smooth random images: a random colour gradient each, so that they can be learned."""
    generator = torch.Generator().manual_seed(seed)

    def split(count: int) -> Split:
        corners = torch.rand(count, channels, 2, 2, generator=generator)
        images = torch.nn.functional.interpolate(corners, size=(size, size), mode="bilinear", align_corners=True)
        return Split(images.clamp(0, 1), torch.randint(0, classes, (count,), generator=generator))

    return Data(split(public), split(private), classes=classes, name="tiny")


def smooth(count: int, shape: tuple[int, int, int], seed: int = 0) -> torch.Tensor:
    """Images with structure at several scales, so that the metrics have something to see."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.zeros(count, *shape)
    for size in (2, 4, 7):
        grid = torch.rand(count, shape[0], size, size, generator=generator)
        found += torch.nn.functional.interpolate(grid, size=shape[1:], mode="bilinear") / 3
    return found


def pair(shape: tuple[int, int, int], count: int = 4, noise: float = 0.2, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    truth = smooth(count, shape, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    return (truth + noise * torch.randn(truth.shape, generator=generator)).clamp(0, 1), truth


def write_npz(path: Path, found: Data) -> Path:
    """The data as an archive in the MedMNIST layout."""

    def arrays(split: Split) -> tuple[np.ndarray, np.ndarray]:
        return (split.inputs.permute(0, 2, 3, 1) * 255).round().byte().numpy(), split.labels.numpy()

    train_images, train_labels = arrays(found.public)
    test_images, test_labels = arrays(found.private)
    np.savez(path, train_images=train_images, train_labels=train_labels, test_images=test_images, test_labels=test_labels)
    return path


SCALE = """
from gitbench import Defense

class Scale(Defense):
    def __init__(self, *, factor: float = 0.5, layers=None):
        self.factor = factor

    def protect(self, update, *, generator):
        return update.map(lambda name, tensor: tensor * self.factor)
"""


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def check_data(data: Data) -> None:
    """What every dataset promises."""
    for split in (data.public, data.private):
        assert split.inputs.dtype == torch.float32
        assert split.inputs.shape == (len(split), *data.input_shape)
        assert split.labels.dtype == torch.int64
        assert split.labels.shape == (len(split),)
        assert float(split.inputs.min()) >= 0
        assert float(split.inputs.max()) <= 1
        assert int(split.labels.min()) >= 0
        assert int(split.labels.max()) < data.classes


def write_project(pytester: pytest.Pytester, dataset: Path, **options: object) -> None:
    """A [tool.gitbench] whose matrix takes seconds (an archive of tiny images, mlp, ridge), with further ``options``."""
    table = {"dataset": f"npz(path={str(dataset)!r})", "model": ["mlp(hidden=(24,))"], "attack": ["ridge"], "victims": 12, **options}
    lines = (f"{name} = {json.dumps(value)}" for name, value in table.items())
    pytester.makepyprojecttoml("\n".join(["[tool.gitbench]", *lines]))


ALONE = ("-p", "no:hypothesispytest")
"""For a pytest in a process of its own: the plugin of a library that only our own tests use takes a second to import."""


def run_project(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    """In this process, where torch is imported already; in its own where plugins differ."""
    if "-n" in arguments or "no:xdist" in arguments:
        return pytester.runpytest_subprocess(*ALONE, *arguments)
    return pytester.runpytest_inprocess(*arguments)


LOGGED = """
import time
from pathlib import Path
import torch
import gitbench

class Logged(gitbench.Attack):
    # Guesses at random, and says in logs when it starts and when it is through; `wait(which)` is for the test to add.
    requires = frozenset({"architecture"})

    def __init__(self, *, which: int = 0):
        self.which = which

    def run(self, observation, state, *, generator, progress):
        self.say("started.log")
        wait(self.which)
        self.say("measured.log")
        shape = (observation.update.victims, observation.batch_size, *observation.input_shape)
        return torch.rand(shape, generator=generator)

    def say(self, path):
        with Path(path).open("a") as log:
            log.write(f"{self.which}\\n")
"""


def write_logged(folder: Path, dataset: Path, *, attacks: int, wait: str) -> None:
    """A project of so many ``Logged`` attacks in ``attacks.py``, and the body of their ``wait(which)``."""
    (folder / "attacks.py").write_text(f"{LOGGED}\ndef wait(which):\n    {wait}\n")
    names = [f"attacks.py:Logged(which={which})" for which in range(attacks)]
    (folder / "pyproject.toml").write_text(
        f"[tool.gitbench]\ndataset = [\"npz(path='{dataset}')\"]\nmodel = ['mlp']\ndefense = ['none']\nvictims = 2\nthreads = 1\nattack = {names!r}\n"
    )


DEFENSES = """
import gitbench
from gitbench import cli

class Mine(gitbench.Defense):
    def __init__(self, *, scale: float = 0.1):
        self.scale = scale

    def protect(self, update, *, generator):
        return update.map(lambda name, tensor: tensor * self.scale)

class Noise(gitbench.Defense):
    # strong, and yet unbiased: the updates still point the right way on average
    def protect(self, update, *, generator):
        return update.map(lambda name, tensor: tensor + gitbench.randn_like(tensor, generator))

class Half(gitbench.Defense):
    # hides every other victim
    def protect(self, update, *, generator):
        def hide(name, tensor):
            tensor = tensor.clone()
            tensor[::2] = 0
            return tensor
        return update.map(hide)

class Broken(gitbench.Defense):
    def protect(self, update, *, generator):
        raise RuntimeError("my bad")

class Nan(gitbench.Defense):
    def protect(self, update, *, generator):
        return update.map(lambda name, tensor: tensor * float("nan"))
"""


def write_matrix(pytester: pytest.Pytester, dataset: Path) -> pytest.Pytester:
    """A project whose matrix takes seconds, with defenses of every kind in ``defenses.py`` and a test that must not run."""
    write_project(
        pytester,
        dataset,
        defense=["none", "clipping(max_norm=100.0)", "gaussian_noise(std=1.0)"],
        known_leaks=["*/clipping(max_norm=100.0)/*", "*/defenses.py:Known/*"],
        threads=1,
    )
    pytester.makepyfile(defenses=DEFENSES)
    pytester.makepyfile(test_other="def test_other(): raise AssertionError('not mine to run')")
    return pytester


def run_matrix(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    return run_project(pytester, "--gitbench", *arguments)


def stored_cases(folder: Path) -> dict[str, dict]:
    return {path.stem: json.loads(path.read_text()) for path in sorted((folder / ".gitbench" / "cases").glob("*.json"))}


alarm = pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="this system has no alarm")


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < seconds
