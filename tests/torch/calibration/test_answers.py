"""Models of PyTorch that answer like the dense one: what is refitted, what it gains, what is left as it was."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import reprune
from reprune import Method
from reprune.core.answers.answers import Answers
from reprune.core.answers.divergence import apart
from reprune.core.errors import PlanError
from reprune.core.folding.fold import Refit
from reprune.torch.calibration.pupil import Pupil, answering
from reprune.torch.tracing.record import trace

LEAST_SQUARES = Method("measured", "reconstruction", "least-squares")


class Stacked(nn.Module):
    """Two layers of an LSTM, and a classifier of two layers: one reads the units, one does not."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 16, num_layers=2, batch_first=True)
        self.first, self.second = nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.second(self.first(self.lstm(x)[0][:, -1]).tanh())


class Between(nn.Module):
    """A linear layer between two recurrent ones, and one after them."""

    def __init__(self):
        super().__init__()
        self.low, self.middle = nn.GRU(4, 12, batch_first=True), nn.Linear(12, 6)
        self.high, self.out = nn.GRU(6, 12, batch_first=True), nn.Linear(12, 3)

    def forward(self, x):
        return self.out(self.high(self.middle(self.low(x)[0]))[0])


def made(kind, scale=3.0):
    torch.manual_seed(0)
    model = kind().double().eval()
    for weight in model.parameters():
        weight.data *= scale
    return model


def batches(count=12, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(16, 9, 4, generator=generator, dtype=torch.float64) for _ in range(count)]


def far(small, model, x):
    with torch.no_grad():
        return float(apart(small(x), model(x), "kl"))


def test_refitted_consumers_answer_more_like_the_dense_model():
    model, (new,) = made(Stacked, scale=10.0), batches(1, seed=9)
    calibration = reprune.calibrate(model, batches(20), divergence="kl")
    refitted, plain = (calibration.prune(0.75, method=method) for method in ("reconstruct", LEAST_SQUARES))
    assert refitted.plan.kept == plain.plan.kept
    assert far(refitted.model, model, new) < 0.95 * far(plain.model, model, new)
    assert refitted.fidelity.divergence < 0.8 * plain.fidelity.divergence
    # What reads units, and that alone, is another one.
    changed = {
        name
        for (name, one), other in zip(refitted.model.named_parameters(), plain.model.parameters(), strict=True)
        if not torch.equal(one, other)
    }
    assert changed == {"first.weight", "first.bias"}


def test_the_plan_holds_what_was_refitted():
    model, (new,) = made(Between), batches(1, seed=9)
    result = reprune.prune(model, batches(), 0.5)
    # Whether gates are refitted, too, is measured.
    refitted = {refit.tensor for refit in result.plan.refits if not refit.tensor.startswith(("low", "high"))}
    assert refitted == {"out.weight", "out.bias"}
    again = reprune.apply(model, reprune.Plan.from_json(result.plan.to_json()))
    with torch.no_grad():
        wanted = reprune.mask(model, result.plan)(new)
        torch.testing.assert_close(again(new), wanted, rtol=0, atol=1e-10)
        torch.testing.assert_close(result.model(new), wanted, rtol=0, atol=1e-10)
    longer = replace(result.plan, refits=(Refit.of("out.bias", np.zeros(4)),))
    with pytest.raises(PlanError, match=r"'out.bias' would keep \(3,\), the plan holds \(4,\)"):
        reprune.apply(model, longer)


def test_a_batch_is_copied_again_when_it_was_written_into():
    model, given = made(Stacked), batches(1)
    pupil = Pupil(model, trace(model, given[0]), Answers(given, answering(model, None)), None)
    first = pupil._copy(0)
    assert pupil._copy(0) is first
    first += 1
    assert torch.equal(pupil._copy(0), given[0])


def test_the_split_is_no_worse_than_those_it_is_made_of():
    model, given = made(Between), batches()
    calibration = reprune.calibrate(model, given, divergence="kl")
    found = {
        split: calibration.prune(0.7, method=Method(split, "reconstruction", "least-squares"))
        for split in ("measured", "uniform", "cost", "energy")
    }
    values = {split: result.fidelity.divergence for split, result in found.items()}
    assert values["measured"] <= min(values.values())
    sizes = {split: sum(result.plan.counts().values()) for split, result in found.items()}
    assert max(sizes.values()) - min(sizes.values()) <= 1


def test_bounds_hold_for_a_measured_split():
    calibration = reprune.calibrate(made(Between), batches(4))
    plan = calibration.plan(0.6, min_units=3, round_to=3)
    assert all(size >= 3 and size % 3 == 0 for size in plan.counts().values())
    assert calibration.plan(0.5, counts={"low*": 9}).counts()["low:l0"] == 9


def test_frozen_weights_and_modes_are_left_as_they_were():
    model, given = made(Stacked).train(), batches(1)
    model.first.requires_grad_(False)
    pupil = Pupil(model, trace(model, given[0]), Answers(given, answering(model, None)), None)
    ((_, projected),) = pupil.gradients(["first.weight"], np.random.default_rng(0))
    assert projected["first.weight"].any()  # Although it is frozen.
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = reprune.prune(model, batches(4), 0.5)
    assert result.plan.refits
    assert model.training
    assert result.model.training
    assert not result.model.first.weight.requires_grad
    assert all(weight.grad is None for weight in result.model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_in_inference_mode():
    model, given = made(Stacked), batches(4)
    with torch.inference_mode():
        result = reprune.prune(model, given, 0.5)
    assert result.plan.refits


def test_batches_that_come_once_leave_the_least_squares_fit():
    model = made(Stacked)
    once, again = (reprune.prune(model, given, 0.5) for given in (iter(batches()), batches()))
    assert once.plan.refits == ()
    assert "batches came only once" in str(once)
    assert "batches came only once" not in str(again)


def test_poor_answers_are_said_to_be_poor():
    calibration = reprune.calibrate(made(Stacked, scale=10.0), batches(4))
    assert "far from the dense model's" in str(calibration.prune(0.9, method="random"))
    assert "far from the dense model's" not in str(calibration.prune(0.1))
