"""Where names lead: entry points, files, modules, and the names that modules of gitbench had formerly."""

from __future__ import annotations

import importlib
from importlib import metadata
from pathlib import Path

import pytest
import torch

import gitbench
from gitbench.clients.data import Data
from gitbench.core.errors import SpecError
from gitbench.core.former import present
from gitbench.core.spec import Part, parse_spec
from gitbench.identity import names, objects
from gitbench.identity.loading import check_spec, load_part
from gitbench.identity.names import locate
from gitbench.store import folder
from helpers import write


def test_check_refuses_a_path_that_is_too_long() -> None:
    with pytest.raises(SpecError, match="does not exist"):
        check_spec(parse_spec("defense", f"{'x' * 300}.py:Mine"))


def test_check_does_not_import_the_package_of_a_missing_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "gitbench_test_loud" / "__init__.py", "raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SpecError, match="cannot be found"):
        check_spec(parse_spec("defense", "gitbench_test_loud.missing:Mine"))


def test_two_packages_with_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def points(*values: str) -> list[metadata.EntryPoint]:
        return [metadata.EntryPoint("mine", value, "gitbench.defenses") for value in values]

    monkeypatch.setattr(metadata, "entry_points", lambda group: points("a:A", "b:B"))
    read = names._installed.__wrapped__  # the cache keeps what is really installed
    with pytest.raises(SpecError, match=r"Two packages register the defense 'mine': a:A and b:B\. Uninstall one"):
        read("defense")
    monkeypatch.setattr(metadata, "entry_points", lambda group: points("a:A", "a:A"))
    assert read("defense") == {"mine": "a:A"}


@pytest.mark.parametrize(
    ("former", "now"),
    [
        ("gitbench.attacks.ig", "gitbench.attacker.attacks.ig"),
        ("gitbench.attacks.git", "gitbench.attacker.attacks.git"),
        ("gitbench.models.lenet", "gitbench.clients.models.lenet"),
        ("gitbench.metrics.ssim", "gitbench.measure.metrics.ssim"),
        ("gitbench.clients.models.lenet", "gitbench.clients.models.lenet"),
        ("gitbench", "gitbench"),
        ("other.attacks.ig", "other.attacks.ig"),
    ],
)
def test_a_module_within_one_that_moved_has_moved_with_it(former: str, now: str) -> None:
    assert present(former) == now
    if former.startswith("gitbench"):
        assert importlib.import_module(former) is importlib.import_module(now)


def test_a_spec_may_name_a_module_as_it_was_called(data: Data) -> None:
    assert locate("attack", Part("gitbench.attacks.ig:IG")) == locate("attack", Part("gitbench.attacker.attacks.ig:IG"))
    attack = gitbench.load_attack("gitbench.attacks.ig:IG(iterations=5)")
    assert type(attack) is load_part("attack", Part("ig"))
    assert repr(attack) == "gitbench.attacks.ig:IG(iterations=5)"
    assert isinstance(gitbench.load_model("gitbench.models.lenet:LeNet(layers=2)", data), torch.nn.Module)
    with pytest.raises(SpecError, match=r"takes no option 'iteration'\. Did you mean 'iterations'"):
        check_spec(parse_spec("attack", "gitbench.attacks.ig:IG(iteration=5)"))
    with pytest.raises(SpecError, match=r"names the module 'gitbench\.attacks\.igg', which cannot be found"):
        gitbench.load_attack("gitbench.attacks.igg:IG")


def test_the_functions_of_a_module_that_became_a_room_are_still_found() -> None:
    from gitbench.identity import digest_of_object
    from gitbench.registry import build, check, digest_of_module, entry_points, load, locate, part_digest, register, source_digest
    from gitbench.store import Store, write_atomic

    assert (Store, write_atomic) == (folder.Store, folder.write_atomic)
    assert digest_of_object is objects.digest_of_object
    assert all(map(callable, (build, check, digest_of_module, entry_points, load, locate, part_digest, register, source_digest)))
    check(parse_spec("attack", "ridge"))
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        from gitbench.store import nothing  # noqa: F401
