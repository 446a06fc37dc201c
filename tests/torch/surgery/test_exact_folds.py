"""Units that others predict exactly: without them, the pruned model computes what the dense one does.

The masked model is no judge of a fold, as both are folded by the same lines. Here the judge is the dense model.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import reprune
from reprune.core.methods import Method

UNITS, TWINS, CONSTANT = 8, {5: 1, 6: 2, 7: 1}, 4
METHOD = Method(allocation="uniform", criterion="reconstruction", compensation="least-squares")


class Read(nn.Module):
    """A recurrent layer, each unit scaled and shifted on its own, and something that reads them."""

    def __init__(self, kind: type[nn.RNNBase], reader: nn.Module, read: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.rnn, self.reader, self.read = kind(3, UNITS, batch_first=True), reader, read
        self.scale, self.shift = nn.Parameter(torch.rand(UNITS) + 0.5), nn.Parameter(torch.randn(UNITS))

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.reader, self.rnn(x)[0] * self.scale + self.shift)


def predictable(model: nn.Module) -> nn.Module:
    """Some units compute what others do, and one is constant; factors and shifts may come before the reader."""
    gates = {nn.LSTM: (40, -40, 0.7, 0.4), nn.GRU: (0.0, -40, 0.7), nn.RNN: (0.7,)}[type(model.rnn)]
    with torch.no_grad():
        for name, weight in model.rnn.named_parameters():
            for gate, bias in zip(weight.view(len(gates), UNITS, *weight.shape[1:]), gates, strict=True):
                for copy, original in TWINS.items():
                    gate[copy] = gate[original]
                gate[CONSTANT] = bias if name.startswith("bias_ih") else 0
            if name.startswith("weight_hh"):
                weight[:, CONSTANT] = 0  # Before the first step it is not yet what it is afterwards.
    return model.double().eval()


def along_time(reader: nn.Module, z: Tensor) -> Tensor:
    return reader(z.transpose(1, 2))


READERS = {
    "linear": (lambda: nn.Linear(UNITS, 3), lambda reader, z: reader(z)),
    "mean": (lambda: nn.Linear(UNITS, 3), lambda reader, z: reader(z.mean(1))),
    "last": (lambda: nn.Linear(UNITS, 3), lambda reader, z: reader(z[:, -1])),
    "convolution": (lambda: nn.Conv1d(UNITS, 3, 3), along_time),
    "strided and dilated": (lambda: nn.Conv1d(UNITS, 3, 3, stride=2, dilation=2), along_time),
    "two axes": (lambda: nn.Conv2d(UNITS, 3, (2, 1)), lambda reader, z: reader(z.transpose(1, 2)[..., None])),
    "lstm": (lambda: nn.LSTM(UNITS, 4, batch_first=True), lambda reader, z: reader(z)[0]),
    "gru": (lambda: nn.GRU(UNITS, 4, batch_first=True), lambda reader, z: reader(z)[0]),
}


@pytest.fixture(autouse=True)
def no_ridge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reprune.core.folding.compensation.RIDGES", (1e-13,))
    monkeypatch.setattr("reprune.core.folding.compensation.RIDGE_UNSEEN", 1e-13)


@pytest.mark.filterwarnings("ignore::reprune.core.errors.CalibrationWarning")
@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_units_that_others_predict_leave_no_trace(kind: type[nn.RNNBase], name: str) -> None:
    torch.manual_seed(0)
    make, read = READERS[name]
    model = predictable(Read(kind, make(), read))
    if isinstance(model.reader, nn.modules.conv._ConvNd):
        # Convolutions are folded by what the units are, not by what becomes of them on the way.
        model.scale.data.fill_(1.0)
        model.shift.data.zero_()
    batches = [torch.randn(16, 9, 3, dtype=torch.float64) for _ in range(4)]
    result = reprune.prune(model, batches, counts={"rnn*": 4}, include=["rnn*"], method=METHOD)
    kept = result.plan.kept["rnn:l0"]
    assert {TWINS.get(unit, unit) for unit in kept} == {0, 1, 2, 3}
    x = torch.randn(5, 9, 3, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(result.model(x), model(x), rtol=0, atol=1e-6)
        cut = reprune.apply(model, result.plan, compensate=False)
        assert (cut(x) - model(x)).abs().max() > 1e-2  # There was something to make up for.


class LastStates(nn.Module):
    """A head on the last states of sequences of many lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(3, UNITS, batch_first=True), nn.Linear(UNITS, 2)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.head(self.rnn(packed)[1][0])


def test_last_states_are_those_of_real_steps() -> None:
    """The fold of what reads `h_n` is the least-squares solution on the last states, one row a sequence."""
    torch.manual_seed(0)
    model = LastStates().double().eval()
    batches = []
    for _ in range(6):
        lengths = torch.randint(1, 9, (30,))
        batches.append((torch.randn(30, int(lengths.max()), 3, dtype=torch.float64), lengths))
    plan = reprune.plan(model, batches, counts={"rnn*": 5}, method=METHOD)
    (fold,) = (fold for fold in plan.folds if fold.tensor == "head.weight")
    # Each sequence by itself, so that there is nothing to pad.
    with torch.no_grad():
        rows = [
            model.rnn(one[None, :length])[1][0, 0] for x, ends in batches for one, length in zip(x, ends, strict=True)
        ]
    rows = torch.stack(rows).numpy()
    stay, gone = plan.kept["rnn:l0"], plan.removed()["rnn:l0"]
    solution = np.linalg.lstsq(np.column_stack([rows[:, stay], np.ones(len(rows))]), rows[:, gone], rcond=None)[0]
    coefficients, offsets = fold.arrays(len(gone), len(stay))
    np.testing.assert_allclose(coefficients, solution[:-1].T, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(offsets, solution[-1], rtol=1e-5, atol=1e-8)
