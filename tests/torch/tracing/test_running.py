"""How models are entered and called, and what a second pass leaves of what was recorded, piece by piece."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reprune.torch
from reprune.core.errors import UnsupportedModelError
from reprune.torch import RaggedGRU
from reprune.torch.tracing.modes import run
from reprune.torch.tracing.recording import Product, Recording, tensors_in
from reprune.torch.tracing.running.calling import as_batch, call, invoke
from reprune.torch.tracing.running.entries import Entry, entered, entry_of
from reprune.torch.tracing.running.isolation import apart, run_apart
from reprune.torch.tracing.running.unwrap import unwrap
from reprune.torch.tracing.tracer import Tracer


@pytest.mark.parametrize(
    ("entry", "path", "named"),
    [
        (Entry(), ("h", 0), ("h", 0)),
        (Entry("", "act"), ("h", 0, "x"), ("act(h)", 0, "x")),
        (Entry("core", "forward"), (1,), ("core.forward(1)",)),
        (Entry("core.0", "step"), ("h",), ("core.0.step(h)",)),
    ],
)
def test_arguments_are_named_by_the_method_that_takes_them(entry: Entry, path: Any, named: Any) -> None:
    assert entry.path(path) == named
    assert entry_of(named) == entry
    assert entry_of(("h(x", 1)) == Entry()


class Base(nn.Module):
    def helper(self, x: Any) -> Any:
        return self.part(x)

    def __len__(self) -> int:
        return 1

    size = 3


class Entered(Base):
    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Identity()

    def forward(self, x: Any, *more: Any) -> Any:
        if x is None:
            raise ValueError("nothing")
        return self.helper(x)


@pytest.mark.parametrize("everywhere", [False, True])
def test_calls_from_outside_are_made_with_other_arguments(everywhere: bool) -> None:
    model, seen = Entered(), []

    def change(entry: Entry, method: Any, args: Any, kwargs: Any) -> Any:
        seen.append((entry.owner, entry.method, args, kwargs))
        return (args[0] if args[0] is None else args[0] + 1, *args[1:]), kwargs

    vars(model.part)["forward"] = own = lambda x: x * 10
    with entered(model, change, everywhere=everywhere):
        assert model(1, 2) == 20
        with pytest.raises(ValueError, match="nothing"):
            model(None)
        assert model.forward(2) == 30
        assert model.helper(1) == (20 if everywhere else 10)
        assert model.part(1) == (20 if everywhere else 10)
    wanted = [("", "forward", (1, 2), {}), ("", "forward", (None,), {}), ("", "forward", (2,), {})]
    more = [("", "helper", (1,), {}), ("part", "forward", (1,), {})]
    assert seen == [*wanted, *more] if everywhere else seen == wanted
    assert not {"forward", "helper"} & vars(model).keys()
    assert vars(model.part)["forward"] is own
    assert model(1) == 10


class Takes(nn.Module):
    def forward(self, x: Any, y: Any = None, *, z: Any = None) -> Any:
        return x, y, z


class TakesAny(nn.Module):
    def forward(self, *xs: Any, z: Any = None) -> Any:
        return (*xs, z)


def test_how_batches_are_given() -> None:
    model = Takes()
    assert invoke(model, {"x": 1, "z": 2}) == (1, None, 2)
    assert invoke(model, (1, 2)) == invoke(model, [1, 2]) == (1, 2, None)
    assert invoke(model, 3) == (3, None, None)
    assert invoke(model, 3, lambda net, batch: net(batch, batch)) == (3, 3, None)
    written = torch.zeros(2)
    assert call(model, {"x": written})[0] is not written
    for kind in (Takes, TakesAny):
        for args, kwargs in (((1, 2), {}), ((1,), {"z": 3}), ((1, 2), {"z": 3})):
            batch, forward = as_batch(kind(), args, kwargs)
            assert invoke(kind(), batch, forward) == kind()(*args, **kwargs)
    assert as_batch(model, (1, 2), {"z": 3}) == ({"x": 1, "y": 2, "z": 3}, None)


def test_what_a_second_pass_leaves_of_what_was_counted() -> None:
    recording = Recording()
    a = recording.couplings.new(2)
    counted = {"uses": {"w": 1}, "rows": {"w": 5}, "steps": {"l0": 3}}
    vars(recording).update({name: dict(held) for name, held in counted.items()})
    recording.products = [Product(1, (a,))]
    with recording.not_counted():
        for held in (recording.uses, recording.rows, recording.steps):
            held["w"] = held["l0"] = 9
        recording.products.append(Product(2, (a,)))
    assert {name: vars(recording)[name] for name in counted} == counted
    assert [product.rows for product in recording.products] == [1]
    recording.couplings.union(a[:1], a[1:])
    recording.begin_feedback()
    assert not recording.uses | recording.rows | recording.steps
    assert recording.products == []
    recording.couplings.new(3)
    assert recording.before_feedback is not None
    assert recording.before_feedback.tolist() == [0, 1, 1]
    recording.keep_equal(iter(["b", "a"]), None)  # type: ignore[arg-type]
    assert recording.count_coupled == [["b", "a"]]


@dataclass
class Answer:
    logits: Tensor
    others: Any


def test_tensors_of_an_answer() -> None:
    a, b, c = (torch.zeros(k) for k in range(3))
    nest = {"x": [Answer(a, (b, "text")), 3], "y": c}
    assert [tensor is one for tensor, one in zip(tensors_in(nest), (a, b, c), strict=True)] == [True] * 3
    assert list(tensors_in({a})) == [a]
    packed = nn.utils.rnn.pack_sequence([torch.ones(2), torch.ones(1)])
    assert [tensor.tolist() for tensor in tensors_in(packed)] == [[1, 1, 1], [2, 1]]


class MakesZeros(nn.Module):
    """Zero states of the user's own, in code between that of PyTorch's modules."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.cell, self.ragged = nn.LSTM(5, 4), nn.GRUCell(4, 4), RaggedGRU(5, [(4,)])
        self.inside = nn.Sequential(nn.Identity())
        self.inside[0].forward = lambda x: x + torch.stack([torch.zeros(3), x.new_zeros(3)])[0, 0]

    def forward(self, x: Tensor) -> Any:
        h = torch.zeros(1, 2, 7)
        return h, self.cell(self.lstm(self.inside(x))[0][0]), self.ragged(x)


