"""The fuzz target itself: it accepts its seeds, and so do its past findings."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

FILE = Path(__file__).parents[1] / "fuzz" / "fuzz_inputs.py"


@pytest.fixture(scope="module")
def module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_inputs", FILE)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture(scope="module")
def fuzzer(module: ModuleType, tmp_path_factory: pytest.TempPathFactory):
    return module.Fuzzer(tmp_path_factory.mktemp("fuzz"))


def test_every_target_has_a_seed_that_it_reads(fuzzer) -> None:
    seeds = list(fuzzer.seeds())
    assert {seed[0] for seed in seeds} == set(range(len(fuzzer.targets)))
    for seed in seeds:
        fuzzer(seed)
    read = [seed for seed in seeds if seed[1:2] != b"\x02"]  # one SPEC names a module that is not there
    for seed in read:
        if fuzzer.targets[seed[0]] != fuzzer.member:  # images are no labels
            fuzzer.targets[seed[0]](seed[1:])  # without any error


@settings(max_examples=200)
@given(data=st.data())
def test_changed_seeds_raise_nothing_else(fuzzer, data: st.DataObject) -> None:
    seed = data.draw(st.sampled_from(list(fuzzer.seeds())))
    at = data.draw(st.integers(1, len(seed)))
    cut = data.draw(st.integers(0, 9))
    fuzzer(seed[:at] + data.draw(st.binary(max_size=9)) + seed[at + cut :])


FINDINGS: list[bytes] = []


@pytest.mark.parametrize("found", [b"", b"\x00", b"\xff", *FINDINGS])
def test_past_findings_are_handled(fuzzer, found: bytes) -> None:
    fuzzer(found)


def test_without_atheris_it_says_so_and_succeeds() -> None:
    code = f"import sys; sys.modules['atheris'] = None; sys.argv = ['x']; import runpy; runpy.run_path({str(FILE)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("fuzz: atheris is not installed here")
