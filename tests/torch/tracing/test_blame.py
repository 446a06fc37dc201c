"""A pin names the line that couples, not one that reads what was coupled before."""

from __future__ import annotations

import linecache
import math
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import reprune.torch
from reprune.core.layers import Site
from reprune.torch.tracing import kernels
from reprune.torch.tracing.blame import coupled_at
from reprune.torch.tracing.location import here, of_error, of_failure, of_function, ours
from reprune.torch.tracing.recording import Recording, RecurrentLayer
from reprune.torch.tracing.running.calling import invoke


class Pair(nn.Module):
    def __init__(self, one: int = 8, two: int = 8) -> None:
        super().__init__()
        self.a, self.b = nn.GRU(5, one, batch_first=True), nn.GRU(5, two, batch_first=True)
        self.out = nn.Linear(one, 3)


class Reversed(Pair):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.a(x)[0], self.b(x)[0]
        both = a + b.flip(-1)
        other = b * 2
        return self.out(both) + self.out(other)


class Itself(Pair):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.a(x)[0]
        both = a * a.roll(1, -1)
        return self.out(both) + self.out(a) + self.b(x)[0].sum()


class Unequal(Pair):
    def __init__(self) -> None:
        super().__init__(8, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        both = torch.cat([self.a(x)[0], self.b(x)[0]], -1)
        half, _ = both.chunk(2, -1)
        return self.out(torch.cat([half, half[..., :1]], -1))


@pytest.mark.parametrize(
    ("kind", "layer", "line"),
    [
        (Reversed, "a:l0", "both = a + b.flip(-1)"),
        (Itself, "a:l0", "both = a * a.roll(1, -1)"),
    ],
)
def test_the_line_that_couples(kind: type[Pair], layer: str, line: str) -> None:
    torch.manual_seed(0)
    pin = reprune.torch.inspect(kind(), [torch.randn(4, 6, 5)]).structure.layers[layer].pin
    assert pin is not None
    file, _, number = pin.site.location.rpartition(":")
    assert linecache.getline(file, int(number)).strip() == line


def test_the_line_that_keeps_layers_in_step() -> None:
    pin = reprune.torch.inspect(Unequal(), [torch.randn(4, 6, 5)]).structure.layers["b:l0"].pin
    assert pin is not None
    file, _, number = pin.site.location.rpartition(":")
    assert linecache.getline(file, int(number)).strip() == "half, _ = both.chunk(2, -1)"


class Attending(Pair):
    """The weights of a softmax over its units meet the units themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.a(x)[0][:, -1]
        weights = self.attention(a).softmax(-1)
        return self.out(weights * a)


class Mixing(Pair):
    """A matrix over pairs of units is made in each step."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(8, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.a(x)[0][:, -1]
        pairs = self.mix(a).view(-1, 8, 8)
        return self.out(a + (a.unsqueeze(1) @ pairs).squeeze(1))


class Written(Pair):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.a(x)[0]
        return self.out(torch.addcmul(a, a, torch.ones(6, 8)))


class Scored(Pair):
    """Scores of attention divided by a root of the number of units."""

    def __init__(self, divided: Callable[[Scored, torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.units, self.divided = 8, divided

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.a(x)[0]
        scores = self.divided(self, (a * a[:, -1:]).sum(-1), a)
        return self.out((scores.softmax(1).unsqueeze(-1) * a).sum(1))


@pytest.mark.parametrize(
    "divided",
    [
        lambda model, scores, a: scores / math.sqrt(a.size(-1)),
        lambda model, scores, a: scores * a.shape[2] ** -0.5,
        lambda model, scores, a: scores / a.size(-1),
        lambda model, scores, a: scores * (a.view(4, -1, model.units).size(0) / model.units),
    ],
)
def test_a_number_of_units_that_the_model_computes_with(divided: Any) -> None:
    torch.manual_seed(0)
    pin = reprune.torch.inspect(Scored(divided), [torch.randn(4, 6, 5)]).structure.layers["a:l0"].pin
    assert pin is not None
    assert "computes with the number of its units" in pin.reason
    file, _, number = pin.site.location.rpartition(":")
    assert "lambda model, scores, a: scores" in linecache.getline(file, int(number))


@pytest.mark.parametrize(
    ("kind", "line", "reason"),
    [
        (Attending, "weights = self.attention(a).softmax(-1)", "'_softmax' runs over its units, and what comes of it"),
        (Mixing, "pairs = self.mix(a).view(-1, 8, 8)", "is spread over an axis of its own, of length 8"),
        (Written, "return self.out(torch.addcmul(a, a, torch.ones(6, 8)))", "the model's code does not run with fewer"),
    ],
)
def test_code_that_fails_with_fewer_units_is_told_what_was_lost(kind: type[Pair], line: str, reason: str) -> None:
    torch.manual_seed(0)
    pin = reprune.torch.inspect(kind(), [torch.randn(4, 6, 5)]).structure.layers["a:l0"].pin
    assert pin is not None
    assert reason in pin.reason
    file, _, number = pin.site.location.rpartition(":")
    assert linecache.getline(file, int(number)).strip() == line


def test_a_failure_inside_pytorch_is_ours_if_we_called_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # A partial has no line of its own: the last ones are our caller's and PyTorch's.
    monkeypatch.setattr(kernels, "_spread", partial(torch.ops.aten.mm, torch.zeros(2, 3)))
    with pytest.raises(reprune.InternalError, match="a gap of reprune, not of the model"):
        reprune.torch.inspect(Reversed(), [torch.randn(4, 6, 5)])


def test_a_model_of_pytorch_s_own_modules_is_no_code_of_ours() -> None:
    with pytest.raises(RuntimeError) as raised:
        invoke(nn.Sequential(nn.Linear(3, 4), nn.Linear(5, 2)), torch.randn(2, 3))
    assert not ours(raised.value)


def line_of(location: str) -> str:
    file, _, number = location.rpartition(":")
    return linecache.getline(file, int(number)).strip()


def broken(h: torch.Tensor, n: int, other: int, flag: bool = True) -> torch.Tensor:
    g = h * 1
    return g @ torch.zeros(3, 3)  # A line


def test_what_a_failure_tells_of_a_size() -> None:
    with pytest.raises(RuntimeError) as raised:
        broken(torch.zeros(2, 7), 7, 8)
    line = " in `return g @ torch.zeros(3, 3)  # A line`"
    assert of_failure(raised.value, 7) == f"{line}, where h is (2, 7), n is 7, g is (2, 7)"
    assert of_failure(raised.value, 2) == f"{line}, where h is (2, 7), g is (2, 7)"
    assert of_failure(raised.value, 8) == f"{line}, where other is 8"
    assert of_failure(raised.value, 1) == line
    assert of_failure(RuntimeError(), 7) == ""
    assert of_error(RuntimeError(), "x") == Site("x", "")
    assert line_of(of_error(raised.value, "x").location) == "return g @ torch.zeros(3, 3)  # A line"
    with pytest.raises(ZeroDivisionError) as raised:
        exec("a = b = c = d = e = 5; 1 / 0", {}, {})
    assert of_failure(raised.value, 5) == ", where a is 5, b is 5, c is 5, d is 5"


def test_where_a_function_is_written() -> None:
    line = broken.__code__.co_firstlineno
    assert of_function(broken) == f"{__file__}:{line}"
    assert of_function(torch.no_grad()(broken)) == f"{__file__}:{line}"
    assert of_function(len) == of_function(partial(broken)) == ""
    assert here("x") == Site("x", f"{__file__}:{sys._getframe().f_lineno}")


def test_the_first_coupling_with_another_layer_or_within_it_is_named() -> None:
    recording = Recording()
    a, b, w, v = (recording.couplings.new(3) for _ in range(4))
    layers = {name: RecurrentLayer(name, "gru", name, labels) for name, labels in (("a", a), ("b", b))}

    def named(*couplers: tuple[Any, Any], layer: str = "a") -> str:
        recording.couplers = [(one, two, Site("coupling", str(k))) for k, (one, two) in enumerate(couplers)]
        return coupled_at(recording, layers, layer).location

    assert named() == ""
    assert named((w, v)) == ""
    assert named((a, b)) == named((a, b), layer="b") == "0"
    assert named((w, v), (w, b), (v, a), (w, a)) == "2"
    assert named((w, v), (w, b), (v, a), layer="b") == "2"
    assert named((w, b), (a[:1], a[1:2])) == "1"
    assert named((w, a), (b[:1], b[1:2])) == "0"  # With a weight alone: that is named, too.
    assert named((w, a), (w, a), (v, b)) == "0"
    assert coupled_at(recording, {"a": layers["a"]}, "a").location == "0"
