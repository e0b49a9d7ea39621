"""A third, tiny modality: one-dimensional signals. It is one file, and touches nothing else."""

from __future__ import annotations

import io

import torch
from torch import nn

from gitbench import Attack, Data, Dataset, Metric, Modality, ModelFactory, Split


class SignalData(Modality):
    name = "signal"
    noun, axes = "signal", "L"
    gate = {"signal_gain": 3.0}
    profiles = {
        "quick": {
            "model": ("tests_wave_model",),
            "attack": ("dlg(iterations=60, init='normal')",),
            "defense": ("none", "gaussian_noise(std=1.0)"),
            "known_leaks": (),
            "victims": 8,
        }
    }

    def problem(self, inputs):
        return "" if inputs.is_floating_point() and inputs.isfinite().all() else "expected finite floats"

    def noise(self, shape, *, generator):
        return torch.randn(shape, generator=generator)

    def start(self, network, shape, *, init, generator):
        return torch.randn(shape, generator=generator)

    def leave(self, network, points):
        return points

    def blind(self, public):
        return public.mean(0)

    def distances(self, found, truth):
        return torch.cdist(truth.double(), found.double())

    def picture(self, truth, found):
        from PIL import Image, PngImagePlugin

        rows = torch.cat([stack[:, 0].repeat_interleave(4, 0).flatten()[None] for stack in (truth, found)])
        told = PngImagePlugin.PngInfo()
        told.add_text("victims", str(len(truth)))
        out = io.BytesIO()
        Image.fromarray(((rows.clamp(-1, 1) + 1) * 127).byte().numpy()).save(out, format="PNG", pnginfo=told)
        return out.getvalue()


class SignalGain(Metric):
    name, modality, unit = "signal_gain", "signal", "dB"
    higher_leaks, tolerance = True, 0.5
    summary = "dB closer to the signal than the public mean"

    def score(self, found, truth, *, blind):
        def error(one):
            return (one - truth).square().mean(1).clamp_min(1e-10)

        return 10 * (error(blind.expand_as(truth)) / error(found)).log10()


class Waves(Dataset):
    name, modality = "tests_waves", "signal"

    def __init__(self, *, length: int = 12):
        self.length = length

    def load(self):
        generator = torch.Generator().manual_seed(0)
        speed, phase = torch.rand(2, 96, generator=generator)
        waves = torch.sin(torch.arange(self.length) * (0.3 + speed[:, None]) + 6 * phase[:, None])
        labels = (speed > 0.5).long()
        return Data(Split(waves[:64], labels[:64]), Split(waves[64:], labels[64:]), 2, "waves", SignalData())


class WaveModel(ModelFactory):
    name, modality = "tests_wave_model", "signal"

    def build(self, data):
        (length,) = data.input_shape
        return nn.Sequential(nn.Linear(length, 24), nn.Sigmoid(), nn.Linear(24, data.classes))


class Mean(Attack):
    """One that does signals alone."""

    modalities = ("signal",)
    requires = frozenset({"public"})

    def run(self, observation, state, *, generator, progress):
        return observation.public.inputs.mean(0).expand(observation.victims, observation.batch_size, -1).clone()
