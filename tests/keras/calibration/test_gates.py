"""Refitted gates in Keras: PyTorch's steps on the same weights, those of least squares, and what becomes of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pytest
import torch
from torch import nn

import reprune
from reprune import Method
from reprune.core.answers.answers import Answers
from reprune.core.answers.gates import FLOOR, RIDGE, refit_gates
from reprune.core.folding.fold import Refit
from reprune.keras.calibration.gates import Gates
from reprune.keras.calibration.pupil import answering
from reprune.torch.calibration import gates as in_torch
from reprune.torch.calibration import pupil as torch_pupil
from tests.helpers.keras_models import in_double
from tests.keras.test_against_torch import kernels
from tests.torch.calibration.test_gates import LENGTHS, batches, made

L = keras.layers
GATES = True


def twin(kind: str, like: nn.Module) -> Any:
    """PyTorch's bidirectional layer and a classifier, on sequences of which steps of zeros are masked."""
    with in_double():
        option = {"activation": "relu"} if kind == "SimpleRNN" else {}
        layer = L.Bidirectional(getattr(L, kind)(8, return_sequences=True, **option), name="rnn")
        model = keras.Sequential([keras.Input((9, 3)), L.Masking(), layer, L.Dense(5)])
    layer.set_weights([*kernels(like.rnn, "l0"), *kernels(like.rnn, "l0_reverse")])
    model.layers[-1].set_weights([like.out.weight.detach().numpy().T, like.out.bias.detach().numpy()])
    return model


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "SimpleRNN"])
def test_steps_are_those_of_pytorch(kind: str) -> None:
    model = made(nn.RNN, nonlinearity="relu") if kind == "SimpleRNN" else made(getattr(nn, kind))
    if kind != "GRU":  # Keras has one bias, which PyTorch's step moves as the sum of two.
        for suffix in ("l0", "l0_reverse"):
            getattr(model.rnn, f"bias_hh_{suffix}").data.zero_()
    given = batches(3)
    for batch in given:
        batch *= (torch.arange(9) < LENGTHS[:, None])[..., None]
    plan = reprune.plan(model, given, 0.5, method="magnitude")
    ours = in_torch.Gates(
        model, reprune.apply(model, plan), plan, Answers(given, torch_pupil.answering(model, None)), None, None
    )
    other, arrays = twin(kind, model), [batch.numpy() for batch in given]
    other_plan = reprune.plan(other, arrays, 0.5, method="magnitude")
    assert list(other_plan.kept.values()) == list(plan.kept.values())
    small = reprune.apply(other, other_plan)
    theirs = Gates(other, small, other_plan, Answers(arrays, answering(other, None)), None, None)
    assert theirs.layers == ["rnn/forward/kernel", "rnn/backward/kernel"]
    for suffix, direction in (("l0", "forward"), ("l0_reverse", "backward")):
        step = ours.step(f"rnn.weight_ih_{suffix}")
        moved = nn.Module()
        moved.__class__ = type(model.rnn)
        for name, values in step.items():
            moved.register_buffer(name.removeprefix("rnn."), torch.from_numpy(values))
        found = theirs.step(f"rnn/{direction}/kernel")
        for wanted, values in zip(kernels(moved, suffix), found.values(), strict=True):
            np.testing.assert_allclose(values, wanted, rtol=1e-6, atol=1e-8)


def test_states_that_are_reset_before_the_product() -> None:
    """One step of a GRU from a state that the model takes and returns, against least squares."""
    keras.utils.set_random_seed(0)
    with in_double():
        x, state = keras.Input((1, 3)), keras.Input((6,))
        response, last = L.GRU(6, reset_after=False, return_state=True, name="gru")(x, initial_state=state)
        model = keras.Model([x, state], [L.Dense(4)(response), last])
    rng = np.random.default_rng(0)
    inputs, states = rng.normal(size=(200, 1, 3)), rng.normal(size=(200, 6))
    kernel, recurrent, bias = (2 * rng.normal(size=weight.shape) for weight in model.get_layer("gru").weights)
    model.get_layer("gru").set_weights([kernel, recurrent, bias])
    plan = reprune.plan(model, [[inputs, states]], 0.5, method="magnitude")
    kept = plan.kept["gru"]
    taken = [[inputs, states]]
    gates = Gates(
        model,
        reprune.apply(model, plan),
        plan,
        Answers(taken, answering(model, None)),
        None,
        lambda small, batch: small([batch[0], batch[1][:, kept]]),
    )

    def respond(shift: Any = 0.0) -> tuple[Any, ...]:
        """Pre-activations of all gates, the resets and the responses; with a shift of the pre-activations."""
        first = inputs[:, 0] @ kernel + bias + np.pad(states @ recurrent[:, :12], ((0, 0), (0, 6))) + shift
        update, reset = 1 / (1 + np.exp(-first[:, :6])), 1 / (1 + np.exp(-first[:, 6:12]))
        a = np.concatenate([first[:, :12], first[:, 12:] + (reset * states) @ recurrent[:, 12:]], axis=1)
        return a, reset, update * states + (1 - update) * np.tanh(a[:, 12:])

    a, reset, _ = respond()
    step = gates.step("gru/kernel")
    for gate in range(3):
        for place, unit in enumerate(kept):
            row, column = 6 * gate + unit, len(kept) * gate + place
            nudge = 1e-6 * np.eye(18)[row]
            slopes = np.square((respond(nudge)[2] - respond(-nudge)[2]) / 2e-6).sum(1)
            root = np.sqrt(slopes + FLOOR * slopes.mean())[:, None]
            fed = (states * reset if gate == 2 else states)[:, kept]
            features = np.column_stack([inputs[:, 0], np.ones(200), fed])
            now = np.concatenate([kernel[:, row], [bias[row]], recurrent[kept, row]])
            shrink = np.diag(np.sqrt(RIDGE * (root**2 * features**2).sum(0)))
            right = np.append(root[:, 0] * (a[:, row] - features @ now), np.zeros(len(now)))
            wanted = np.linalg.lstsq(np.vstack([root * features, shrink]), right, rcond=None)[0]
            found = [*step["gru/kernel"][:, column], step["gru/bias"][column], *step["gru/recurrent_kernel"][:, column]]
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


