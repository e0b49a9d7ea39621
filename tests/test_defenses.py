"""What each built-in defense promises."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import gitbench
from gitbench.core.errors import DefenseError, SpecError
from gitbench.core.random import make_generator


def random_update(victims: int = 3, scale: float = 1.0, seed: int = 0) -> gitbench.Update:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a.weight": (4, 5), "a.bias": (4,), "b.weight": (2, 3, 3, 3)}
    return gitbench.Update({name: scale * torch.randn(victims, *shape, generator=generator) for name, shape in shapes.items()})


@given(max_norm=st.floats(0.01, 100), scale=st.floats(1e-3, 1e3))
def test_clipping_bounds_the_norm_and_keeps_the_direction(max_norm: float, scale: float) -> None:
    update = random_update(scale=scale)
    clipped = gitbench.load_defense(f"clipping(max_norm={max_norm!r})").protect(update, generator=make_generator(0))
    before, after = update.flatten(), clipped.flatten()
    assert (after.norm(dim=1) <= max_norm * (1 + 1e-5)).all()
    torch.testing.assert_close(torch.cosine_similarity(before, after), torch.ones(3))
    short = before.norm(dim=1) <= max_norm
    torch.testing.assert_close(after[short], before[short])


@given(rate=st.floats(0, 1), scope=st.sampled_from(["global", "layer"]))
def test_pruning_zeroes_the_smallest_entries(rate: float, scope: str) -> None:
    update = random_update()
    pruned = gitbench.load_defense(f"pruning(rate={rate!r}, scope={scope!r})").protect(update, generator=make_generator(0))
    groups = (
        [(update.flatten(), pruned.flatten())]
        if scope == "global"
        else [(update.tensors[n].flatten(1), pruned.tensors[n].flatten(1)) for n in update.tensors]
    )
    for before, after in groups:
        assert before.shape == after.shape
        kept = after != 0
        assert (kept.sum(1) == before.shape[1] - round(rate * before.shape[1])).all()
        assert torch.equal(after[kept], before[kept])
        for row, mask in zip(before.abs(), kept, strict=True):
            if mask.any() and not mask.all():
                assert row[mask].min() >= row[~mask].max()


@given(rate=st.floats(0, 1), scope=st.sampled_from(["global", "layer"]))
def test_random_pruning_zeroes_as_many_entries_whichever_they_are(rate: float, scope: str) -> None:
    update = random_update()
    pruned = gitbench.load_defense(f"pruning(rate={rate!r}, scope={scope!r}, by='random')").protect(update, generator=make_generator(0))
    for name, tensor in pruned.tensors.items() if scope == "layer" else [("all", pruned.flatten())]:
        before = update.flatten() if name == "all" else update.tensors[name].flatten(1)
        kept = tensor.flatten(1) != 0
        assert (kept.sum(1) == before.shape[1] - round(rate * before.shape[1])).all()
        assert torch.equal(tensor.flatten(1)[kept], before[kept])


def test_random_pruning_draws_for_each_victim_and_each_time() -> None:
    update, generator = gitbench.Update({"w": torch.ones(2, 4000)}), make_generator(0)
    defense = gitbench.load_defense("pruning(rate=0.75, by='random')")
    first, second = (defense.protect(update, generator=generator) for _ in range(2))
    masks = torch.cat([first.tensors["w"], second.tensors["w"]])
    assert (torch.corrcoef(masks) - torch.eye(4)).abs().max() < 0.06
    # Together they show the union, and the mean of what was drawn twice is no larger.
    both = defense.combined([first, second]).tensors["w"]
    assert torch.equal(both, ((first.tensors["w"] + second.tensors["w"]) > 0).float())
    smallest = gitbench.load_defense("pruning(rate=0.75)")
    assert torch.equal(smallest.combined([first, second]).tensors["w"], (first.tensors["w"] + second.tensors["w"]) / 2)


def test_gaussian_noise_has_its_level_and_is_fresh_for_each_victim() -> None:
    zero = gitbench.Update({"w": torch.zeros(2, 20_000)})
    noisy = gitbench.load_defense("gaussian_noise(std=0.3)").protect(zero, generator=make_generator(1)).tensors["w"]
    assert noisy.std().item() == pytest.approx(0.3, rel=0.03)
    assert abs(torch.corrcoef(noisy)[0, 1].item()) < 0.05


def opacus_gradients(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor, *, noise: float, clip: float, seed: int) -> torch.Tensor:
    """What Opacus's own GradSampleModule and DPOptimizer leave in ``p.grad``."""
    import copy

    from opacus.grad_sample import GradSampleModule
    from opacus.optimizers import DPOptimizer

    wrapped = GradSampleModule(copy.deepcopy(model).train())
    optimizer = DPOptimizer(
        torch.optim.SGD(wrapped.parameters(), lr=0.1),
        noise_multiplier=noise,
        max_grad_norm=clip,
        expected_batch_size=len(inputs),
        generator=torch.Generator().manual_seed(seed),
    )
    nn.functional.cross_entropy(wrapped(inputs), labels).backward()
    optimizer.pre_step()
    return torch.cat([parameter.grad.flatten() for parameter in wrapped.parameters()])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("clip", [0.05, 1.0, 100.0])
