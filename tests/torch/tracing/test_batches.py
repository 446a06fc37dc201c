"""Batches as loaders give them: the part that the model takes is found, or the error says what to give instead."""

from __future__ import annotations

from collections import UserDict
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import reprune.torch
from reprune.core.errors import BatchError, BatchWarning, InternalError


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.GRU(5, 12, batch_first=True), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.rnn(x)[0][:, -1])


class WithLengths(Classifier):
    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        h = self.rnn(x)[0]
        return self.out(h[torch.arange(len(h)), lengths - 1])


class OptionalState(Classifier):
    """A second argument that labels would fit by their place."""

    def forward(self, x: torch.Tensor, h: torch.Tensor | None = None) -> torch.Tensor:
        return self.out(self.rnn(x, h)[0][:, -1])


class Named(Classifier):
    def forward(self, input_values: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        return super().forward(input_values if attention_mask is None else input_values * attention_mask[..., None])


class Pair(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


X, Y, LENGTHS = torch.randn(8, 6, 5), torch.zeros(8).long(), torch.full((8,), 6)
MASK = torch.ones(8, 6)
TAKEN: dict[str, tuple[type[Classifier], Any, str]] = {
    "pair": (Classifier, (X, Y), "model(batch[0])"),
    "list": (Classifier, [X, Y], "model(batch[0])"),
    "named tuple": (Classifier, Pair(X, Y), "model(batch[0])"),
    "label first": (Classifier, (Y, X), "model(batch[1])"),
    "inputs, lengths and labels": (WithLengths, (X, LENGTHS, Y), "model(*batch[:2])"),
    "nested": (WithLengths, ((X, LENGTHS), Y), "model(*batch[0])"),
    "labels that fit an optional state": (OptionalState, (X, Y), "model(batch[0])"),
    "dictionary": (Named, {"input_values": X, "attention_mask": MASK, "labels": Y}, "'input_values', 'attention_mask'"),
    "batch of a tokeniser": (Named, UserDict(input_values=X, labels=Y), "'input_values'"),
    "other names": (Classifier, {"features": X, "target": Y}, "model(batch['features'])"),
    "dictionary and labels": (Named, ({"input_values": X}, Y), "model(**batch[0])"),
}


@pytest.mark.parametrize(("kind", "batch", "code"), TAKEN.values(), ids=TAKEN)
def test_the_part_that_the_model_takes_is_found(kind: type[Classifier], batch: Any, code: str) -> None:
    torch.manual_seed(0)
    model = kind()
    with pytest.warns(BatchWarning) as found:
        plan = reprune.torch.plan(model, [batch, batch], 0.5, method="reconstruct")
    assert len(found) == 1
    message = str(found[0].message)
    assert code in message
    written = message.split("forward=", 1)[1].split(". Pass", 1)[0]
    again = reprune.torch.plan(model, [batch, batch], 0.5, method="reconstruct", forward=eval(written))
    assert again.kept == plan.kept == {"rnn:l0": plan.kept["rnn:l0"]}
    assert len(plan.kept["rnn:l0"]) == 6


def test_a_data_loader_of_pairs_serves_every_verb() -> None:
    model, loader = Classifier(), DataLoader(TensorDataset(X, Y), batch_size=4)
    with pytest.warns(BatchWarning):
        assert reprune.torch.inspect(model, loader).structure.prunable == ("rnn:l0",)
    with pytest.warns(BatchWarning):
        small = reprune.torch.prune(model, loader, 0.5, method="magnitude").model
    with pytest.warns(BatchWarning):
        reprune.torch.distill(small, model, loader, steps=2)


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (X.numpy(), r"NumPy array \(8, 6, 5\) of float32.* runs on tensors: convert"),
        ((X.numpy(), Y.numpy()), r"runs on tensors, with forward=lambda model, batch: model\(batch\[0\]\)"),
        (X.double(), r"tensor \(8, 6, 5\) of float64.*model's type, torch.float32"),
        (X[0], r"one more axis"),
        (X[..., :4], r"does not run on the first batch: .*5.*Give batches as the model takes them"),
        ("text", "a str"),
        (None, "a NoneType"),
    ],
    ids=["array", "pair of arrays", "double", "no batch axis", "too few features", "text", "nothing"],
)
def test_what_does_not_run_is_told_with_what_would(batch: Any, expected: str) -> None:
    with pytest.raises(BatchError, match=expected) as raised:
        reprune.torch.prune(Classifier(), [batch], 0.5)
    assert raised.value.__cause__ is not None


