"""Which sequence, and so which class, every row of a layer's responses belongs to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from reprune.core.errors import StatisticsError
from reprune.core.evidence.class_moments import ClassMoments
from reprune.core.layers import Slot, Structure
from reprune.torch.calibration.labelled import (
    _members,
    _scalar,
    _sequences,
    loss_gradients,
    observe_classes,
    watch_classes,
)
from reprune.torch.calibration.packs import pack_orders
from reprune.torch.tracing.record import trace


def numbers(*shape: int, dim: int) -> torch.Tensor:
    """Responses of three units that hold the number of their sequence, which goes along a dimension."""
    place = torch.arange(shape[dim]).view(-1, *[1] * (len(shape) - dim))
    return place.expand(*shape, 3)


@pytest.mark.parametrize(
    "response",
    [numbers(4, dim=0), numbers(5, 4, dim=1), numbers(4, 5, dim=0), numbers(4, 2, 5, dim=0), numbers(2, 5, 4, dim=2)],
    ids=["one row each", "after the steps", "before the steps", "before several axes", "after several axes"],
)
def test_sequences_are_told_from_steps_by_their_number(response: torch.Tensor) -> None:
    assert torch.equal(_sequences("layer", response, None, None, 4), response[..., 0].reshape(-1))


def test_sequences_of_a_pack_are_those_of_every_step() -> None:
    order = torch.tensor([2, 0, 1])
    found = _sequences("layer", torch.zeros(6, 3), torch.tensor([3, 2, 1]), order, 3)
    assert found.tolist() == [2, 0, 1, 2, 0, 2]


@pytest.mark.parametrize(
    ("shape", "sizes", "message"),
    [
        ((4, 4, 3), None, "layer: sequences and steps are 4 alike"),
        ((4, 5, 4, 3), None, "layer: sequences and steps are 4 alike"),
        ((5, 3, 3), None, "layer: 4 labels for a batch of 3 sequences"),
        ((5, 3), None, "layer: 4 labels for a batch of 5 sequences"),
        ((6, 3), [3, 2, 1], "layer: 4 labels for a batch of 3 sequences"),
    ],
)
def test_what_cannot_be_told_is_refused(shape: tuple[int, ...], sizes: list[int] | None, message: str) -> None:
    sizes = None if sizes is None else torch.tensor(sizes)
    with pytest.raises(StatisticsError, match=message):
        _sequences("layer", torch.zeros(shape), sizes, None if sizes is None else torch.arange(3), 4)


@pytest.mark.parametrize("labels", [[0, 2, 1], torch.tensor([[0], [2], [1]]), torch.eye(3)[[0, 2, 1]]], ids=str)
def test_labels_are_numbers_of_classes_or_classes_by_column(labels: Any) -> None:
    if isinstance(labels, torch.Tensor) and labels.shape == (3, 1):
        labels = labels[:, 0].to(torch.int32)
    assert _members(labels).tolist() == torch.eye(3)[[0, 2, 1]].tolist()


def test_some_responses_of_many_keep_their_classes() -> None:
    """Of 20 rows, 8 are drawn; every class has a response of its own. Layers that are not asked for are left out."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.other, self.head = nn.RNN(3, 2), nn.RNN(2, 2), nn.Linear(2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.other(self.rnn(x)[0])[0])

    model, classes = Two(), torch.tensor([2, 0, 1, 0])
    x = torch.eye(3)[classes].expand(5, 4, 3)
    with torch.no_grad():
        model.rnn.weight_hh_l0.zero_()  # The response is a function of the class alone.
        wanted = (model.rnn.weight_ih_l0 + (model.rnn.bias_ih_l0 + model.rnn.bias_hh_l0)[:, None]).tanh().T
    structure = trace(model, x)
    for most, count in ((8, 8), (None, 20), (20, 20), (30, 20)):
        moments = {"rnn:l0": ClassMoments("rnn:l0", 2)}
        with torch.no_grad(), watch_classes(model, structure, moments, classes, most):
            model(x)
        state = moments["rnn:l0"].state()
        assert state["counts"].sum() == count
        seen = state["counts"] > 0
        np.testing.assert_allclose(state["means"][seen], wanted.numpy()[seen], rtol=1e-5)
        np.testing.assert_allclose(state["scatters"], 0, atol=1e-10)
    assert state["counts"].tolist() == [10, 5, 5]
    moments = observe_classes(model, structure, [x, x], lambda _: classes)
    assert {name: found.count for name, found in moments.items()} == {"rnn:l0": 40, "other:l0": 40}