def test_dp_sgd_without_noise_is_opacus_exactly(data: gitbench.Data, clip: float) -> None:
    model = gitbench.load_model("lenet(init='default')", data)
    inputs, labels = data.private.inputs[:6], data.private.labels[:6]
    defense = gitbench.load_defense(f"dp_sgd(noise_multiplier=0.0, max_grad_norm={clip})")
    ours = gitbench.client_update(model, inputs[None], labels[None], defense=defense).flatten()[0]
    theirs = opacus_gradients(model, inputs, labels, noise=0.0, clip=clip, seed=0)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


@pytest.mark.filterwarnings("ignore")
def test_dp_sgd_with_noise_is_opacus_in_distribution(data: gitbench.Data) -> None:
    from scipy import stats

    model = gitbench.load_model("lenet(init='default')", data)
    inputs, labels = data.private.inputs[:4], data.private.labels[:4]
    defense = gitbench.load_defense("dp_sgd(noise_multiplier=0.7, max_grad_norm=0.5)")
    mean = gitbench.client_update(
        model, inputs[None], labels[None], defense=gitbench.load_defense("dp_sgd(noise_multiplier=0.0, max_grad_norm=0.5)")
    ).flatten()[0]
    ours = gitbench.client_update(model, inputs[None], labels[None], defense=defense, generator=make_generator(3)).flatten()[0] - mean
    theirs = opacus_gradients(model, inputs, labels, noise=0.7, clip=0.5, seed=4) - mean
    assert ours.std().item() == pytest.approx(0.7 * 0.5 / 4, rel=0.03)
    assert stats.ks_2samp(ours.numpy(), theirs.numpy()).pvalue > 0.01


@pytest.mark.filterwarnings("ignore")
def test_dp_sgd_epsilon_is_the_accountants() -> None:
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    for _ in range(100):
        accountant.step(noise_multiplier=1.1, sample_rate=0.01)
    defense = gitbench.load_defense("dp_sgd(noise_multiplier=1.1)")
    assert defense.epsilon(sample_rate=0.01, steps=100, delta=1e-5) == pytest.approx(accountant.get_epsilon(delta=1e-5))


def test_hardly_any_noise_is_much_privacy_spent_and_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert gitbench.load_defense("dp_sgd(noise_multiplier=0.1)").epsilon(sample_rate=0.01, steps=200, delta=1e-5) > 1000


