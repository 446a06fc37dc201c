"""One calibration, many plans; and what labels and losses gather, against direct computations."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import reprune
from reprune.core.errors import BudgetError, StatisticsError
from reprune.core.methods import METHODS
from reprune.torch.calibration.labelled import loss_gradients, observe_classes
from reprune.torch.tracing.record import trace

sys.path.append(str(Path(__file__).parents[3] / "examples"))
from recurrent_highway import RecurrentHighway


class Classifier(nn.Module):
    """A packed bidirectional layer; the head reads the mean over time."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(5, 6, bidirectional=True, batch_first=True)
        self.head = nn.Linear(12, 3)

    def forward(self, x, lengths):
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        out, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        return self.head(out.sum(1) / lengths[:, None])


def data():
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(3):
        lengths = torch.randint(2, 7, (20,), generator=generator)
        x = torch.randn(20, int(lengths.max()), 5, generator=generator, dtype=torch.float64)
        found.append((x, lengths, torch.randint(0, 3, (20,), generator=generator)))
    return found


OPTIONS = {
    "labels": lambda batch: batch[2],
    "loss": lambda model, batch: nn.functional.cross_entropy(model(*batch[:2]), batch[2]),
    "forward": lambda model, batch: model(*batch[:2]),
}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Classifier().double().eval()


@pytest.fixture
def calibration(model):
    return reprune.calibrate(model, data(), **OPTIONS)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_plans_from_one_calibration_what_it_plans_alone(model, calibration, method):
    plan = calibration.plan(0.5, method=method)
    assert sum(plan.counts().values()) == 6
    assert plan.kept == reprune.plan(model, data(), 0.5, method=method, **OPTIONS).kept


def test_a_grid_prunes_the_same_model_over_and_over(model, calibration):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for ratio in (0.25, 0.5, 0.75):
        result = calibration.prune(ratio, method="iss-gm+reconstruct")
        masked = reprune.mask(model, result.plan)
        for x, lengths, _ in data():
            torch.testing.assert_close(result.model(x, lengths), masked(x, lengths), rtol=0, atol=1e-12)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert calibration.plan(None, method="pfa-kl").counts()
    with pytest.raises(BudgetError, match="give ratio="):
        calibration.plan(None, method="iss-gm")


def test_gradients_are_those_of_the_mean_loss(model):
    structure = trace(model, data()[0][:2])
    model.lstm.weight_hh_l0.requires_grad_(False)
    found = loss_gradients(model, structure, data(), OPTIONS["loss"])
    assert not model.lstm.weight_hh_l0.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    model.requires_grad_(True)
    (sum(OPTIONS["loss"](model, batch) for batch in data()) / 3).backward()
    for name in ("lstm.weight_hh_l0", "lstm.weight_ih_l0_reverse", "head.weight"):
        torch.testing.assert_close(found[name], model.get_parameter(name).grad)
    with pytest.raises(StatisticsError, match="scalar tensor with a gradient"):
        loss_gradients(model, structure, data(), lambda net, batch: 1.0)


def test_every_step_counts_for_the_class_of_its_sequence(model):
    structure = trace(model, data()[0][:2])
    moments = observe_classes(model, structure, data(), OPTIONS["labels"], OPTIONS["forward"])
    rows, classes = [], []
    for x, lengths, labels in data():
        for sequence, length, label in zip(x, lengths, labels, strict=True):
            out = model.lstm(sequence[None, :length])[0][0].detach().numpy()
            rows.append(out)
            classes += [int(label)] * len(out)
    rows, classes = np.concatenate(rows), np.asarray(classes)
    for start, name in ((0, "lstm:l0"), (6, "lstm:l0_reverse")):
        values = rows[:, start : start + 6]
        within = sum(((values[classes == c] - values[classes == c].mean(0)) ** 2).sum(0) for c in range(3))
        between = ((values - values.mean(0)) ** 2).sum(0) - within
        np.testing.assert_allclose(moments[name].separability(), between / within, rtol=1e-9)


def test_every_step_of_a_cell_written_by_hand_counts_too():
    torch.manual_seed(0)
    net = RecurrentHighway(words=9, embedding=3, units=4, depth=1).eval()
    words, classes = torch.randint(0, 9, (7, 6)), torch.arange(6) % 2
    structure = trace(net, words)
    [moments] = observe_classes(net, structure, [words], lambda _: classes).values()
    state, rows = torch.zeros(6, 4), []
    with torch.no_grad():
        for step in net.embedding(words) @ net.read.weight.T:
            rows.append(state)
            candidate, transform = (step + state @ net.layers[0].weight.T + net.layers[0].bias).chunk(2, -1)
            state = state + transform.sigmoid() * (candidate.tanh() - state)
    values = torch.stack(rows, 1).double().numpy()
    within = sum(values[c::2].reshape(-1, 4).var(0) / 2 for c in range(2))
    between = (values[::2].mean((0, 1)) - values[1::2].mean((0, 1))) ** 2 / 4
    np.testing.assert_allclose(moments.separability(), between / within, rtol=1e-4)


def test_what_was_not_gathered_is_asked_for(model):
    calibration = reprune.calibrate(model, data(), methods=["random"], forward=OPTIONS["forward"])
    with pytest.raises(StatisticsError, match="give calibration batches"):
        calibration.plan(0.5, method="iss-gm")
    with pytest.raises(StatisticsError, match="give labels="):
        reprune.plan(model, data(), method="fsdp", forward=OPTIONS["forward"])
    with pytest.raises(StatisticsError, match="need 3 passes"):
        reprune.calibrate(model, iter(data()), **OPTIONS)
    with pytest.raises(StatisticsError, match="7 labels for a batch of 20 sequences"):
        reprune.plan(model, data(), method="class-separability", labels=lambda b: b[2][:7], forward=OPTIONS["forward"])


def test_single_layers_can_be_chosen_and_sized(model):
    forward = OPTIONS["forward"]
    plan = reprune.plan(model, data(), 0.5, include=["*_reverse"], forward=forward)
    assert plan.counts() == {"lstm:l0": 6, "lstm:l0_reverse": 3}
    plan = reprune.plan(model, data(), 0.5, of="macs", counts={"lstm:l0": 5}, forward=forward)
    assert plan.counts()["lstm:l0"] == 5


@pytest.mark.parametrize("verify", [True, False])
def test_excluded_layers_stay_whole(verify):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.GRU(3, 6, batch_first=True), nn.GRU(6, 8, batch_first=True)
            self.head = nn.Linear(8, 2)

        def forward(self, x):
            return self.head(self.b(self.a(x)[0])[0])

    batch = torch.randn(4, 5, 3)
    plan = reprune.plan(Two(), [batch], ratio=0.5, method="magnitude", exclude=["b:*"], verify=verify)
    assert plan.counts() == {"a:l0": 3, "b:l0": 8}
