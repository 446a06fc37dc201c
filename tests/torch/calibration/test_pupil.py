"""The pruned model as something that is refitted, and what its output owes to its consumers: against autograd."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from reprune.core.answers.answers import Answers
from reprune.core.evidence.readings import random_signs
from reprune.core.layers import Consumer
from reprune.torch.calibration.importance import output_importance
from reprune.torch.calibration.pupil import Pupil, answering, made_by_sigmoid
from reprune.torch.tracing.record import trace

SHORT = (torch.float16, torch.bfloat16)


class Calls(nn.Module):
    """A recurrent layer that is called twice, a linear layer below it, and two outputs above; counts its passes."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.rnn = nn.Linear(3, 4), nn.GRU(4, 5)
        self.first, self.second = nn.Linear(10, 4), nn.Linear(4, 3, bias=False)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        self.calls += 1
        x = self.below(x)
        h = self.first(torch.cat([self.rnn(x)[0], self.rnn(x.flip(0))[0]], -1)).relu()
        return self.second(h), h, x.argmax(-1)


def given(count: int, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(6, 2, 3, generator=generator).to(dtype) for _ in range(count)]


def made(dtype: torch.dtype) -> tuple[Calls, list[torch.Tensor], Answers, Pupil]:
    """A model, batches, answers that are not its own, and the model as a pupil."""
    torch.manual_seed(0)
    model, batches, other = Calls().to(dtype).eval(), given(3, dtype), Calls().to(dtype).eval()
    answers = Answers(batches, answering(other, None))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pupil = Pupil(model, trace(model, batches[0]), answers, None)
    # What depends on which weights was found out by changing them.
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items() if name != "calls")
    return model, batches, answers, pupil


def writing(model: nn.Module, batch: torch.Tensor) -> Any:
    """A pass that has no gradient, as it writes into the weights."""
    for weight in model.parameters():
        weight.mul_(2)
    return model(batch)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_pupil_answers_and_learns_as_its_model_does(dtype: torch.dtype) -> None:
    model, batches, answers, pupil = made(dtype)
    before = {name: value.clone() for name, value in model.state_dict().items() if name != "calls"}
    wide = torch.float32 if dtype in SHORT else dtype
    # What it reads: second moments of all batches, of all steps, with a one where there is a bias.
    seen: dict[str, list[torch.Tensor]] = {"first": [], "second": []}
    hooks = [
        getattr(model, name).register_forward_pre_hook(lambda _, args, name=name: seen[name].append(args[0].detach()))
        for name in seen
    ]
    outputs = [model(batch) for batch in batches]
    for hook in hooks:
        hook.remove()
    assert [weight.tensor for weight in pupil.weights] == ["first.weight"]
    rows = torch.cat([part.flatten(0, 1) for part in seen["first"]]).double().numpy()
    rows = np.column_stack([rows, np.ones(len(rows))])
    assert (pupil.weights[0].axis, pupil.weights[0].bias) == (1, "first.bias")
    np.testing.assert_allclose(pupil.weights[0].moments, rows.T @ rows / len(rows), rtol=1e-9)

    names = ["second.weight", "first.weight", "first.bias"]
    weights = [model.get_parameter(name) for name in names]
    weights[0].requires_grad_(False)
    rng, same = np.random.default_rng(3), np.random.default_rng(3)
    found = list(pupil.gradients(names, rng))
    assert [weight.requires_grad for weight in weights] == [False, True, True]
    weights[0].requires_grad_(True)
    tolerance = {"rtol": 1e-9, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 0.05, "atol": 0.01}
    assert answers.places == [0, 1, 2]
    for place in answers.places:
        now = [output.detach().to(wide) if output.is_floating_point() else output for output in outputs[place]]
        for output, answer in zip(pupil.run(place), now, strict=True):
            assert output.dtype == answer.dtype
            torch.testing.assert_close(output, answer, rtol=0, atol=0)
        pairs = list(answers.cotangents(place, now, same))
        assert len(pairs) > 1
        for kind, gradients in enumerate(found[place]):
            total = sum((outputs[place][pair[0]] * pair[1 + kind]).sum() for pair in pairs)
            wanted = torch.autograd.grad(total, weights, retain_graph=True)
            for name, gradient in zip(names, wanted, strict=True):
                assert gradients[name].dtype == np.float64
                np.testing.assert_allclose(gradients[name], gradient.double().numpy(), **tolerance)
    held = pupil.read(names)
    assert all(held[name].dtype == (np.float32 if dtype in SHORT else np.float64) for name in names)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items() if name in before)
    pupil.write({"first.weight": np.asfortranarray(-2 * held["first.weight"])})
    assert torch.equal(model.first.weight, -2 * before["first.weight"])
    assert np.array_equal(held["first.weight"], before["first.weight"].to(wide).numpy())  # It is a copy.
    for output, wanted in zip(pupil.run(1), model(batches[1]), strict=True):
        torch.testing.assert_close(output, wanted.to(output.dtype), rtol=0, atol=0)
    assert not any(weight.grad is not None for weight in model.parameters())


