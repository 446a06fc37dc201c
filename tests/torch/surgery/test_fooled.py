"""Attempts to have units read behind the trace's back: each is found, refused with the layer's name, or pinned."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import reprune.torch
from reprune.core.errors import RepruneError, VerificationError
from tests.helpers.torch_oracle import check_oracle, prepared, random_plans


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 8, batch_first=True)
        self.other = nn.GRU(5, 6, batch_first=True)
        self.out, self.last = nn.Linear(8, 3), nn.Linear(6, 3)

    def detour(self, h: torch.Tensor) -> torch.Tensor:
        return self.out(h)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.detour(self.lstm(x)[0]) + self.last(self.other(x)[0])


class ThroughNumpy(Tagger):
    def detour(self, h: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(h.detach().numpy() @ self.out.weight.detach().numpy().T)


class ThroughNumpySum(Tagger):
    def detour(self, h: torch.Tensor) -> torch.Tensor:
        return self.out(h) + float(np.abs(h.detach().numpy()).sum())


class ThroughList(Tagger):
    def detour(self, h: torch.Tensor) -> torch.Tensor:
        return self.out(h) + torch.tensor(h.tolist(), dtype=h.dtype).mean()


class ThroughItem(Tagger):
    """A unit's value as a Python number."""

    def detour(self, h: torch.Tensor) -> torch.Tensor:
        return self.out(h) + h[0, 0].max().item()


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(h.detach().numpy() * 2)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * 2


class ThroughFunction(Tagger):
    """A custom autograd function that computes in NumPy."""

    def detour(self, h: torch.Tensor) -> torch.Tensor:
        return self.out(Double.apply(h))


