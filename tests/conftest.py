"""Shared fixtures. Light: `pytest --gitbench` in this repository loads this file too, without the test libraries."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from gitbench.clients.data import Data

pytest_plugins = ["pytester"]


def pytest_configure(config: pytest.Config) -> None:
    if not config.option.gitbench:
        from hypothesis import settings

        settings.register_profile("gitbench", deadline=None, derandomize=True, max_examples=25)
        settings.load_profile("gitbench")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """On a busy machine the threads of tiny operations only wait for each other."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data() -> Data:
    from helpers import make_data

    return make_data()


@pytest.fixture(scope="session")
def tiny_npz(tmp_path_factory: pytest.TempPathFactory, data: Data) -> Path:
    from helpers import write_npz

    return write_npz(tmp_path_factory.mktemp("data") / "tiny.npz", data)


@pytest.fixture(scope="session")
def warm(tiny_npz: Path) -> None:
    """Import all that a run imports: pytester forgets what is first imported inside it, and torch cannot be imported twice."""
    import gitbench
    import pytest_gitbench.session

    assert pytest_gitbench.session
    dataset = f"npz(path={str(tiny_npz)!r})"
    result = gitbench.evaluate(
        attack="ridge+ig(iterations=1)", defense="gaussian_noise(std=0.1)", model="mlp", dataset=dataset, victims=2, device="cpu"
    )
    assert result.status == "done", result.error


@pytest.fixture
def bench(pytester: pytest.Pytester, tiny_npz: Path) -> pytest.Pytester:
    """A folder whose [tool.gitbench] makes a matrix of seconds: 8x8 images, mlp, ridge."""
    from helpers import write_matrix

    return write_matrix(pytester, tiny_npz)
