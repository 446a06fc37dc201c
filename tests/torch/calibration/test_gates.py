"""Refitted gates: the regressions that cells written in NumPy ask for, and what becomes of them in plan and models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import reprune
from reprune import Method
from reprune.core.answers.answers import Answers
from reprune.core.answers.gate_targets import Steps
from reprune.core.answers.gates import FLOOR, MOST, RIDGE, ROWS, WORK, Aims, refit_gates
from reprune.torch.calibration.gates import Gates
from reprune.torch.calibration.pupil import answering

LEAST_SQUARES = Method("uniform", "reconstruction", "least-squares")
LENGTHS = torch.tensor([5, 9, 2, 7])


class Packed(nn.Module):
    """Both directions of a recurrent layer on sequences of several lengths, and a classifier."""

    def __init__(self, kind, **options):
        super().__init__()
        self.rnn = kind(3, 8, bidirectional=True, batch_first=True, **options)
        self.out = nn.Linear(16, 5)

    def forward(self, x):
        packed = pack_padded_sequence(x, LENGTHS, batch_first=True, enforce_sorted=False)
        return self.out(pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0])


def made(kind, **options):
    torch.manual_seed(0)
    model = Packed(kind, **options).double().eval()
    for weight in model.parameters():
        weight.data *= 3
    return model


def batches(count):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 9, 3, generator=generator, dtype=torch.float64) for _ in range(count)]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm(a, h, c):
    i, f, g, o = np.split(a, 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def gru(a, h, c):
    _, z, n = np.split(a, 3)
    z = sigmoid(z)
    return (1 - z) * np.tanh(n) + z * h, c


def rnn(a, h, c):
    return np.maximum(a, 0), c


CELLS = {"LSTM": lstm, "GRU": gru, "RNN_RELU": rnn}


def walk(mode, weights, x):
    """Inputs, states, pre-activations, resets and a cell's response as a function of its pre-activations, by step."""
    w_ih, w_hh, b_ih, b_hh = weights
    units = w_hh.shape[1]
    h = c = np.zeros(units)
    for row in x:
        ours, fed = w_ih @ row + b_ih, w_hh @ h + b_hh
        reset = np.ones(len(ours))
        if mode == "GRU":
            r = ours[:units] + fed[:units]
            reset[2 * units :] = sigmoid(r)
        a = ours + reset * fed

        def respond(a, h=h, c=c, ours=ours, fed=fed):
            if mode == "GRU":  # The reset gate's pre-activation acts through the new gate's.
                moved = sigmoid(a[:units]) - sigmoid((ours + fed)[:units])
                a = np.concatenate([a[: 2 * units], a[2 * units :] + moved * fed[2 * units :]])
            return CELLS[mode](a, h, c)[0]

        yield row, h, a, reset, respond
        h, c = CELLS[mode](a, h, c)


def direct(mode, dense, small, rows, sequences):
    """The new rows of a layer by weighted least squares: (gate rows × (inputs + 1 + states + 1))."""
    z, wanted, slopes, resets = [], [], [], []
    for x, x_small in sequences:
        for (_, _, a, reset, respond), (read, state, *_) in zip(
            walk(mode, dense, x), walk(mode, small, x_small), strict=True
        ):
            units = len(respond(a))
            shift = 1e-6 * np.eye(len(a))
            slopes.append([
                (respond(a + shift[r])[r % units] - respond(a - shift[r])[r % units]) / 2e-6 for r in rows
            ])  # fmt: skip
            z.append((np.append(read, 1.0), np.append(state, 1.0)))
            wanted.append(a[rows])
            resets.append(reset[rows])
    weights = np.square(slopes)
    weights = weights + FLOOR * weights.mean(axis=0)
    found = []
    for r in range(len(rows)):
        features = np.array([np.append(read, reset[r] * state) for (read, state), reset in zip(z, resets, strict=True)])
        now = np.concatenate([small[0][r], [small[2][r]], small[1][r], [small[3][r]]])
        root = np.sqrt(weights[:, r])
        shrink = np.sqrt(RIDGE * (weights[:, r] @ features**2))
        left = np.vstack([root[:, None] * features, np.diag(shrink)])
        right = np.append(root * (np.array(wanted)[:, r] - features @ now), np.zeros(len(now)))
        found.append(np.linalg.lstsq(left, right, rcond=None)[0])
    return np.array(found)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN_RELU"])
