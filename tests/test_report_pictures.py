"""The pictures of a report: cut from what a results folder keeps, once each, and none that is private."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gitbench.publish.report.build import build_report
from gitbench.publish.report.images import cut
from gitbench.publish.report.settings import is_built_in
from gitbench.publish.table import tables
from gitbench.store.folder import Store
from gitbench.store.pictures import SHOWN, picture
from report_pages import cell, kept, page_of, report_of, usual_results

NPZ = "npz(path='patients.npz')"


def test_a_strip_is_cut_into_what_was_put_in(tmp_path: Path) -> None:
    truth = (torch.rand(SHOWN + 4, 1, 3, 8, 8) * 255).round() / 255
    strip = tmp_path / "strip.png"
    strip.write_bytes(picture(truth, 1 - truth))
    found = cut(strip, victims=SHOWN + 4)
    assert found is not None
    assert [len(row) for row in found] == [SHOWN, SHOWN]
    for row, stack in zip(found, (truth, 1 - truth), strict=True):
        for png, image in zip(row, stack[:, 0], strict=False):
            (tmp_path / "one.png").write_bytes(png)
            with Image.open(tmp_path / "one.png") as one:
                assert one.size == (8, 8)
                assert torch.equal(torch.tensor(np.asarray(one)), (image * 255).round().byte().permute(1, 2, 0))


@pytest.mark.parametrize(
    "content",
    [b"", b"no picture", b"GIF89a", picture(torch.zeros(3, 1, 1, 8, 8), torch.zeros(3, 1, 1, 8, 8))[:60]],
    ids=["empty", "text", "of another kind", "cut off"],
)
def test_a_strip_that_cannot_be_read_is_none(tmp_path: Path, content: bytes) -> None:
    strip = tmp_path / "strip.png"
    assert cut(strip, victims=3) is None
    strip.write_bytes(content)
    assert cut(strip, victims=3) is None


def test_a_strip_of_before_has_eight_victims(tmp_path: Path) -> None:
    strip = tmp_path / "strip.png"
    Image.new("RGB", (8 * 96, 2 * 96), "red").save(strip)
    found = cut(strip, victims=16)
    assert found is not None
    assert [len(row) for row in found] == [8, 8]


def test_the_truth_is_kept_once_and_the_page_stays_light(tmp_path: Path) -> None:
    results, store = usual_results(), Store(tmp_path)
    strip = picture(torch.rand(4, 1, 3, 8, 8), torch.rand(4, 1, 3, 8, 8))
    for one in results:
        store.save_picture(one.case_id, strip)
    everything = build_report(tables(results), store=store)
    assert len(everything.pictures) == 8
    assert everything.data.pictures_left_out == 0
    little = build_report(tables(kept(store, results) and results), store=store, most=1)
    assert little.data.pictures_left_out == len(results) - 1
    # What leaks most is shown first; the undefended controls come last.
    assert [one.defense for one in little.data.cells if one.seeds[0].truth] == ["pruning(rate=0.5)"]


@pytest.mark.parametrize(
    ("dataset", "built_in"), [("photos", True), ("photos(size=16)", True), (NPZ, False), ("cifar10(root='x')", False), ("((", False)]
)
def test_only_the_built_in_data_is_public(dataset: str, built_in: bool) -> None:
    assert is_built_in(dataset) is built_in


@pytest.mark.parametrize(
    ("dataset", "redact", "shown"), [("photos", None, True), (NPZ, None, False), (NPZ, False, True), ("photos", True, False)]
)
def test_what_was_private_stays_private_unless_asked(tmp_path: Path, dataset: str, redact: bool | None, shown: bool) -> None:
    found = report_of(tmp_path, [cell(dataset=dataset)], redact=redact)
    assert bool(found.pictures) is shown
    assert bool(found.data.cells[0].seeds[0].truth) is shown
    assert bool(found.data.cells[0].seeds[0].found) is shown  # what was made of a private image gives it away too
    assert found.data.settings[0].redacted is not shown
    assert ("left out: these images are private" in page_of(found)) is not shown
