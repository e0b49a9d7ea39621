"""Files of reconstructions from others: what is odd in one is refused before it is read."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from gitbench.core.errors import AttackError, DataError
from gitbench.publish.submission import read_reconstructions
from hostile import harmless, quickly

SHAPE = (3, 2, 3, 8, 8)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"inputs": torch.rand(3, 2, 3, 8, 9)}, "to be floats (3, 2, 3, 8, 8)"),
        ({"inputs": torch.rand(6, 3, 8, 8)}, "victims first, got F32 (6, 3, 8, 8)"),
        ({"inputs": torch.zeros(SHAPE, dtype=torch.uint8)}, "to be floats"),
        ({"inputs": torch.full(SHAPE, torch.nan)}, "1152 values are NaN or infinite"),
        ({"inputs": torch.full(SHAPE, torch.inf)}, "1152 values are NaN or infinite"),
        ({"inputs": torch.full(SHAPE, 1.01)}, "expected values in [0, 1], got values in [1.01, 1.01]"),
        ({"inputs": torch.full(SHAPE, -1e-3)}, "Clamp them"),
        ({"images": torch.rand(SHAPE)}, "expected one tensor, 'inputs', found ['images']"),
        ({"inputs": torch.rand(SHAPE), "more": torch.rand(1)}, "expected one tensor"),
        ({"\x1b[31m": torch.rand(1)}, "expected one tensor"),
    ],
)  # fmt: skip
def test_reconstructions_that_cannot_be_are_refused(tmp_path: Path, tensors: dict[str, torch.Tensor], message: str) -> None:
    path = tmp_path / "found.safetensors"
    save_file(tensors, path)
    with pytest.raises(AttackError) as caught:
        read_reconstructions(path, SHAPE)
    assert message in str(caught.value)
    assert harmless(str(caught.value))


HEADER = json.dumps({"inputs": {"dtype": "F32", "shape": list(SHAPE), "data_offsets": [0, 4608]}}).encode()
HUGE = json.dumps({"inputs": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04N.",
        b"PK\x03\x04",
        struct.pack("<Q", 2**60),
        struct.pack("<Q", len(HEADER)) + HEADER,
        struct.pack("<Q", len(HUGE)) + HUGE,
    ],
    ids=["empty", "pickle", "zip", "header", "truncated", "huge"],
)
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "found.safetensors"
    path.write_bytes(content)
    with quickly(), pytest.raises(AttackError, match="expected a safetensors file"):
        read_reconstructions(path, SHAPE)


def test_archives_with_pickles_integers_and_lies_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "found.npz"
    np.savez(path, inputs=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="pickled object"):
        read_reconstructions(path, SHAPE)
    np.savez(path, inputs=np.zeros(SHAPE, dtype=np.int64))
    with pytest.raises(AttackError, match="to be floats, got int64"):
        read_reconstructions(path, SHAPE)
    np.savez(path, other=np.zeros(1))
    with pytest.raises(DataError, match="expected the array 'inputs', found other"):
        read_reconstructions(path, SHAPE)
    header = b"\x93NUMPY\x01\x00v\x00" + f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**40},)}}".ljust(117).encode() + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("inputs.npy", header)
    with quickly(), pytest.raises(DataError, match="it claims"):
        read_reconstructions(path, SHAPE)
    np.savez_compressed(path, inputs=np.zeros((3, 2, 3, 8, 9), dtype=np.float32))
    with pytest.raises(AttackError, match="victims first"):
        read_reconstructions(path, SHAPE)
