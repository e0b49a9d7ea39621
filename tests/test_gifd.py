"""What gifd promises: stages of a generator, l1 balls around their features, and the image that matches best."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from generated import observe, run
from hypothesis import given
from hypothesis import strategies as st

from gitbench.attacker.attack import load_attack
from gitbench.attacker.attacks.gifd import GIFD, FeatureSearch, behind
from gitbench.attacker.fit_cache import FitCache, identity
from gitbench.attacker.observation import Observation
from gitbench.attacker.tools.generator import Generator, through
from gitbench.attacker.tools.labels import infer_labels
from gitbench.attacker.tools.matching import Objective
from gitbench.attacker.tools.simplex import onto_l1_ball
from gitbench.clients.data import Data
from gitbench.core.errors import AttackError, SpecError
from gitbench.core.progress import silent
from gitbench.core.random import make_generator, seeded
from gitbench.run.bench import case_of
from helpers import write


class Counter:
    """Counts what is told of a search."""

    steps = 0

    def __call__(self, what: str, done: int, total: int) -> None:
        self.steps += "generator" not in what


FAST = {"latent_iterations": 4, "iterations": 9, "restarts": 2, "channels": 4, "latent": 16, "epochs": 1}
PAIRS = """
import torch
from torch import nn


class First(nn.Module):
    def forward(self, codes):
        return codes[:, :6].reshape(-1, 3, 2), codes[:, 6:]