def test_zero_states_that_pytorchs_modules_make_are_their_own() -> None:
    model, x = MakesZeros(), torch.randn(3, 2, 5)
    tracer = Tracer(model)
    with torch.no_grad():
        run(tracer, lambda: model(x))
    assert {tuple(zeros.shape) for zeros in tracer._own_zeros.values()} == {(1, 2, 4), (2, 4)}


def test_passes_apart_are_those_of_evaluation_unless_told() -> None:
    model, x = nn.Dropout(0.5).train(), torch.ones(200)
    assert torch.equal(run_apart(model, x), x)
    halves = run_apart(model, x, train=True)
    assert set(halves.tolist()) == {0.0, 2.0}
    assert torch.equal(run_apart(model, x, train=True), halves)
    assert not torch.equal(run_apart(model, x, train=True, seed=1), halves)
    assert model.training
    with apart(model) as drawn:
        assert not model.training
    assert not drawn.used


def test_sharded_models_are_refused_with_the_way_out() -> None:
    model = nn.Sequential(nn.LSTM(5, 8))
    for name in ("_fsdp_wrapped_module", "_get_fsdp_state"):
        vars(model[0])[name] = None
        with pytest.raises(UnsupportedModelError, match=r"0 \(LSTM\) is sharded by FSDP.*full_state_dict=True"):
            unwrap(model)
        del vars(model[0])[name]
    assert unwrap(model) is model


@pytest.mark.parametrize("given", [False, True])
def test_an_answer_is_located_by_whoever_gives_it(given: bool) -> None:
    def forward(model: nn.Module, x: Tensor) -> Tensor:
        return model(x)[0]

    class Returns(nn.LSTM):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x)

    pin = reprune.torch.trace(Returns(5, 8), torch.randn(3, 2, 5), forward if given else None).layers[":l0"].pin
    code = (forward if given else Returns.forward).__code__
    assert pin is not None
    assert (pin.site.operation, pin.site.location) == ("output", f"{__file__}:{code.co_firstlineno}")
