"""What an attack can be told: written once, in its class of options, and known without importing it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest

import gitbench
from gitbench.attacker.attack import load_attack, settings
from gitbench.attacker.attacks.ig import IG
from gitbench.core.errors import SpecError
from gitbench.core.spec import Part, parse_spec
from gitbench.identity.loading import check_spec, load_part
from gitbench.identity.names import entry_points
from helpers import write

HEADER = """
from dataclasses import dataclass, field
import gitbench
from gitbench.attacker.attacks.ig import IG
from gitbench.attacker.options import AdaptiveOptions, AttackOptions
options = dataclass(frozen=True, kw_only=True)
"""
# What a SPEC calls, and a file that Python can build it from. @FROZEN is what the look at the source knows.
FORMS = {
    "own options": (
        "Mine(steps=2, adapt=False)",
        "class Mine(gitbench.Attack):\n    @FROZEN\n    class Options(AdaptiveOptions):\n        steps: int = 1",
    ),
    "another name": (
        "Mine(steps=2)",
        "@FROZEN\nclass Told(AttackOptions):\n    steps: int\nclass Mine(gitbench.Attack):\n    Options = Told",
    ),
    "inherited": ("Mine(iterations=2)", "class Mine(IG): ..."),
    "another decorator": (
        "Mine(steps=2)",
        "class Mine(gitbench.Attack):\n    @options\n    class Options(AttackOptions):\n        steps: int = field(default=1)",
    ),
    "extended": ("Mine(iterations=2, more=1)", "class Mine(IG):\n    @FROZEN\n    class Options(IG.Options):\n        more: int = 0"),
    "a constructor beside": (
        "Mine(c=1)",
        "class Mine(gitbench.Attack):\n    def __init__(self, *, c): ...\n    @FROZEN\n    class Options(AttackOptions):\n        steps: int",
    ),
    "a constructor above": (
        "Mine(c=1)",
        "class Base(gitbench.Attack):\n    def __init__(self, *, c): ...\nclass Mine(Base):\n    @FROZEN\n    class Options(AttackOptions):\n        steps: int",
    ),
    "assigned later": (
        "Mine(c=1)",
        "class Mine(gitbench.Attack): ...\n@FROZEN\nclass Told(AttackOptions):\n    c: int = 1\nMine.Options = Told",
    ),
    "under if": (
        "Mine(c=1)",
        "class Mine(gitbench.Attack):\n    if options:\n        @FROZEN\n        class Options(AttackOptions):\n            c: int = 1",
    ),
}
LOUD = "raise RuntimeError('imported')\n"
ATTACKS = sorted(entry_points("attack"))


def file_of(folder: Path, form: str, first: str = "") -> Path:
    return write(folder / "mine.py", HEADER + first + FORMS[form][1].replace("FROZEN", "dataclass(frozen=True, kw_only=True)"))


@pytest.mark.parametrize("form", FORMS)
def test_what_python_builds_is_not_refused(form: str, tmp_path: Path) -> None:
    call, _ = FORMS[form]
    spec = f"{file_of(tmp_path, form)}:{call}"
    check_spec(parse_spec("attack", spec))
    assert load_attack(spec) is not None


@pytest.mark.parametrize("form", ["own options", "another name", "inherited"])
def test_an_option_that_there_is_not_is_refused_with_the_nearest(form: str, tmp_path: Path) -> None:
    spec = f"{file_of(tmp_path, form, first=LOUD)}:Mine"
    wrong, right = ("iteration", "iterations") if form == "inherited" else ("stps", "steps")
    with pytest.raises(SpecError, match=rf"takes no option '{wrong}'\. Did you mean '{right}'\?"):
        check_spec(parse_spec("attack", f"{spec}({wrong}=1)"))


def test_the_options_of_our_attacks_are_read_without_importing_them() -> None:
    script = (
        "import sys\n"
        "from gitbench.core.spec import Part\n"
        "from gitbench.identity.names import locate\n"
        "from gitbench.identity.signatures import signature_of\n"
        "for name in sys.argv[1:]:\n"
        "    print(name, *sorted(signature_of(locate('attack', Part(name))).keywords))\n"
        "assert 'torch' not in sys.modules\n"
    )
    told = subprocess.run([sys.executable, "-c", script, *ATTACKS], capture_output=True, text=True, check=True, timeout=60).stdout
    for line in told.splitlines():
        name, *found = line.split()
        assert found == sorted(field.name for field in fields(load_part("attack", Part(name)).Options))


@pytest.mark.parametrize("name", ATTACKS)
def test_options_are_frozen_and_named_in_the_settings(name: str) -> None:
    attack = load_attack(name, profile="quick")
    values = attack.options.values()
    assert settings(attack) == {key: repr(value) for key, value in values.items()}
    with pytest.raises(FrozenInstanceError):
        setattr(attack.options, next(iter(values)), 1)
    assert all(set(options) <= set(values) for options in type(attack).profiles.values())


def test_labels_that_are_to_be_known_are_required() -> None:
    assert "labels" not in IG().requires
    assert IG(labels="known").requires == IG.requires | {"labels"}


def test_an_attack_with_a_constructor_of_its_own_is_as_it_was() -> None:
    class Mine(gitbench.Attack):
        def __init__(self, *, steps: int = 3, adapt: bool = False) -> None:
            self.adapt = adapt
            super().__init__()
            self.steps = steps

    assert (repr(Mine(steps=4)), settings(Mine(steps=4))) == ("Mine(steps=4)", {"adapt": "False", "steps": "4"})