def test_a_forward_that_would_run_on_something_else_is_told_so() -> None:
    with pytest.raises(BatchError, match=r"runs on tensors: convert"):
        reprune.torch.inspect(
            Classifier(), [{"x": {"y": X.numpy()}}], forward=lambda model, batch: model(batch["x"]["y"])
        )
    with pytest.raises(BatchError, match=r"runs on tensors, with forward=lambda model, batch: model\(\*batch\[:2\]\)"):
        reprune.torch.inspect(WithLengths(), [(X.numpy(), LENGTHS.numpy(), Y.numpy())])
    with pytest.raises(BatchError, match=r"runs on batches of sequences \(one more axis in front\): convert"):
        reprune.torch.inspect(Classifier(), [([X[0]],)], forward=lambda model, batch: model(batch[0][0]))


class Table(nn.Module):
    """A model without weights, which wants whole numbers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.one_hot(x, 5)


@pytest.mark.parametrize(
    ("batch", "expected"),
    [(Y.numpy(), "runs on tensors: convert"), (Y.double(), "whole numbers"), (Y.float().numpy(), "whole numbers")],
)
def test_a_model_without_weights_is_told_what_would_run(batch: Any, expected: str) -> None:
    with pytest.raises(BatchError, match=expected):
        reprune.torch.inspect(Table(), [batch])


def test_a_forward_that_fails_is_named() -> None:
    with pytest.raises(BatchError, match=r"forward\(model, batch\) does not run on the first batch: .*test_batches.py"):
        reprune.torch.inspect(Classifier(), [(X, Y)], forward=lambda model, batch: model(batch[1]))


def test_batches_are_left_as_they_were() -> None:
    """A model that writes into what it is given."""

    class Writes(Classifier):
        def forward(self, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
            out[:] = super().forward(x)
            x.mul_(0)
            return out * 1

    batches = [(torch.randn(8, 6, 5), torch.zeros(8, 3)) for _ in range(2)]
    before = [batch[0].clone() for batch in batches]
    reprune.torch.prune(Writes(), batches, 0.5)
    for batch, was in zip(batches, before, strict=True):
        assert torch.equal(batch[0], was)
        assert not batch[1].any()
        assert batch[1].grad_fn is None


def test_batches_with_a_graph() -> None:
    batch = nn.Linear(4, 5)(torch.randn(8, 6, 4))
    assert reprune.torch.prune(Classifier(), [batch], 0.5, method="magnitude").plan.counts() == {"rnn:l0": 6}


def test_what_fails_in_our_own_code_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reprune.torch.tracing.rules.class_of", None)
    with pytest.raises(InternalError, match=r"a gap of reprune, not of the model.*exclude=") as raised:
        reprune.torch.inspect(Classifier(), [X])
    assert __file__ in str(raised.value)
    assert isinstance(raised.value.__cause__, TypeError)


class Decorated(Classifier):
    @torch.inference_mode()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)


def test_inference_mode_on_forward() -> None:
    model = Decorated()
    result = reprune.torch.prune(model, [X], 0.5, method="magnitude")
    masked = reprune.torch.mask(model, result.plan)
    np.testing.assert_allclose(result.model(X).numpy(), masked(X).numpy(), rtol=1e-5, atol=1e-6)


def test_verbs_in_inference_mode_give_a_model_that_can_be_trained() -> None:
    with torch.inference_mode():
        model, x = Classifier(), torch.randn(8, 6, 5)
        assert reprune.torch.inspect(model, [x]).structure.prunable == ("rnn:l0",)
        small = reprune.torch.prune(model, [x, x], 0.5).model
    small(X).sum().backward()
    assert small.out.weight.grad is not None
