"""The look at a component's source: every mistake is answered with the nearest right word, and nothing is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gitbench.core.errors import SpecError
from gitbench.core.spec import Kind, parse_spec
from gitbench.identity.loading import check_spec
from helpers import SCALE, write


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("defense", "prunning(rate=0.5)", r"Unknown defense 'prunning'\. Did you mean 'pruning'\? Valid: .*clipping.*none"),
        ("defense", "none | cliping(max_norm=1)", r"Unknown defense 'cliping'\. Did you mean 'clipping'\?"),
        ("attack", "rigde+ig", r"Unknown attack 'rigde'\. Did you mean 'ridge'\?"),
        ("model", "lennet", r"Unknown model 'lennet'\. Did you mean 'lenet'\?"),
        ("dataset", "photo", r"Unknown dataset 'photo'\. Did you mean 'photos'\?"),
        ("dataset", "zzzzzz", r"Unknown dataset 'zzzzzz'\. Valid: cifar10"),
        ("defense", "pruning(rat=0.5)", r"'pruning\(rat=0.5\)' takes no option 'rat'\. Did you mean 'rate'\? Valid: by, rate, scope"),
        ("attack", "ridge+ig(iteration=5)", r"takes no option 'iteration'\. Did you mean 'iterations'\?"),
        ("model", "lenet(trained_epoch=1)", r"takes no option 'trained_epoch'\. Did you mean 'trained_epochs'\?"),
        ("dataset", "photos(sizes=32)", r"takes no option 'sizes'\. Did you mean 'size'\?"),
        ("defense", "none(x=1)", r"takes no option 'x'\. Valid: none"),
        ("defense", "pruning", r"The defense 'pruning' needs rate: write pruning\(rate=\.\.\.\)"),
        ("defense", "none | pruning(scope='layer')", r"needs rate"),
        ("dataset", "npz", r"needs path: write npz\(path=\.\.\.\)"),
        ("dataset", "cifar10(download=True)", r"needs root"),
        ("defense", "no/such/file.py:Mine", r"names the file no/such/file.py, which does not exist"),
        ("defense", "no_such_module.at_all:Mine", r"names the module 'no_such_module.at_all', which cannot be found\. Is it installed\?"),
        ("defense", "gitbench_defenses.pruning:Prunning(rate=1)", r"pruning.py has no 'Prunning'\. Did you mean 'Pruning'\?"),
        ("defense", "gitbench_defenses.pruning:Pruning", r"needs rate"),
    ],
)
def test_check_names_the_mistake_and_the_nearest(kind: Kind, text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        check_spec(parse_spec(kind, text))


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("defense", "none"),
        ("defense", "clipping(max_norm=1.0) | pruning(rate=0.9, scope='layer')"),
        ("defense", "gitbench_defenses.pruning:Pruning(rate=0.9)"),
        ("attack", "ridge+ig(iterations=3)"),
        ("model", "lenet(trained_epochs=2, mode='train')"),
        ("dataset", "photos(public=8, private=4, size=16, seed=1)"),
        ("dataset", "stl10(root='x', download=True)"),  # its constructor is inherited
    ],
)
def test_check_accepts(kind: Kind, text: str) -> None:
    check_spec(parse_spec(kind, text))


def test_check_imports_neither_torch_nor_the_component(tmp_path: Path) -> None:
    file = write(tmp_path / "loud.py", "raise RuntimeError('imported')\nclass Loud:\n    def __init__(self, *, a): ...\n")
    script = (
        "import sys\n"
        "from gitbench.identity.loading import check_spec\n"
        "from gitbench.identity.names import locate\n"
        "from gitbench.identity.sources import source_digest\n"
        "from gitbench.core.spec import parse_spec\n"
        "check_spec(parse_spec('defense', 'pruning(rate=0.9)'))\n"
        "check_spec(parse_spec('attack', 'ridge+ig'))\n"
        "check_spec(parse_spec('model', 'lenet'))\n"
        "check_spec(parse_spec('dataset', 'photos'))\n"
        f"check_spec(parse_spec('defense', {f'{file}:Loud(a=1)'!r}))\n"
        "source_digest(locate('defense', parse_spec('defense', 'pruning(rate=0.9)').parts[0]))\n"
        "assert 'torch' not in sys.modules and 'gitbench_defenses.pruning' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_check_ends_for_a_class_named_like_its_base(tmp_path: Path) -> None:
    file = write(tmp_path / "same.py", "from gitbench_defenses.pruning import Pruning\n\nclass Pruning(Pruning):\n    pass\n")
    script = f"from gitbench.core import spec; from gitbench.identity.loading import check_spec; check_spec(spec.parse_spec('defense', {f'{file}:Pruning(rate=0.5)'!r}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=5, check=False)
    assert done.returncode == 0, done.stderr


def test_check_accepts_the_fields_of_a_dataclass(tmp_path: Path) -> None:
    body = "from dataclasses import dataclass\nfrom gitbench import Defense\n\n@dataclass\nclass Mine(Defense):\n    rate: float = 0.5\n"
    check_spec(parse_spec("defense", f"{write(tmp_path / 'mine.py', body)}:Mine(rate=0.1)"))


def test_check_reads_what_a_class_inherits(tmp_path: Path) -> None:
    body = SCALE + "\nclass Child(Scale):\n    pass\n\nclass Open(Scale):\n    def __init__(self, **options): ...\n\nAlias = Child\n"
    file = write(tmp_path / "mine.py", body)
    check_spec(parse_spec("defense", f"{file}:Child(factor=2)"))
    check_spec(parse_spec("defense", f"{file}:Open(anything=2)"))
    check_spec(parse_spec("defense", f"{file}:Alias(unknown=2)"))  # only importing would tell; the constructor will
    with pytest.raises(SpecError, match=r"takes no option 'fctor'\. Did you mean 'factor'"):
        check_spec(parse_spec("defense", f"{file}:Child(fctor=2)"))
    with pytest.raises(SpecError, match=r"has no 'Chld'\. Did you mean 'Child'"):
        check_spec(parse_spec("defense", f"{file}:Chld"))


def test_check_names_a_file_that_is_not_python(tmp_path: Path) -> None:
    file = write(tmp_path / "broken.py", "class Mine(:\n")
    with pytest.raises(SpecError, match=r"broken.py is not valid Python: .*line 1"):
        check_spec(parse_spec("defense", f"{file}:Mine"))
    file = tmp_path / "null.py"
    file.write_bytes(b"\x00\xff")
    with pytest.raises(SpecError, match=r"null.py is not valid Python"):
        check_spec(parse_spec("defense", f"{file}:Mine"))
