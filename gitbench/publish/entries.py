"""Entries: result files that others measured elsewhere, read with suspicion and shown as theirs (``gitbench leaderboard --entries``)."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from gitbench.core.errors import GitbenchError, StoreError, nearest
from gitbench.core.spec import KINDS, parse_spec
from gitbench.core.text import shown
from gitbench.identity.case import PLAIN_CLIENT, Case, code_digest, core_digest
from gitbench.identity.known_metrics import digest_of_metrics, known_metrics
from gitbench.identity.loading import check_spec
from gitbench.identity.threat import knowledge_of
from gitbench.judge.flags import FLAGS, raised_anew
from gitbench.measure.pixel_error import PSNR_CAP
from gitbench.publish.comparison import BLIND_DIGITS
from gitbench.run.profiles import PROFILES
from gitbench.store.folder import read_result
from gitbench.store.result import NOT_JUDGED, Measure, Result

_LARGEST = 2**24  # bytes; a result of ten thousand victims has half
_MOST_VICTIMS = 5_000  # an interval resamples them thousands of times
_ROUNDING = 1e-6
_PSNR_DIGITS = 0.01  # dB


@dataclass(frozen=True)
class Entry:
    """One result of others, not judged: its verdict and its gate are dropped.

    Args:
        path: the file.
        result: what it says.
        differs: parts of the code that are not as here, or not here at all.
    """

    path: Path
    result: Result
    differs: tuple[str, ...]


def read_entries(paths: Iterable[Path]) -> list[Entry]:
    """Read result files, and all ``*.json`` of folders (a results folder's ``cases/`` too), and check what they claim.

    Raises:
        StoreError: a file is no result, or contradicts itself; the message names the file and what is wrong.
    """
    return [_entry(path) for path in _files(paths)]


def check_victims(entries: Sequence[Entry], results: Iterable[Result]) -> None:
    """Check that entries saw the images that our results of the same victims saw.

    Raises:
        StoreError: the blind guess scores differently on a victim.
    """
    ours: dict[tuple[object, ...], Sequence[float | None]] = {}
    for result in results:
        ours.setdefault(_whose(result.case), _blind(result))
    for entry in entries:
        mine, theirs = ours.get(_whose(entry.result.case), ()), _blind(entry.result)
        for victim, (a, b) in enumerate(zip(mine, theirs, strict=False)):
            if a is not None and b is not None and abs(a - b) > BLIND_DIGITS:
                raise _refused(
                    entry.path, f"its victim {victim} is another image than ours: the blind guess has {b:.2f} dB there, {a:.2f} dB here"
                )


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if not path.exists():
            raise StoreError(f"Expected results of others at {path}: a JSON file or a folder of them. Nothing is there.")
        if not path.is_dir():
            yield path
            continue
        folder = path / "cases" if (path / "cases").is_dir() else path
        found = sorted(folder.glob("*.json"))
        if not found:
            raise StoreError(f"Expected results of others in {folder}: *.json. None is there.")
        yield from found


def _entry(path: Path) -> Entry:
    try:
        size = path.stat().st_size
        if size > _LARGEST:
            raise _refused(path, f"it has {size} bytes, and an entry has at most {_LARGEST}")
        result = read_result(path)
    except OSError as error:
        raise StoreError(f"Cannot read {path}: {error}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise _refused(path, shown(f"{where}: {first['msg']}" if where else first["msg"])) from None
    if result.status != "done":
        raise _refused(path, f"it ended in an error: {shown(result.error)}")
    try:
        _check_case(result.case)
    except GitbenchError as error:
        raise _refused(path, str(error)) from None
    problem = _contradiction(result)
    if problem:
        raise _refused(path, problem)
    return Entry(path, _unjudged(result), _differs(result.case))


def _check_case(case: Case) -> None:
    """What a case names must exist here: what cannot be built cannot be measured again."""
    for kind in KINDS:
        text: str = getattr(case, kind)
        spec = parse_spec(kind, text)
        if str(spec) != text:
            raise StoreError(f"expected the {kind} as it is written out, {str(spec)!r}, got {text!r}")
        if kind in ("dataset", "model"):
            check_spec(spec)
    if list(case.knowledge) != sorted(knowledge_of(case.threat)):
        raise StoreError(f"the threat model {case.threat!r} grants {sorted(knowledge_of(case.threat))}, not {list(case.knowledge)}")
    if case.victims > _MOST_VICTIMS:
        raise StoreError(f"it has {case.victims} victims, and an entry has at most {_MOST_VICTIMS}")
    if case.profile not in PROFILES:
        raise StoreError(f"unknown profile {case.profile!r}.{nearest(case.profile, PROFILES)}")


def _contradiction(result: Result) -> str:
    """What in the figures cannot be; empty where nothing is."""
    unknown = sorted(set(result.metrics) - set(known_metrics()))
    if unknown:
        return f"unknown metric {unknown[0]!r}.{nearest(unknown[0], known_metrics())}"
    if not result.metrics:
        return "it has no metric"
    strange = sorted(flag for flag in result.flags if flag not in FLAGS and not flag.endswith("-not-measured"))
    if strange:
        return f"unknown flag {shown(strange[0])}.{nearest(strange[0], FLAGS)}"
    for name, measure in result.metrics.items():
        info = known_metrics()[name]
        values = [value for value in measure.values if value is not None]
        low, high = -math.inf if info.low is None else info.low, math.inf if info.high is None else info.high
        outside = next((value for value in values if not low - _ROUNDING <= value <= high + _ROUNDING), None)
        if outside is not None:
            return f"{name} cannot be {outside:g}"
        mean = math.fsum(values) / len(values) if values and len(values) == len(measure.values) else None
        if (mean is None) != (measure.mean is None) or (
            mean is not None and measure.mean is not None and abs(mean - measure.mean) > _ROUNDING * max(1, abs(mean))
        ):
            return f"the mean of {name} is {mean}, and it says {measure.mean}"
    return _psnr_problem(result.metrics) if (result.case.client, result.case.batch_size) == (PLAIN_CLIENT, 1) else ""


def _psnr_problem(metrics: Mapping[str, Measure]) -> str:
    """Of one image the squared error and the PSNR are one number."""
    if "mse" not in metrics or "psnr" not in metrics:
        return ""
    for victim, (mse, psnr) in enumerate(zip(metrics["mse"].values, metrics["psnr"].values, strict=True)):
        if mse is None or psnr is None:
            continue
        expected = PSNR_CAP if mse <= 0 else min(PSNR_CAP, -10 * math.log10(mse))
        if abs(expected - psnr) > _PSNR_DIGITS:
            return f"a squared error of {mse:g} is a PSNR of {expected:.2f} dB, and it says {psnr:.2f} (victim {victim})"
    return ""


def _unjudged(result: Result) -> Result:
    """Without the verdict, the gate and what follows from them; the flags that follow from its figures are raised anew."""
    flags = raised_anew(result) - {"control-failed"}
    return result.model_copy(
        update={
            "verdict": "inconclusive",
            "verdict_reason": NOT_JUDGED,
            "gate": {},
            "exposure": {},
            "flags": tuple(sorted(flags)),
        }
    )


def _differs(case: Case) -> tuple[str, ...]:
    """The parts of the code whose digests are not those of the code here."""
    here: dict[str, str] = {"core": core_digest(), "metrics": digest_of_metrics()}
    for kind in KINDS:
        with contextlib.suppress(GitbenchError):  # a component that they alone have
            here[kind] = code_digest(parse_spec(kind, getattr(case, kind)))
    return tuple(kind for kind in ("core", "metrics", *KINDS) if kind not in here or case.code.get(kind) != here[kind])


def _whose(case: Case) -> tuple[object, ...]:
    """What must be equal for two cases to attack the same images; of more victims the first ones are the same."""
    return case.dataset, case.client, case.batch_size, case.seed


def _blind(result: Result) -> list[float | None]:
    """PSNR of the blind guess per victim: it tells the images apart."""
    if not {"psnr", "psnr_gain"} <= result.metrics.keys():
        return []
    pairs = zip(result.metrics["psnr"].values, result.metrics["psnr_gain"].values, strict=True)
    return [None if a is None or b is None else a - b for a, b in pairs]


def _refused(path: Path, why: str) -> StoreError:
    return StoreError(f"{path} is not taken: {why.rstrip('.')}. Correct the file, or leave it out.")