@pytest.mark.parametrize("changes", [{"sample_rate": 2.0}, {"sample_rate": 0.0}, {"steps": -1}, {"delta": 5}, {"delta": float("nan")}])
def test_dp_sgd_epsilon_of_impossible_numbers_is_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"expected sample_rate in \(0, 1\], steps >= 1 and delta in \(0, 1\)"):
        gitbench.load_defense("dp_sgd(noise_multiplier=1.0)").epsilon(**{"sample_rate": 0.01, "steps": 100, "delta": 1e-5, **changes})


def test_dp_sgd_must_come_first(data: gitbench.Data) -> None:
    defense = gitbench.load_defense("clipping(max_norm=1.0) | dp_sgd(noise_multiplier=1.0)")
    with pytest.raises(DefenseError, match="Put dp_sgd first"):
        gitbench.client_update(
            gitbench.load_model("mlp", data), data.private.inputs[:1][None], data.private.labels[:1][None], defense=defense
        )


def test_composition_applies_from_left_to_right() -> None:
    update = random_update()
    both = gitbench.load_defense("clipping(max_norm=1.0) | pruning(rate=0.5)").protect(update, generator=make_generator(0))
    first = gitbench.load_defense("clipping(max_norm=1.0)").protect(update, generator=make_generator(0))
    second = gitbench.load_defense("pruning(rate=0.5)").protect(first, generator=make_generator(0))
    assert torch.equal(both.flatten(), second.flatten())


def test_parameter_drift_leaves_the_attackers_copy_alone(data: gitbench.Data) -> None:
    model = gitbench.load_model("mlp", data)
    before = [parameter.clone() for parameter in model.parameters()]
    drift = gitbench.load_defense("parameter_drift(epochs=2, samples=32)")
    inputs, labels = data.private.inputs[:2][:, None], data.private.labels[:2][:, None]
    drifted = gitbench.client_update(model, inputs, labels, defense=drift, public=data.public, generator=make_generator(0))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert not torch.allclose(drifted.flatten(), gitbench.client_update(model, inputs, labels).flatten())
    with pytest.raises(DefenseError, match="needs 32 public images"):
        gitbench.client_update(model, inputs, labels, defense=drift)


def test_expected_is_the_deterministic_part() -> None:
    update = random_update()
    for spec in ("clipping(max_norm=1.0)", "pruning(rate=0.5)"):
        defense = gitbench.load_defense(spec)
        sent = defense.protect(update, generator=make_generator(0))
        torch.testing.assert_close(defense.expected(update, observed=sent).flatten(), sent.flatten())


@pytest.mark.parametrize(
    "spec",
    [
        "pruning(rate=1.5)",
        "pruning(rate=0.5, scope='tensor')",
        "pruning(rate=0.5, by='luck')",
        "clipping(max_norm=0)",
        "gaussian_noise(std=-1)",
        "dp_sgd(noise_multiplier=-1)",
        "parameter_drift(epochs=-1, samples=1)",
    ],
)
def test_impossible_options_are_refused(spec: str) -> None:
    with pytest.raises(SpecError, match="refuses its options: expected"):
        gitbench.load_defense(spec)


class Quantised(gitbench.Defense):
    def protect(self, update, *, generator):
        return update.map(lambda name, tensor: tensor.detach().round())


class Halved(gitbench.Defense):
    def protect(self, update, *, generator):
        return update.map(lambda name, tensor: tensor / 2)


def test_a_deterministic_defense_is_matched_through_by_default() -> None:
    update = random_update()
    tracked = update.map(lambda _, tensor: tensor.requires_grad_(True))
    halved = Halved().expected(tracked, observed=update)
    torch.testing.assert_close(halved.flatten(), update.flatten() / 2)
    assert halved.flatten().requires_grad
    # What cannot be differentiated, or is random, is passed by unchanged.
    assert torch.equal(Quantised().expected(tracked, observed=update).flatten(), update.flatten())
    assert torch.equal(gitbench.load_defense("gaussian_noise(std=1.0)").expected(update, observed=update).flatten(), update.flatten())