def test_packs_are_known_by_the_order_of_their_sequences() -> None:
    x, lengths, order = torch.randn(5, 4, 3), torch.tensor([2, 5, 3, 4]), torch.tensor([1, 3, 2, 0])
    rnn, long = nn.GRU(3, 2), torch.arange(4) != 0
    before = pack_padded_sequence(x, lengths, enforce_sorted=False)
    plain = pack_padded_sequence(x, torch.tensor([5, 4, 4, 2]))
    with pack_orders(rnn) as orders:
        made = {
            "by itself": (pack_padded_sequence(x, lengths, enforce_sorted=False), order),
            "picked": (pack_padded_sequence(x[:, order], lengths[order]), order),
            "selected": (pack_padded_sequence(x.index_select(1, order), lengths[order]), order),
            "sorted already": (pack_padded_sequence(x, torch.tensor([5, 4, 4, 2])), torch.arange(4)),
            "masked": (pack_padded_sequence(x[:, long], torch.tensor([5, 4, 4])), torch.tensor([1, 2, 3])),
            "by two axes": (
                pack_padded_sequence(x[order[:, None], order], torch.tensor([4, 4, 4, 2])),
                torch.arange(4),
            ),
            "by number and step": (
                pack_padded_sequence(x[torch.arange(4), order][None], torch.ones(4, dtype=torch.int64)),
                torch.arange(4),
            ),
        }
        rnn(before)
        rnn(plain)
        made |= {"from outside": (before, order), "from outside, sorted already": (plain, torch.arange(4))}
        for way, (pack, expected) in made.items():
            assert orders.of(pack.batch_sizes).tolist() == expected.tolist(), way
    rnn(PackedSequence(before.data, later := before.batch_sizes.clone(), order, order))
    assert orders.of(later).tolist() == [0, 1, 2, 3]  # Not seen any more.


def test_gradients_are_means_over_batches_and_zeros_where_there_are_none() -> None:
    model, generator = nn.Linear(3, 2, bias=False).double(), torch.Generator().manual_seed(0)
    model.spare, model.held = nn.Parameter(torch.ones(4)), nn.Buffer(torch.ones(2))
    batches = [torch.randn(5, 3, generator=generator, dtype=torch.float64) for _ in range(3)]
    slots = tuple(Slot(name, 0, size, "own", ()) for name, size in (("weight", 2), ("spare", 4), ("held", 2)))
    structure = Structure({}, slots, {"weight": (2, 3), "spare": (4,), "held": (2,)}, ())
    for count in (3, 1, 0):
        found = loss_gradients(model, structure, batches[:count], lambda net, x: net(x).square().mean())
        wanted = sum((2 * (x @ model.weight.detach().T).T @ x / 10 for x in batches[:count]), torch.zeros(2, 3))
        torch.testing.assert_close(found["weight"], wanted.double() / max(count, 1))
        assert [found[name].tolist() for name in ("spare", "held")] == [[0.0] * 4, [0.0] * 2]
    assert model.weight.grad is None


def test_a_loss_is_one_number_with_a_gradient() -> None:
    weight = torch.ones(1, 1, requires_grad=True)
    assert _scalar(weight * 2).shape == ()
    for wrong in (2.0, torch.ones(()), torch.ones(2, requires_grad=True)):
        with pytest.raises(StatisticsError, match="scalar tensor with a gradient"):
            _scalar(wrong)