def test_answers_on_other_batches_come_nearer_to_the_dense_model() -> None:
    keras.utils.set_random_seed(0)
    both = L.Bidirectional(L.LSTM(8, return_sequences=True), name="both")
    model = keras.Sequential([keras.Input((9, 3)), both, L.Dense(5)])
    model.set_weights([2.5 * weight for weight in model.get_weights()])
    rng = np.random.default_rng(1)
    given, others = ([rng.normal(size=(64, 9, 3)).astype("float32") for _ in range(2)] for _ in range(2))
    plan = reprune.plan(model, given, 0.5, method=Method("uniform", "reconstruction", "least-squares"))
    small, answers = reprune.apply(model, plan), Answers(given, answering(model, None), "kl")
    judge = Answers(others, answering(model, None), "kl")

    def far() -> float:
        run = answering(small, None)
        return judge.divergence(lambda place: run(others[place]), judge.places, "all")

    before = far()
    changed = refit_gates(Gates(model, small, plan, answers, None, None), answers)
    assert {"both/forward/recurrent_kernel", "both/backward/recurrent_kernel"} & changed.keys()
    assert far() < before
    plan = replace(plan, refits=tuple(Refit.of(name, value) for name, value in changed.items()))
    plan = reprune.Plan.from_json(plan.to_json())
    for found in (reprune.apply(model, plan), reprune.mask(model, plan)):
        np.testing.assert_allclose(np.asarray(found(others[0])), np.asarray(small(others[0])), atol=1e-5)


def test_cells_in_a_stack() -> None:
    cells = [L.GRUCell(4), L.LSTMCell(4, recurrent_activation="hard_sigmoid"), L.SimpleRNNCell(4)]
    model = keras.Sequential([keras.Input((3, 2)), L.RNN(cells, name="stack"), L.Dense(2)])
    batch = np.random.default_rng(0).normal(size=(4, 3, 2)).astype("float32")
    plan = reprune.plan(model, [batch], 0.5, method="magnitude")
    small = reprune.apply(model, plan)
    gates = Gates(model, small, plan, Answers([batch], answering(model, None)), None, None)
    # A cell with other activations is left alone.
    assert gates.layers == ["stack/l0/kernel", "stack/l2/kernel"]
    for layer, shapes in (("l0", [(2, 6), (2, 6), (2, 6)]), ("l2", [(2, 2), (2, 2), (2,)])):
        assert [step.shape for step in gates.step(f"stack/{layer}/kernel").values()] == shapes


def test_layers_inside_of_models_and_batches_without_a_valid_step() -> None:
    """What took other steps than in the dense model says nothing; what lost no units is left alone."""
    with in_double():
        x, entry = keras.Input((None, 3)), keras.Input((None, 3))
        states = L.GRU(4, return_sequences=True, name="gru")(L.Masking()(entry))
        inner = keras.Model(entry, L.Dense(4)(states), name="inner")
        model = keras.Model(x, L.Dense(2)(L.Add()([inner(x), L.GRU(4, return_sequences=True, name="whole")(x)])))
    batch = np.random.default_rng(0).normal(size=(6, 5, 3))
    plan = reprune.plan(model, [batch], 0.5, method="magnitude", exclude=["whole"])
    small = reprune.apply(model, plan)
    steps = []
    for taken in ([batch], [0 * batch, batch]):
        gates = Gates(model, small, plan, Answers(taken, answering(model, None)), None, None)
        assert gates.layers == ["inner/gru/kernel"]
        steps.append(gates.step("inner/gru/kernel"))
        taken[-1] = batch[:5]
        assert gates.step("inner/gru/kernel") == {}
    for name, values in steps[0].items():
        np.testing.assert_allclose(values, steps[1][name], rtol=1e-9)
