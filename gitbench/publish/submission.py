"""Submissions: inputs that others reconstructed, scored here (``gitbench score``); and what they start from (``gitbench observe``)."""

from __future__ import annotations

import hashlib
import json
import stat
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from gitbench.attacker.observation import Observation
from gitbench.clients.datasets.npz import read_array
from gitbench.clients.modalities.image import ImageData
from gitbench.core.errors import AttackError, GitbenchError, StoreError
from gitbench.core.modality import Modality
from gitbench.core.text import shown
from gitbench.identity.case import Case
from gitbench.identity.known_modalities import default_gate
from gitbench.judge.verdict import exposures, judge_results
from gitbench.measure.evaluator import Evaluator
from gitbench.publish.manifest import Claim, read_claim
from gitbench.store.folder import Store, write_atomic
from gitbench.store.result import Result

KEY = "inputs"
_FLOATS, _INTEGERS = ("F16", "BF16", "F32", "F64"), ("U8", "I16", "I32", "I64")


def score_submission(path: Path, *, store: Store | None = None, device: str = "auto") -> Result:
    """Score the reconstructions that stand beside a claim, and keep the result.

    The victims are drawn anew from what the claim names. Neither the model nor the defense is built: no code of the
    claim runs.

    Args:
        path: the claim.
        store: where the result and its picture go.
        device: to score on.

    Raises:
        StoreError: the claim cannot be read or used.
        DataError: its dataset cannot.
        AttackError: the reconstructions are none of its victims.
    """
    claim = read_claim(path)
    chain = Evaluator(store=store, device=device)
    shape = tuple(chain.truth(_case(path, claim, "")).shape)
    found = read_reconstructions(path.parent / claim.inputs, shape, chain.modality(_case(path, claim, "")))
    case = _case(path, claim, hashlib.sha256(found.numpy().tobytes()).hexdigest()[:16])
    result = chain.score(case, found)
    gate = default_gate(case.dataset)
    judgement = judge_results([result], None if case.is_control else [], gate=gate)
    judged = result.model_copy(
        update={
            "gate": gate,
            "verdict": judgement.verdict,
            "verdict_reason": judgement.reason,
            "exposure": exposures([result], gate),
            "settings": {"author": repr(claim.author), "name": repr(claim.name)},
        }
    )
    if store:
        store.save(judged)
    return judged


def read_reconstructions(path: Path, shape: tuple[int, ...], modality: Modality | None = None) -> torch.Tensor:
    """The tensor ``inputs`` of a safetensors file or npz archive, as float32; of a kind of data that is discrete, as integers.

    Args:
        path: the file. Nothing in it is unpickled.
        shape: ``(V, B, *shape)`` of the victims.
        modality: what kind of data they are; None is images.

    Raises:
        AttackError: it is none, of another shape, not finite, or no inputs of that kind.
        DataError: the archive cannot be read.
    """
    try:
        regular = stat.S_ISREG(path.stat().st_mode)
    except OSError as error:
        raise AttackError(f"Cannot read the reconstructions {path}: {error}.") from error
    if not regular:
        raise AttackError(f"Expected reconstructions in {path}, found no regular file.")
    modality = modality or ImageData()
    floats = modality.dtype.startswith("float")
    found = _of_safetensors(path, shape, floats=floats) if path.suffix == ".safetensors" else _of_npz(path, floats=floats)
    if tuple(found.shape) != shape or found.is_floating_point() != floats:
        wanted = f"{'floats' if floats else 'integers'} {shape}, victims first"
        raise AttackError(f"{path}: expected {KEY!r} to be {wanted}, got {found.dtype} {tuple(found.shape)}.")
    found = (found.float() if floats else found.long()).contiguous()
    if not torch.isfinite(found).all():
        raise AttackError(f"{path}: {int((~torch.isfinite(found)).sum())} values are NaN or infinite, expected finite ones.")
    problem = modality.problem(found)
    if problem:
        raise AttackError(f"{path}: {problem}.")
    return found


def write_observation(path: Path, out: Path, *, device: str = "auto") -> Observation:
    """Write what the attacker of a claim's case gets to see, as safetensors.

    ``update/NAME`` is the update ``(V, *shape)`` of the parameter ``NAME``; of several rounds what they are combined to, and the single
    ones are ``rounds/NUMBER/NAME``. Where the threat model grants them there are
    ``model/NAME`` (parameters and buffers), ``labels`` and ``batchnorm/NAME/mean`` and ``/variance``. Public images are the dataset's
    public split. The metadata have the case.

    Args:
        path: the claim; its reconstructions need not exist yet.
        out: the file to write.
        device: to compute on.

    Raises:
        GitbenchError: a part of the case cannot be built, or the file not be written.
    """
    claim = read_claim(path)
    case = _case(path, claim, "")
    seen = Evaluator(device=device).observe(case)
    tensors = {f"update/{name}": tensor for name, tensor in seen.update.tensors.items()}
    if case.rounds > 1:
        for number, update in enumerate(seen.rounds):
            tensors |= {f"rounds/{number}/{name}": tensor for name, tensor in update.tensors.items()}
    if "parameters" in seen.granted:
        tensors |= {f"model/{name}": tensor for name, tensor in seen.model.state_dict().items()}
    if "labels" in seen.granted:
        tensors["labels"] = seen.labels
    if "batchnorm_statistics" in seen.granted:
        for name, (mean, variance) in seen.batchnorm_statistics.items():
            tensors |= {f"batchnorm/{name}/mean": mean, f"batchnorm/{name}/variance": variance}
    told = {"case": json.dumps(case.model_dump(mode="json", exclude={"attack", "code"}))}
    write_atomic(out, save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, told))
    return seen


def _case(path: Path, claim: Claim, digest: str) -> Case:
    try:
        return claim.case(digest=digest or "not made yet")
    except GitbenchError as error:
        raise StoreError(f"{path} cannot be used: {error}") from None


def _of_safetensors(path: Path, shape: tuple[int, ...], *, floats: bool) -> torch.Tensor:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            names = list(file.keys())
            if names != [KEY]:
                raise AttackError(f"{path}: expected one tensor, {KEY!r}, found {shown(sorted(names))}.")
            claimed = file.get_slice(KEY)
            if tuple(claimed.get_shape()) != shape or claimed.get_dtype() not in (_FLOATS if floats else _INTEGERS):  # unread
                raise AttackError(
                    f"{path}: expected {KEY!r} to be {'floats' if floats else 'integers'} {shape}, victims first, "
                    f"got {claimed.get_dtype()} {tuple(claimed.get_shape())}."
                )
            tensor: torch.Tensor = file.get_tensor(KEY)
            return tensor
    except (SafetensorError, OSError, ValueError) as error:
        raise AttackError(f"{path}: expected a safetensors file, got something else, or half of one: {shown(str(error))}.") from None


def _of_npz(path: Path, *, floats: bool) -> torch.Tensor:
    array = read_array(path, KEY)
    if array.dtype.kind not in ("f" if floats else "iu"):
        raise AttackError(f"{path}: expected {KEY!r} to be {'floats' if floats else 'integers'}, got {array.dtype}.")
    if not floats:
        return torch.from_numpy(array.astype("int64"))
    return torch.from_numpy(array.astype("float64" if array.dtype.itemsize > 4 else "float32"))