class Last(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        self.weight = nn.Parameter(torch.linspace(-1, 1, shape[1] * shape[2] * 4).reshape(4, -1))

    def forward(self, colours, rest):
        flat = colours.mean(2)[:, :, None] + (rest @ self.weight)[:, None]
        return flat.sigmoid().reshape(-1, *self.shape)


class Own(nn.Module):
    latent = 10

    def __init__(self, shape):
        super().__init__()
        self.stages = nn.ModuleList([First(), Last(shape)])


def factory(shape):
    return Own(shape)


def wrong(shape):
    return Own((shape[0], 2, 2))
"""


# ------------------------------------------------------------------ the ball


@given(seed=st.integers(0, 10_000), radius=st.floats(0.0, 20.0), width=st.integers(1, 12))
def test_projection_onto_the_ball(seed: int, radius: float, width: int) -> None:
    rows = torch.randn(5, width, generator=make_generator(seed)).double() * 3
    radii = torch.full((5,), radius, dtype=torch.float64)
    found = onto_l1_ball(rows, radii)
    assert (found.abs().sum(1) <= radii + 1e-9).all()
    assert (found * rows >= 0).all()  # no sign changes
    assert torch.allclose(onto_l1_ball(found, radii), found, atol=1e-9)
    inside = rows.abs().sum(1) <= radii
    assert torch.equal(found[inside], rows[inside])
    # No other point of the ball is nearer.
    other = torch.randn(5, width, generator=make_generator(seed + 1)).double()
    other = other / other.abs().sum(1, keepdim=True) * radii[:, None]
    assert ((found - rows).square().sum(1) <= (other - rows).square().sum(1) + 1e-9).all()


# ------------------------------------------------------------------ the stages


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 28, 28), (3, 33, 20)])
def test_the_stages_are_the_generator(shape: tuple[int, int, int]) -> None:
    network, codes = Generator(shape, latent=8, channels=2), torch.randn(2, 8, generator=make_generator(0))
    assert len(network.stages) == 4
    assert torch.equal(through(network.stages, codes)[0], network(codes))
    features = behind(network.stages[0], (codes[:, None],))
    assert features[0].shape[:2] == (2, 1)


def feature_search(observation: Observation, radius: float | None, lr: float = 1.0) -> FeatureSearch:
    with seeded(make_generator(0)):
        network = Generator(observation.input_shape, latent=16, channels=4).requires_grad_(False)
    matching = functools.partial(Objective(observation, distance="layerwise"), labels=infer_labels(observation))
    codes = torch.randn(observation.victims, observation.batch_size, 16, generator=make_generator(0))
    features = behind(network.stages[0], (codes,))
    return FeatureSearch(matching, GIFD.Options(**FAST, lr=lr), network.stages[1:], features, silent, stage=1, radius=radius, iterations=6)


@pytest.mark.parametrize("radius", [0.1, None])
def test_features_stay_within_the_ball_around_their_start(radius: float | None, data: Data) -> None:
    search = feature_search(observe(data, batch=2), radius)
    start = search._features[0].flatten(2)
    search.run()
    moved = (search.best.found[1].flatten(2) - start).abs().sum(2) / start.abs().sum(2)
    assert moved.max() > 0
    assert bool((moved <= 0.1 + 1e-5).all()) == (radius is not None)


@pytest.mark.parametrize("options", [{}, {"radii": ()}, {"staged": False}])
def test_what_is_returned_matches_best_and_more_stages_never_match_worse(options: dict[str, object], data: Data) -> None:
    observation = observe(data, batch=2)
    losses = []
    for iterations in (1, 30):
        found = run(GIFD(**{**FAST, **options, "iterations": iterations}), observation)
        losses.append(Objective(observation, distance="layerwise")(found, infer_labels(observation)))
    assert (losses[1] <= losses[0] + 1e-6).all()
    assert losses[1].mean() < losses[0].mean()


def test_gifd_is_deterministic_and_a_victim_does_not_depend_on_the_others(data: Data) -> None:
    attack = GIFD(**FAST)
    few, many = (run(attack, observe(data, victims=victims, batch=2)) for victims in (1, 4))
    assert torch.allclose(few[0], many[0], atol=1e-5)
    assert torch.equal(many, run(attack, observe(data, victims=4, batch=2)))


def test_budgets_are_those_of_gias(data: Data) -> None:
    """Gradient evaluations: one for each step that is told, and one at the end of each search."""
    for name in ("gias", "gifd"):
        attack = load_attack(f"{name}(epochs=1, channels=4, latent=16, restarts=2, latent_iterations=5, iterations=11)")
        count = Counter()
        attack(observe(data), generator=make_generator(0), progress=count)
        assert count.steps == attack.options.latent_iterations * attack.options.restarts + attack.options.iterations


@pytest.mark.parametrize("radii", [(0.0,), (-1,), ("a",)])
def test_radii_that_are_none_are_refused(radii: object) -> None:
    with pytest.raises(ValueError, match="radii"):
        GIFD(radii=radii)


# ------------------------------------------------------------------ the generator


def test_gias_and_gifd_share_what_they_learn(data: Data, tiny_npz: Path) -> None:
    fits = FitCache(None)
    options = {"defense": "none", "model": "mlp", "dataset": f"npz(path={str(tiny_npz)!r})", "threat": "server", "profile": "quick"}
    for spec in ("gias(epochs=1, iterations=1)", "gifd(epochs=1, iterations=2)", "gifd(epochs=1, iterations=2)+ig(iterations=1)"):
        case = case_of(attack=spec, victims=2, batch_size=1, seed=0, **options)
        load_attack(spec, profile="quick")(observe(data), generator=make_generator(0), fits=fits.of(case))
    assert len(fits.memory) == 1
    case = case_of(attack="gifd(epochs=1, iterations=2, channels=4)", victims=2, batch_size=1, seed=0, **options)
    load_attack("gifd(epochs=1, iterations=2, channels=4)", profile="quick")(observe(data), generator=make_generator(0), fits=fits.of(case))
    assert len(fits.memory) == 2


@pytest.mark.parametrize("name", ["gias", "gifd"])
def test_a_generator_of_ones_own(name: str, data: Data, tmp_path: Path) -> None:
    path = write(tmp_path / "own.py", PAIRS)
    attack = load_attack(f"{name}(generator='{path}:factory', latent_iterations=5, iterations=6)")
    found = run(attack, observe(data, batch=2))
    assert found.shape == (3, 2, *data.input_shape)
    assert not torch.allclose(found[0], found[1], atol=1e-4)
    assert attack.memory(observe(data)) > 0


@pytest.mark.parametrize(
    ("named", "error", "message"),
    [
        ("nothing", SpecError, "'module:factory' or 'path/to/file.py:factory'"),
        ("torch:no_such_thing", SpecError, "no 'no_such_thing'"),
        ("torch:zeros", AttackError, "cannot be used: its factory, or a stage, raised"),
        ("{path}:wrong", AttackError, "Expected .* whose stages make images"),
    ],
)
def test_a_generator_that_is_none_is_refused(named: str, error: type[Exception], message: str, data: Data, tmp_path: Path) -> None:
    named = named.format(path=write(tmp_path / "own.py", PAIRS))
    with pytest.raises(error, match=message):
        run(GIFD(generator=named), observe(data))


def test_the_code_of_a_generator_is_part_of_a_cases_identity(tiny_npz: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "own.py", PAIRS)

    def key() -> str:
        return case_of(
            attack=f"gifd(generator='{path}:factory')", defense="none", model="mlp", dataset=f"npz(path={str(tiny_npz)!r})",
            threat="server", profile="quick", victims=2, batch_size=1, seed=0,
        ).case_id  # fmt: skip

    before = key()
    assert key() == before
    path.write_text(PAIRS.replace("linspace(-1, 1", "linspace(-2, 2"))
    assert key() != before


def test_identity_names_the_generator(data: Data, tiny_npz: Path) -> None:
    case = case_of(
        attack="gifd", defense="none", model="mlp", dataset=f"npz(path={str(tiny_npz)!r})", threat="server", profile="quick",
        victims=2, batch_size=1, seed=0,
    )  # fmt: skip
    attack = load_attack("gifd", profile="quick")
    observed = observe(data).restricted(frozenset({"public"})).without_update()
    assert identity(case, attack.decoder, observed) == identity(case, load_attack("gias", profile="quick").decoder, observed)


@pytest.mark.parametrize(
    "spec", ["gifd(iterations=30, latent_iterations=10, epochs=1", "gradinversion(iterations=40, seeds=1, group_every=5"]
)
def test_the_defense_is_played_where_it_is_known(spec: str, data: Data) -> None:
    observation = observe(data, defense="pruning(rate=0.8)")
    objective = Objective(observation, distance="cosine")
    adapted, oblivious = (
        objective(run(load_attack(f"{spec}, adapt={adapt})"), observation), infer_labels(observation)).mean() for adapt in (True, False)
    )
    assert adapted < oblivious
