"""What the blocks of the pages are tried with: their commands by the real parsers, their components by a small measurement."""

from __future__ import annotations

import argparse
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import gitbench
from doc_blocks import BLOCKS, ROOT
from gitbench import cli
from gitbench.identity.known_modalities import declared_modality, misfit
from helpers import check_data, make_data
from pytest_gitbench.runner import Runner

ON_THE_MACHINE = {"pip", "tox", "python3", "rm", "cp", "git"}  # change the machine; .ci/run runs those of the README as they stand
QUICK = ("-p", "no:unraisableexception")  # at its end it collects garbage five times: half a second with torch
FILES = {block.file: block.text for block in BLOCKS if block.file}
AXES = {
    gitbench.Attack: "attack", gitbench.Defense: "defense", gitbench.Client: "client", gitbench.ModelFactory: "model", nn.Module: "model",
}  # fmt: skip


def check_pytest(words: list[str], folder: pytest.Pytester) -> None:
    """pytest's own parser takes the options; every SPEC leads somewhere, and every attack, defense and model can be built."""
    config = folder.parseconfigure(*words, *QUICK)
    if not config.option.gitbench:
        return
    session = config.pluginmanager.get_plugin("gitbench-session")
    Runner.check(session.cells, session.config)
    images = make_data(size=32, public=8, private=2)
    for dataset, model in {(str(cell.dataset), str(cell.model)) for cell in session.cells}:
        kind = declared_modality(dataset)
        if misfit(kind, attack="dlg", model=model):  # of the project's own pyproject.toml, which has images
            continue
        other = kind != images.modality.name
        if other:
            pytest.importorskip("tokenizers")
        data = gitbench.load_dataset(dataset) if other else images
        gitbench.load_model(re.sub(r"(trained_epochs)=\d+", r"\1=0", model), data)


class Parsed(Exception):
    """A script has read its command line."""


def check_script(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The script's own parser takes the options; a script without one takes none."""
    path, *arguments = words
    if not (ROOT / path).is_file():
        assert path in FILES, f"no page has {path}"
        return
    if "argparse" not in (ROOT / path).read_text():
        assert not arguments
        return
    parse = argparse.ArgumentParser.parse_args

    def parse_only(self: argparse.ArgumentParser, *_: object) -> None:
        parse(self, arguments)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.syspath_prepend(str(ROOT / Path(path).parent))
    with pytest.raises(Parsed):
        runpy.run_path(str(ROOT / path), run_name="__main__")


def check(words: list[str], folder: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    program = Path(words[0]).name
    if program == "pytest":
        check_pytest(words[1:], folder)
    elif program == "gitbench":
        cli._parser().parse_args(words[1:])
    elif program == "python":
        check_script(words[1:], monkeypatch)
    else:
        assert program in ON_THE_MACHINE, words


def run(words: list[str], folder: pytest.Pytester) -> None:
    if words[0] == "pytest":
        result = folder.runpytest_inprocess(*words[1:], *QUICK)
        assert result.ret == 0, result.stdout.str()
    elif words[0] == "gitbench":
        assert cli.main(words[1:]) == 0, words
    else:
        subprocess.run([sys.executable if words[0] == "python" else words[0], *words[1:]], cwd=folder.path, check=True)


WHOLE = """
import gitbench
{text}
class Whole(gitbench.Defense):
    {name} = {name}

    def protect(self, update, *, generator):  # an update of a norm of at most 1
        norms = update.flatten().norm(dim=1)
        return update.map(lambda name, tensor: tensor / norms.clamp_min(1).reshape(-1, *[1] * (tensor.ndim - 1)))
"""


def measure(name: str, value: object, file: Path, images: Path) -> None:
    options = {"attack": "ridge(limit=20)", "defense": "gaussian_noise(std=0.01)", "model": "mlp(hidden=(8,))"}
    options["dataset"] = f"npz(path={str(images)!r})"
    if not isinstance(value, type):  # a method alone
        file.write_text(WHOLE.format(text=file.read_text(), name=name))
        options["defense"], axis = f"{file}:Whole", None
    elif issubclass(value, gitbench.Dataset):
        check_data(gitbench.load_dataset(f"{file}:{name}"))
        return
    elif issubclass(value, gitbench.Metric):
        check_metric(value())
        return
    else:
        axis = next(axis for base, axis in AXES.items() if issubclass(value, base))
        options[axis] = f"{file}:{name}"
    found = gitbench.evaluate(**options, victims=4, rounds=1 if axis else 2, device="cpu")
    assert found.status == "done", found.error


def check_metric(metric: gitbench.Metric) -> None:
    truth = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    best, worst = metric.score(truth, truth), metric.score(1 - truth, truth)
    assert best.shape == worst.shape == (3,)
    assert bool((best > worst if metric.higher_leaks else best < worst).all())
