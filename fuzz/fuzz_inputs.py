"""Fuzz target for everything that gitbench reads: SPECs, options, results, baselines, archives, images, submissions, suites.

The first byte of an input picks what the rest is read as. Only a :class:`gitbench.GitbenchError` with a message
that a terminal can show may come out. Run it for a minute (needs atheris: Linux, CPython)::

    python fuzz/fuzz_inputs.py --seconds 60

Further arguments go to libFuzzer. A finding is written to ``crash-*``; give the file as an argument to run it again.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import save

try:
    import atheris
except ImportError:  # no wheel for this system: the test suite still runs the targets on their seeds
    atheris = None

with atheris.instrument_imports(include=["gitbench", "pytest_gitbench"]) if atheris else contextlib.nullcontext():
    from gitbench.clients.data import load_dataset
    from gitbench.clients.datasets.folder import FORMATS, Folder
    from gitbench.clients.datasets.npz import Npz
    from gitbench.core.errors import GitbenchError
    from gitbench.core.spec import KINDS, parse_spec
    from gitbench.identity.loading import check_spec
    from gitbench.publish import leaderboard, suite_page
    from gitbench.publish.baseline import cells_of, dump, load_baseline
    from gitbench.publish.comment import markdown
    from gitbench.publish.comparison import compare
    from gitbench.publish.entries import read_entries
    from gitbench.publish.manifest import read_claim
    from gitbench.publish.submission import read_reconstructions
    from gitbench.publish.suite_table import suite_table
    from gitbench.publish.table import tables
    from gitbench.run.bench import case_of
    from gitbench.run.config import make_config
    from gitbench.run.matrix import make_cells
    from gitbench.run.suite import read_suite
    from gitbench.run.suite_files import suite_files
    from gitbench.run.suite_plan import SuiteRun
    from gitbench.store.folder import Store
    from gitbench.store.result import Environment, Measure, Result
    from pytest_gitbench.options import read_settings

_SHAPE = (2, 1, 3, 4, 4)
_CLAIM = (
    b'{"kind": "gitbench submission", "schema": 1, "name": "a", "author": "b", "inputs": "x.npz", '
    b'"dataset": "photos", "model": "lenet", "defense": "none", "victims": 2}'
)
ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


class Fuzzer:
    """Reads inputs below one folder, and keeps nothing between them.

    Args:
        folder: an empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._case_id = _result().case_id
        self._cells = cells_of([_result()])
        self.targets: tuple[Callable[[bytes], None], ...] = (
            self.spec,
            self.options,
            self.result,
            self.baseline,
            self.archive,
            self.member,
            self.image,
            self.entry,
            self.claim,
            self.reconstructions,
            self.suite,
        )

    def __call__(self, data: bytes) -> None:
        """One input."""
        if not data:
            return
        target = self.targets[data[0] % len(self.targets)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                target(data[1:])
            except GitbenchError as error:
                message = str(error)
                assert message
                assert len(message) < 100_000

    def seeds(self) -> Iterator[bytes]:
        """Inputs that reach far into each target."""
        stream = io.BytesIO()
        np.savez(stream, **{name: np.zeros((2, 8, 8, 3), np.uint8) if "images" in name else np.arange(2) for name in ARRAYS})
        array, images = io.BytesIO(), {name: io.BytesIO() for name in FORMATS}
        np.save(array, np.zeros((2, 8, 8), np.uint8))
        for name, image in images.items():
            Image.new("RGB", (9, 7)).save(image, name)
        one = _result().to_json().encode()
        texts = {
            self.spec: [
                b"\x00ridge+ig(iterations=3)",
                b"\x01clipping(max_norm=1.0) | pruning(rate=0.9)",
                b"\x02a.b:C(a=[1, {'b': (None,)}])",
            ],
            self.options: [
                b"[tool.gitbench]\nvictims = 3\nattack = ['ig']\nthreshold = {psnr = 3.0}\ntimeout = 5\nresults = 'x'\n",
                b"[tool.gitbench]\nprofile = 'quick'\nseeds = 2\ndefense = 'none'\nknown_leaks = ['*']\nleaderboard = 'none'\n",
            ],
            self.result: [one],
            self.baseline: [one, b"[" + one + b"]", dump(cells_of([_result()])).encode()],
            self.archive: [stream.getvalue()],
            self.member: [array.getvalue()],
            self.image: [image.getvalue() for image in images.values()],
            self.entry: [_result("psnr_gain").to_json().encode()],
            self.claim: [_CLAIM],
            self.reconstructions: [save({"inputs": np.zeros(_SHAPE, np.float32)})],
            self.suite: [path.read_bytes() for path in suite_files().values()],
        }
        for which, target in enumerate(self.targets):
            for text in texts[target]:
                yield bytes([which]) + text

    def spec(self, data: bytes) -> None:
        kind, text = KINDS[data[0] % len(KINDS) if data else 0], data[1:].decode("utf-8", "surrogateescape")
        found = parse_spec(kind, text)
        assert parse_spec(kind, str(found)) == found
        assert found.label.isprintable()
        check_spec(found)

    def options(self, data: bytes) -> None:
        path = self._folder / "pyproject.toml"
        path.write_bytes(data)
        config = make_config(read_settings(path), {})
        if config.seeds * len(config.attack) * len(config.defense) * len(config.model) * len(config.dataset) <= 10:
            make_cells(config)

    def result(self, data: bytes) -> None:
        store = Store(self._folder / "results")
        path = store.case_path(self._case_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        for table in tables(list(store.results())):
            leaderboard.files(table)
        store.load(self._case_id)

    def entry(self, data: bytes) -> None:
        path = self._folder / "entry.json"
        path.write_bytes(data)
        for table in tables([], read_entries([path])):
            leaderboard.files(table)

    def claim(self, data: bytes) -> None:
        path = self._folder / "claim.json"
        path.write_bytes(data)
        case = read_claim(path).case(digest="0")
        assert str(parse_spec("attack", case.attack)) == case.attack

    def reconstructions(self, data: bytes) -> None:
        path = self._folder / "found.safetensors"
        path.write_bytes(data)
        assert read_reconstructions(path, _SHAPE).shape == _SHAPE

    def suite(self, data: bytes) -> None:
        path = self._folder / "suite.toml"
        path.write_bytes(data)
        suite = read_suite(path)
        given = {need.name: "photos" for need in suite.data}
        run = SuiteRun(suite="suite", data=given, public=dict.fromkeys(given, 2), profile="quick", victims=2, seeds=1)
        table = suite_table(suite, run, [_result()])
        suite_page.render(table)
        suite_page.terminal_lines(table)

    def baseline(self, data: bytes) -> None:
        path = self._folder / "baseline.json"
        path.write_bytes(data)
        found = load_baseline(path, errors=True)
        for other in (found, self._cells):
            markdown(compare(found, other))

    def archive(self, data: bytes) -> None:
        path = self._folder / "raw.npz"
        path.write_bytes(data)
        load_dataset(Npz(path=str(path)))

    def member(self, data: bytes) -> None:
        path = self._folder / "member.npz"
        with zipfile.ZipFile(path, "w") as opened:  # intact around the member: check sums stop most changes elsewhere
            for name in ARRAYS:
                opened.writestr(f"{name}.npy", data)
        load_dataset(Npz(path=str(path)))

    def image(self, data: bytes) -> None:
        for name in ("train/a", "train/b", "test/a"):
            path = self._folder / "images" / name / "x.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        load_dataset(Folder(path=str(self._folder / "images"), size=8))


def _result(*metrics: str) -> Result:
    case = case_of(
        attack="ig", defense="none", model="lenet", dataset="photos", threat="server", profile="quick", victims=2, batch_size=1, seed=0
    )
    return Result(
        case=case,
        case_id=case.case_id,
        status="done",
        verdict="leaks",
        verdict_reason="made up",
        gate={"psnr_gain": 3.0},
        metrics={name: Measure(mean=9.0, low=8.0, high=10.0, values=(8.0, 10.0)) for name in metrics or ("psnr_gain", "mse")},
        environment=Environment(gitbench="0", torch="2", torchvision="0", python="3", platform="Linux", device="cpu", threads=1),
        finished_at="2025-01-01T00:00:00+00:00",
    )


def main(arguments: Sequence[str]) -> None:
    """Fuzz, until time is up or something is found."""
    parser = argparse.ArgumentParser(description="Fuzz everything that gitbench reads.")
    parser.add_argument("--seconds", type=int, default=60, help="how long (default: %(default)s)")
    given, further = parser.parse_known_args(arguments)
    if atheris is None:
        sys.stdout.write("fuzz: atheris is not installed here (it has wheels for Linux and CPython only): nothing was fuzzed.\n")
        return
    folder = Path(tempfile.mkdtemp(prefix="gitbench-fuzz-"))
    corpus = folder / "corpus"
    corpus.mkdir()
    fuzzer = Fuzzer(folder)
    for number, seed in enumerate(fuzzer.seeds()):
        (corpus / str(number)).write_bytes(seed)
    # A single input may take a minute (of the wall: the machine may be busy) and 4 GiB, torch included; more is a finding.
    limits = [f"-max_total_time={given.seconds}", "-timeout=60", "-rss_limit_mb=4096", "-max_len=65536"]
    inputs = [] if any(not argument.startswith("-") for argument in further) else [str(corpus)]
    atheris.Setup([sys.argv[0], *limits, *further, *inputs], fuzzer)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