def seed_model(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return prepared(kind().double(), train=False)


@pytest.mark.parametrize("kind", [ThroughNumpy, ThroughNumpySum, ThroughList, ThroughItem, ThroughFunction])
def test_detours_out_of_torch_are_refused_or_pinned(kind: type[nn.Module]) -> None:
    model, x = seed_model(kind), torch.randn(2, 6, 5, dtype=torch.float64)
    try:
        structure = reprune.torch.inspect(model, [x]).structure
    except VerificationError as found:
        error = str(found)
    else:
        error = ""
    if error:
        assert "lstm:l0" in error
        assert "other:l0" not in error
        excluded = reprune.torch.plan(model, [x], 0.5, method="magnitude", exclude=["lstm*"])
        check_oracle(model, excluded, torch.randn(3, 4, 5, dtype=torch.float64))
        return
    assert structure.layers["lstm:l0"].pin is not None
    assert structure.layers["other:l0"].pin is None


class DataAttribute(Tagger):
    """Units read through `.data`."""

    def detour(self, h: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.out(h.data)) + self.out(h.detach())


class TorchFunction(Tagger):
    """A custom autograd function made of PyTorch's operations."""

    class Half(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, h: torch.Tensor) -> torch.Tensor:
            return h * 0.5

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            return gradient * 0.5

    def detour(self, h: torch.Tensor) -> torch.Tensor:
        return self.out(self.Half.apply(h))


class Hooked(Tagger):
    """A forward hook that gates the units."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.rand(8))
        self.lstm.register_forward_hook(self._gated)

    def _gated(self, module: nn.Module, args: Any, output: Any) -> Any:
        return output[0] * self.gate, output[1]


class Buffered(Tagger):
    """The last state is kept in a buffer between calls."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("memory", torch.zeros(1, 1, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h0 = self.memory.expand(1, x.size(0), 8).contiguous()
        output, (h, _) = self.lstm(x, (h0, torch.zeros_like(h0)))
        self.memory = h[:, :1].detach()
        return self.out(output)


class Attribute(Tagger):
    """The state is kept as a plain attribute between calls."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden: Any = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output, self.hidden = self.lstm(x, self.hidden)
        return self.out(output)


@pytest.mark.parametrize("kind", [DataAttribute, TorchFunction, Hooked, Buffered, Attribute])
def test_detours_within_torch_are_exact_or_pinned(kind: type[nn.Module]) -> None:
    model, x = seed_model(kind), torch.randn(2, 6, 5, dtype=torch.float64)
    state = copy.deepcopy(model.state_dict())
    structure = reprune.torch.inspect(model, [x]).structure
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), f"inspect changed {name}"
    for plan in random_plans(structure, 2):
        small, masked = reprune.torch.apply(model, plan), reprune.torch.mask(model, plan)
        for _ in range(3):
            y = torch.randn(2, 4, 5, dtype=torch.float64)
            assert torch.allclose(small(y), masked(y), atol=1e-10)


KEPT: dict[str, torch.Tensor] = {}


class Global(Tagger):
    """Units kept in a global variable by one call and read by the next one."""

    def detour(self, h: torch.Tensor) -> torch.Tensor:
        before = KEPT.get("h")
        KEPT["h"] = h.detach()
        return self.out(h) + (0 if before is None else self.out(before[: len(h), : h.size(1)]))


def test_global_variable_is_pinned_or_refused() -> None:
    KEPT.clear()
    model, x = seed_model(Global), torch.randn(2, 6, 5, dtype=torch.float64)
    model(x)
    try:
        structure = reprune.torch.inspect(model, [x]).structure
    except RepruneError:
        return
    assert structure.layers["lstm:l0"].pin is not None


class WrittenSize(Tagger):
    """The width is written into a reshape that also fits fewer units, but means something else then."""

    def detour(self, h: torch.Tensor) -> torch.Tensor:
        return self.out(torch.nn.functional.pad(h, (0, 8 - h.size(-1)))[..., :8] + torch.arange(8))


def test_written_size_is_pinned() -> None:
    model, x = seed_model(WrittenSize), torch.randn(2, 6, 5, dtype=torch.float64)
    pin = reprune.torch.inspect(model, [x]).structure.layers["lstm:l0"].pin
    assert pin is not None
    assert __file__ in pin.site.location


class Hands(Tagger):
    """Units that are given back in something that is no nest of tensors, beside an answer."""

    def __init__(self, hold: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.hold = hold

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, Any]:
        return self.last(self.other(x)[0]), self.hold(self.lstm(x)[0])


@pytest.mark.parametrize(
    "hold",
    [
        lambda h: SimpleNamespace(h=h), lambda h: torch.distributions.Normal(h, 1.0), lambda h: [[[[[[[h]]]]]]],
        lambda h: (1, {"h": {h}}),
    ],
)  # fmt: skip
def test_what_comes_back_in_whatever_holds_it_stays(hold: Callable[[torch.Tensor], Any]) -> None:
    torch.manual_seed(0)
    structure = reprune.torch.inspect(Hands(hold), [torch.randn(2, 6, 5)]).structure
    assert structure.prunable == ("other:l0",)
    pin = structure.layers["lstm:l0"].pin
    assert pin is not None
    assert pin.reason == "its units are part of what the model returns"


class AlsoHands(nn.Module):
    """A state that the caller carries, and once more as an answer."""

    def __init__(self, more: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.cell, self.out, self.more = nn.GRUCell(5, 8), nn.Linear(8, 3), more

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> tuple[Any, ...]:
        h = self.cell(x, h)
        return self.out(h), h, self.more(h)


@pytest.mark.parametrize("more", [lambda h: h, lambda h: {h}, lambda h: h.exp(), lambda h: None])
def test_a_state_that_is_an_answer_too_stays(more: Callable[[torch.Tensor], Any]) -> None:
    torch.manual_seed(0)
    structure = reprune.torch.inspect(AlsoHands(more), [(torch.randn(2, 5), torch.randn(2, 8))]).structure
    assert structure.prunable == (("cell:l0",) if more(torch.zeros(1)) is None else ())


@pytest.mark.parametrize("kind", [ThroughNumpy, ThroughItem])
def test_without_verification_the_trace_alone_decides(kind: type[nn.Module]) -> None:
    """`verify=False` is the caller's own risk; a detour that hides the only reader is not a crash either."""
    model, x = seed_model(kind), torch.randn(2, 6, 5, dtype=torch.float64)
    assert reprune.torch.inspect(model, [x], verify=False).structure.layers
