"""What an attack may be told is written in many ways, and none that Python builds is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from gitbench.attacker.attack import load_attack
from gitbench.clients.defense import Defense
from gitbench.core.errors import SpecError
from gitbench.core.spec import parse_spec
from gitbench.identity.loading import build_part, check_spec
from helpers import write

HEADER = """
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar
import gitbench
from gitbench.attacker.options import AttackOptions

@dataclass(frozen=True, kw_only=True)
class Base(AttackOptions):
    b: int
"""
# What a SPEC calls, and the body of an attack with a class of options.
FORMS = {
    "a default for a field of the base": (
        "Mine",
        "class Mine(gitbench.Attack):\n    @dataclass(frozen=True, kw_only=True)\n    class Options(Base):\n        b: int = 2",
    ),
    "a field of the class alone": (
        "Mine(a=1)",
        "class Mine(gitbench.Attack):\n    @dataclass(frozen=True, kw_only=True)\n    class Options(AttackOptions):\n        c: ClassVar[int]\n        _: KW_ONLY\n        a: int",
    ),
    "a constructor of its own": (
        "Mine(c=1)",
        "class Mine(gitbench.Attack):\n    class Options(AttackOptions):\n        a: int\n        def __init__(self, *, c): ...",
    ),
    "one of two": ("Mine", "class Mine(gitbench.Attack):\n    Options = Base\n    Options = AttackOptions"),
    "a profile gives it": ("Mine", "class Mine(gitbench.Attack):\n    profiles = {'quick': {'b': 1}}\n    Options = Base"),
    "a dataclass that is no constructor": (
        "Mine(c=1)",
        ("class Mine(gitbench.Attack):\n    @dataclass(init=False, frozen=True)\n    class Options(AttackOptions):\n        a: int\n"
        "        __init__ = lambda self, c: None"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_an_attack_that_python_builds_is_not_refused(form: str, tmp_path: Path) -> None:
    call, source = FORMS[form]
    spec = f"{write(tmp_path / 'mine.py', HEADER + source)}:{call}"
    check_spec(parse_spec("attack", spec))
    load_attack(spec, profile="quick")


def test_a_class_called_options_is_something_else_in_a_defense(tmp_path: Path) -> None:
    source = "class Mine(gitbench.Defense):\n    @dataclass\n    class Options:\n        a: int"
    spec = parse_spec("defense", f"{write(tmp_path / 'mine.py', HEADER + source)}:Mine")
    check_spec(spec)
    build_part("defense", spec.parts[0], Defense)


def test_a_profile_may_give_what_an_attack_needs(tmp_path: Path) -> None:
    source = (
        "class Mine(gitbench.Attack):\n"
        "    profiles = {'quick': {'steps': 1}}\n"
        "    def __init__(self, *, steps): self.steps = steps\n"
        "class Child(Mine):\n"
        "    def __init__(self, *, steps): self.steps = steps\n"
    )
    file = write(tmp_path / "mine.py", HEADER + source)
    for name in ("Mine", "Child"):
        assert load_attack(f"{file}:{name}", profile="quick").steps == 1
        with pytest.raises(SpecError, match="steps"):
            load_attack(f"{file}:{name}")