@pytest.mark.parametrize("suffix", ["l0", "l0_reverse"])
def test_steps_are_those_of_weighted_least_squares(kind, suffix):
    model = made(nn.RNN, nonlinearity="relu") if kind == "RNN_RELU" else made(getattr(nn, kind))
    given = batches(3)
    plan = reprune.plan(model, given, 0.5, method=LEAST_SQUARES)
    small = reprune.apply(model, plan)
    gates = Gates(model, small, plan, Answers(given, answering(model, None)), None, None)
    assert gates.layers == ["rnn.weight_ih_l0", "rnn.weight_ih_l0_reverse"]

    names = [f"rnn.{part}_{suffix}" for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    dense, narrow = ([dict(m.named_parameters())[name].detach().numpy() for name in names] for m in (model, small))
    kept = plan.kept[f"rnn:{suffix}"]
    rows = [gate * 8 + unit for gate in range(len(dense[0]) // 8) for unit in kept]
    turn = slice(None, None, -1 if "reverse" in suffix else 1)
    sequences = [x[:length].numpy()[turn] for batch in given for x, length in zip(batch, LENGTHS, strict=True)]
    wanted = direct(kind, dense, narrow, rows, [(x, x) for x in sequences])
    step = gates.step(names[0])
    found = np.column_stack([step[names[0]], step[names[2]], step[names[1]], step[names[3]]])
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


# Four gates of four units, three inputs, four states and two biases: 16 rows of 9 features.
@pytest.mark.parametrize(("kept", "work", "refitted"), [
    (4, 16 * 9**2 * ROWS, True), (4, 16 * 9**2 * ROWS - 1, False), (8, WORK, False)
])  # fmt: skip
def test_layers_that_stay_whole_or_are_too_large_are_left(monkeypatch, kept, work, refitted):
    monkeypatch.setattr("reprune.core.answers.gates.WORK", work)
    model, given = made(nn.LSTM), batches(2)
    plan = reprune.plan(model, given, 0.5, method=LEAST_SQUARES)
    plan = plan.with_kept({name: range(kept) for name in plan.kept})
    answers = Answers(given, answering(model, None))
    # The dense model is run only where there is something to refit.
    gates = Gates(model, reprune.apply(model, plan), plan, answers, None if refitted else pytest.fail, None)
    assert len(gates.layers) == 2 * refitted


def test_the_plan_holds_refitted_gates_and_answers_more_like_the_dense_model():
    model, given = made(nn.LSTM), batches(12)
    calibration = reprune.calibrate(model, given, divergence="kl")
    kept = calibration.plan(0.5, method=LEAST_SQUARES)
    without = calibration.prune(0.5, method=LEAST_SQUARES).fidelity
    result = calibration.prune(0.5, method=Method("uniform", "reconstruction", "reconstruction"))
    assert result.plan.kept == kept.kept
    assert {"rnn.weight_ih_l0_reverse", "rnn.weight_hh_l0_reverse"} <= {refit.tensor for refit in result.plan.refits}
    assert result.fidelity.divergence < 0.8 * without.divergence
    again = reprune.apply(model, reprune.Plan.from_json(result.plan.to_json()))
    with torch.no_grad():
        wanted = reprune.mask(model, result.plan)(given[0])
        torch.testing.assert_close(again(given[0]), wanted, rtol=0, atol=1e-10)
        torch.testing.assert_close(result.model(given[0]), wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("units", "inputs", "steps"), [(8, 4, MOST), (200, 250, int(WORK / (200 * 450**2))), (1000, 500, ROWS)]
)
def test_smaller_layers_are_regressed_on_more_steps(units, inputs, steps):
    aims, shown = Aims(2), [torch.zeros(1, size).expand(steps, size) for size in (inputs, units)]
    weights = [torch.zeros(1, size) for size in (inputs, units)]
    aims.add("layer", "rnn_tanh", [w.expand(units, -1) for w in weights], Steps(*shown, [1]), np.arange(units))
    (aim,) = aims._aims["layer"]
    assert len(aim.chosen) == steps // 2


class Learner:
    """Two layers of one number each, of which a model is the better the nearer their sum is to 3."""

    layers, places = ("low", "high"), (0,)

    def __init__(self):
        self.held = {"low": np.zeros(1), "high": np.zeros(1)}

    def run(self, place):
        return [abs(3 - self.held["low"] - self.held["high"])]

    def step(self, layer):
        return {layer: np.array([4.0 if layer == "low" else -2.0])}

    def read(self, names):
        return {name: self.held[name].copy() for name in names}

    def write(self, tensors):
        self.held |= tensors


class Divergence:
    """Judges by the number that a learner returns."""

    def divergence(self, run, places, rows):
        assert rows == "judged"
        return float(run(places[0])[0][0])


def test_the_best_length_is_taken_or_none():
    learner = Learner()
    assert refit_gates(learner, Divergence()) == {"low": [4.0], "high": [-1.0]}
    learner = Learner()
    learner.held["low"] = np.array([5.0])  # 4 more, or 2, are too many; 2 less are just right.
    assert refit_gates(learner, Divergence()) == {"high": [-2.0]}
    assert learner.held == {"low": [5.0], "high": [-2.0]}


def test_where_no_step_is_known_nothing_is_judged():
    learner, judged = Learner(), []
    learner.step, learner.run = lambda layer: {}, judged.append
    learner.layers = ()
    assert refit_gates(learner, None) == {}
    learner.layers = ("low",)
    answers = Divergence()
    answers.divergence = lambda run, places, rows: run(places[0]) or 1.0
    assert refit_gates(learner, answers) == {}
    assert judged == [0]