def test_recurrent_layers_of_a_pupil_run_once_for_every_call_in_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches, _, pupil = made(torch.float64)
    ran, forward = [], nn.GRU.forward
    monkeypatch.setattr(nn.GRU, "forward", lambda self, *args: ran.append(args) or forward(self, *args))
    for _ in range(2):
        for place, batch in enumerate(batches):
            for found, wanted in zip(pupil.run(place), model(batch), strict=True):
                torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    assert len(ran) == 2 * 2 * len(batches)  # Those of the model itself: all of the pupil's were there before.
    assert "forward" not in vars(model.rnn)


@pytest.mark.parametrize("forward", [None, lambda model, batch: model(batch * 2)])
def test_answers_are_of_single_precision_and_leave_the_model_as_it_was(forward: Any) -> None:
    model, (batch,) = Calls().to(torch.bfloat16).train(), given(1, torch.bfloat16)
    found = answering(model, forward)(batch)
    assert model.calls == 0
    assert model.training
    assert [output.dtype for output in found] == [torch.float32, torch.float32, torch.int64]
    for output, wanted in zip(found, model(batch if forward is None else batch * 2), strict=True):
        torch.testing.assert_close(output, wanted.to(output.dtype), rtol=0, atol=0)
        assert not output.requires_grad


def test_numbers_that_a_sigmoid_made_are_known() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out, self.count = nn.Linear(3, 4), nn.Parameter(torch.arange(3), requires_grad=False)

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            y = self.out(x)
            chance = y.sigmoid()
            far = chance
            for _ in range(9):
                far = far * 1.0
            return [
                y, chance, chance.flatten()[2:7], torch.stack([chance, chance[:1].expand(2, -1)]), chance * 2, y.tanh(),
                chance.detach(), 1 - chance, far, chance.argmax(-1), (0.0 * y + chance).view(-1),
            ]  # fmt: skip

    model, x = Gated(), torch.randn(2, 3)
    model.out.weight.requires_grad_(False)
    model.out.bias.requires_grad_(False)
    assert made_by_sigmoid(model, x, None) == [1, 2, 3, 10]
    assert made_by_sigmoid(model, x, lambda model, batch: model(batch)[:2]) == [1]
    assert not any(weight.requires_grad for weight in model.parameters())
    assert made_by_sigmoid(model, x, torch.inference_mode()(lambda model, batch: model(batch))) == []
    assert made_by_sigmoid(model, x, writing) == []


@pytest.mark.parametrize("draws", [1, 3])
def test_importance_is_the_mean_square_of_random_gradients(draws: int) -> None:
    torch.manual_seed(0)
    model, (batch,) = Calls().double().eval(), given(1, torch.float64)
    model.first.weight.requires_grad_(False)
    model.spare, model.buffer = nn.Linear(2, 2).double(), nn.Buffer(torch.ones(3, 3, dtype=torch.float64))
    consumers = [
        Consumer(tensor, axis, None)
        for tensor, axis in [("first.weight", 1), ("first.weight", 0), ("rnn.weight_hh_l0", 1), ("second.weight", 1)]
    ]
    others = [Consumer("spare.weight", 1, None), Consumer("buffer", 1, None)]  # Nothing reads by these.
    found = output_importance(model, [*consumers, *others], batch, draws=draws, seed=7)
    assert [weight.requires_grad for weight in model.parameters()].count(False) == 1
    assert set(found) == {(consumer.tensor, consumer.axis) for consumer in consumers}
    model.requires_grad_(True)
    outputs, rng, total = model(batch)[:2], np.random.default_rng(7), dict.fromkeys(found, 0.0)
    for _ in range(draws):
        signs = [torch.from_numpy(random_signs(rng, tuple(output.shape))) for output in outputs]
        number = sum((output * sign).sum() for output, sign in zip(outputs, signs, strict=True))
        for name, axis in found:
            (gradient,) = torch.autograd.grad(number, model.get_parameter(name), retain_graph=True)
            total[name, axis] += (gradient**2).sum(axis) / draws
    for key, value in found.items():
        assert value.dtype == torch.float64
        torch.testing.assert_close(value, total[key])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_importance_of_tiny_gradients_in_half_precision(dtype: torch.dtype) -> None:
    model, x = nn.Linear(3, 2, bias=False).to(dtype), torch.tensor([[1.0, 2.0, 2.0]], dtype=dtype)
    found = output_importance(model, [Consumer("weight", 1, None)], x, lambda model, batch: model(batch * 2.0**-12))
    assert found["weight", 1].tolist() == [9 * 2.0**-24] * 2
    assert output_importance(model, [Consumer("weight", 1, None)], x, writing) == {}
    nothing = output_importance(model, [Consumer("weight", 1, None)], 0 * x)
    assert nothing["weight", 1].tolist() == [0, 0]
