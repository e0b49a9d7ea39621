"""Bad defenses are caught before any attack runs, or by a flag beside the verdict; good ones pass."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from torch import nn

import gitbench
from gitbench.clients.data import Data
from gitbench.clients.defense import Declared, Defense, load_defense
from gitbench.clients.stochastic import Stochastic
from gitbench.clients.update import Update
from gitbench.core.errors import DefenseError
from gitbench.core.random import make_generator, randn_like
from gitbench.measure.conformance import check_conformance


class Custom(gitbench.Defense):
    """Protects as the test says."""

    def __init__(self, *, how=None, promise: Declared | None = None):
        self.how = how
        self.promise = promise

    def __repr__(self) -> str:
        return "Custom()"

    def protect(self, update, *, generator):
        return update.map(lambda name, tensor: self.how(name, tensor, generator))

    def declared(self, *, batch_size):
        return self.promise or Declared()


def reused(name: str, tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return tensor + 0.1 * torch.randn(tensor.shape[1:], generator=generator)


def from_elsewhere(name: str, tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return tensor + 0.1 * torch.randn(tensor.shape)


def in_place(name: str, tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return tensor.mul_(0.5)


def noisy(name: str, tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return tensor + 0.1 * randn_like(tensor, generator)


def identity(name: str, tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return tensor.clone()


class Counting(gitbench.Defense):
    """Raises on the third call."""

    def __init__(self):
        self.calls = 0

    def protect(self, update, *, generator):
        self.calls += 1
        if self.calls == 3:
            raise RuntimeError("the third call")
        return update.map(lambda name, tensor: tensor * 0.5)


class Preparing(gitbench.Defense):
    def __init__(self, *, what: str):
        self.what = what

    def prepare(self, inputs, labels, *, generator):
        if self.what == "one":
            return inputs
        if self.what == "flat":
            return inputs.flatten(1), labels
        soft = {"no distribution": torch.ones(4), "negative": torch.tensor([2.0, -1, 0, 0]), "other classes": torch.ones(7) / 7}
        if self.what in soft:
            return inputs, soft[self.what].expand(*labels.shape, -1)
        if self.what == "too many labels":
            return inputs, labels[..., None]
        if self.what == "nan":
            return inputs * float("nan"), labels
        return inputs.mul_(0.5), labels


def check(defense: Defense, data: Data, *, model: str = "mlp", batch_size: int = 1) -> bool:
    return check_conformance(defense, gitbench.load_model(model, data), data.public, batch_size=batch_size)


@pytest.mark.parametrize(
    ("spec", "random"),
    [
        ("clipping(max_norm=0.5)", False),
        ("pruning(rate=0.9)", False),
        ("pruning(rate=0.37, scope='layer')", False),
        ("gaussian_noise(std=0.01)", True),
        ("gaussian_noise(std=10.0)", True),
        ("dp_sgd(noise_multiplier=1.0)", True),
        ("dp_sgd(noise_multiplier=0.0)", False),
        ("parameter_drift(epochs=1, samples=8)", False),
        ("clipping(max_norm=1.0) | gaussian_noise(std=0.1)", True),
        ("gaussian_noise(std=0.1) | pruning(rate=0.5)", True),
        ("gaussian_noise(std=0.1) | clipping(max_norm=1.0)", True),
        ("soteria(rate=0.5)", False),
        ("mixup", True),
        ("instahide(k=2)", True),
        ("ats", True),
        ("censor(trials=2)", True),
        ("outpost", True),
        ("mixup | soteria(rate=0.5) | censor(trials=1)", True),
    ],
)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_built_in_defenses_conform(spec: str, random: bool, batch_size: int, data: Data) -> None:
    assert check(load_defense(spec), data, batch_size=batch_size) is random


@pytest.mark.parametrize(
    ("defense", "message"),
    [
        (Custom(how=reused), "same randomness for every victim"),
        (Custom(how=from_elsewhere), "two different updates for the same seed"),
        (Custom(how=in_place), "changed the update that protect"),
        (Custom(how=lambda name, tensor, _: tensor * float("nan") if "weight" in name else tensor), "NaN"),
        (Custom(how=lambda name, tensor, _: tensor.double()), "expected torch.float32"),
        (Custom(how=lambda name, tensor, _: tensor[:1]), "victims come first"),
        (Custom(how=noisy, promise=Declared(noise_std=0.2)), r"declares noise of standard deviation 0.2, adds 0\.(09|10)"),
        (Custom(how=identity, promise=Declared(max_norm=1e-3)), "declares updates no longer than 0.001"),
        (Custom(how=identity, promise=Declared(zeroed=0.9)), "declares that it zeroes 90.00%"),
        (Custom(how=identity, promise=Declared(hides=True)), "never sends the raw gradient, and sent it"),
        (Preparing(what="one"), r"returned Tensor from prepare\(\)"),
        (Preparing(what="flat"), "only the batch's size may change"),
        (Preparing(what="nan"), "avoid NaN"),
        (Preparing(what="in place"), "changed the batch that prepare"),
        (Preparing(what="too many labels"), r"expected class indices \(V, B\) or probabilities"),
        (Preparing(what="no distribution"), "which add up to 1"),
        (Preparing(what="negative"), "which add up to 1"),
        (Preparing(what="other classes"), r"torch.float32 labels \(3, 1, 7\)"),
    ],
)
def test_what_does_not_conform_is_named(defense: Defense, message: str, data: Data) -> None:
    with pytest.raises(DefenseError, match=message) as caught:
        check(defense, data)
    assert repr(defense) in str(caught.value)


def test_a_model_that_draws_conforms_and_one_that_draws_for_all_alike_does_not(data: Data) -> None:
    defense = load_defense("precode(width=4)")
    model = defense.modify_model(gitbench.load_model("mlp", data))
    assert check_conformance(defense, model, data.public, batch_size=2) is True

    class Shared(Stochastic):
        def forward(self, inputs):
            return inputs + (0 if self.seed is None else make_generator(self.seed).initial_seed() % 7)

    alike = nn.Sequential(*gitbench.load_model("mlp", data).children(), Shared())
    with pytest.raises(DefenseError, match="same randomness for every victim"):
        check_conformance(load_defense("clipping(max_norm=1.0)"), alike, data.public, batch_size=1)


class Mixing(gitbench.Defense):
    """What forgets that victims are stacked."""

    def __init__(self, *, how: str = "norm"):
        self.how = how

    def prepare(self, inputs, labels, *, generator):
        return (inputs.mean(0, keepdim=True).expand_as(inputs), labels) if self.how == "batch" else (inputs, labels)

    def protect(self, update, *, generator):
        order = torch.randperm(update.victims, generator=generator) if self.how == "order" else torch.arange(update.victims)
        noise = {
            "norm": lambda tensor: tensor + 0.1 * tensor.norm() * gitbench.randn_like(tensor, generator),
            "mean": lambda tensor: tensor.mean(0, keepdim=True).expand_as(tensor).clone(),
            "order": lambda tensor: tensor[order],
            "flip": lambda tensor: 0.3 * tensor + 0.7 * tensor.flip(0),
            "roll": lambda tensor: tensor.roll(1, 0),
            "sum": lambda tensor: tensor.cumsum(0),
            "quantile": lambda tensor: tensor * (tensor.abs() > tensor.abs().quantile(0.5)),
            "batch": lambda tensor: tensor,
        }[self.how]
        return update.map(lambda name, tensor: noise(tensor))


class Looping(gitbench.Defense):
    """Draws as many numbers as the data say, victim by victim: honest, and no victim is made of another."""

    def protect(self, update, *, generator):
        flat = update.flatten().clone()
        for row in flat:
            keep = row.abs() > row.abs().mean()
            row[keep] += torch.randn(int(keep.sum()), generator=generator)
            row[torch.randperm(int((row > 0.5).sum()), generator=generator)] = 0
        return update.like(flat)


def test_how_much_is_drawn_may_depend_on_the_data(data: Data) -> None:
    assert check(Looping(), data)


@pytest.mark.parametrize("how", ["norm", "mean", "order", "flip", "roll", "sum", "quantile", "batch"])
def test_victims_made_of_each_other_are_refused(how: str, data: Data) -> None:
    with pytest.raises(DefenseError, match=r"made a victim's update depend on other victims, expected .* reduce over the others only"):
        check(Mixing(how=how), data)


def test_a_coin_that_falls_alike_now_and_then_is_fresh_randomness(data: Data) -> None:
    class Coin(gitbench.Defense):
        def protect(self, update, *, generator):
            keep = torch.rand(update.victims, generator=generator) < 0.5
            return update.map(lambda name, tensor: tensor * keep.reshape(-1, *[1] * (tensor.ndim - 1)))

    assert check(Coin(), data) is True


def test_the_check_leaves_the_defense_as_it_was(data: Data) -> None:
    defense = Counting()
    assert check(defense, data) is False
    assert defense.calls == 0


def test_the_check_takes_milliseconds(data: Data) -> None:
    model, defense = gitbench.load_model("lenet", data), load_defense("gaussian_noise(std=0.1)")
    check_conformance(defense, model, data.public, batch_size=1)  # torch's first calls are slow
    start = time.process_time()
    check_conformance(defense, model, data.public, batch_size=1)
    assert time.process_time() - start < 1.0


# ------------------------------------------------------------------ six bad defenses, through the whole chain


@pytest.fixture
def options(tiny_npz: Path) -> dict[str, object]:
    dataset = f"npz(path={str(tiny_npz)!r})"
    return {"attack": "ridge(limit=90)", "model": "mlp", "dataset": dataset, "victims": 8, "device": "cpu", "profile": "quick"}


def scaled(factor: float) -> Custom:
    return Custom(how=lambda name, tensor, _: tensor * factor)


def test_the_identity_in_disguise_leaks_and_is_flagged(options) -> None:
    result = gitbench.evaluate(defense=Custom(how=lambda name, tensor, _: (tensor * 4 + 0.0) / 4), **options)
    assert result.verdict == "leaks"
    assert "raw-update" in result.flags


class Rounded(nn.Module):
    def forward(self, logits):
        return logits.round()


class Flat(gitbench.Defense):
    """A model without a slope: its raw gradient is zero, and so is what is sent."""

    def modify_model(self, model):
        return nn.Sequential(model, Rounded())

    def protect(self, update, *, generator):
        return update


def test_a_model_without_any_gradient_is_no_success(options) -> None:
    result = gitbench.evaluate(defense=Flat(), **options)
    assert result.verdict == "inconclusive"
    assert "vanishing-update" in result.flags
    assert "but that is no success" in result.verdict_reason


def test_nan_on_one_layer_is_an_error(options) -> None:
    result = gitbench.evaluate(
        defense=Custom(how=lambda name, tensor, _: tensor * float("nan") if name.endswith("bias") else tensor), **options
    )
    assert (result.status, result.verdict) == ("error", "inconclusive")
    assert "NaN" in result.error


def test_noise_reused_across_victims_is_an_error(options) -> None:
    result = gitbench.evaluate(defense=Custom(how=reused), **options)
    assert result.status == "error"
    assert "same randomness for every victim" in result.error


def test_scaling_by_a_millionth_is_no_success(options) -> None:
    result = gitbench.evaluate(defense=scaled(1e-6), **options)
    assert {"vanishing-update", "scale-changed"} <= set(result.flags)
    assert result.verdict != "holds"


def test_zeroing_everything_is_no_success(options) -> None:
    result = gitbench.evaluate(defense=scaled(0.0), **options)
    assert {"vanishing-update", "destroys-utility"} <= set(result.flags)
    assert result.verdict == "inconclusive"
    assert "no success" in result.verdict_reason


@pytest.mark.parametrize("attack", ["lti(limit=60, epochs=2)", "ig(iterations=3)"])
def test_raising_on_the_third_call_names_the_defense(attack: str, options) -> None:
    result = gitbench.evaluate(**{**options, "defense": Counting(), "attack": attack})
    assert result.status == "error"
    assert "The defense Counting raised" in result.error
    assert "the third call" in result.error


def test_a_gradient_that_points_back_destroys_utility(options) -> None:
    result = gitbench.evaluate(defense=scaled(-1.0), **options)
    assert "destroys-utility" in result.flags
    assert result.utility.alignment.mean == pytest.approx(-1)
    assert result.utility.descent <= 0


def test_utility_of_simple_defenses_is_what_arithmetic_says(options) -> None:
    half = gitbench.evaluate(defense=scaled(0.5), **options).utility
    assert half.alignment.values == pytest.approx([0.5] * 8)
    assert half.cosine == pytest.approx(1)
    assert half.descent == pytest.approx(1, abs=1e-3)
    assert half.norm_ratio == pytest.approx(0.5)
    assert (half.equal, half.random) == (0, False)
    noise = gitbench.evaluate(**{**options, "defense": "gaussian_noise(std=0.001)"}).utility
    assert noise.random
    assert noise.alignment.mean == pytest.approx(1, abs=0.01)


def test_the_control_carries_no_utility(options) -> None:
    result = gitbench.evaluate(defense="none", **options)
    assert result.utility is None
    assert "raw-update" not in result.flags


def test_dp_sgd_conforms_with_what_it_declares_for_batches(data: Data) -> None:
    update = Update({"w": torch.zeros(2, 3)}, {"w": torch.ones(2, 4, 3)})
    declared = load_defense("dp_sgd(noise_multiplier=2.0)").declared(batch_size=4)
    assert declared.noise_std == 0.5
    found = load_defense("dp_sgd(noise_multiplier=2.0)").protect(update, generator=torch.Generator().manual_seed(0))
    assert found.tensors["w"].shape == (2, 3)
