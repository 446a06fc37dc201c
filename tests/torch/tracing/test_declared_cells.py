"""Cells that users declare because their code cannot be followed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn

import reprune.torch
from reprune.core.errors import UnsupportedModelError
from reprune.core.layers import Span
from reprune.torch import register_cell
from reprune.torch.calibration.answers import _returned
from reprune.torch.tracing.cells import _DECLARED
from tests.helpers.torch_oracle import check_oracle, prepared, random_plans


class Opaque(torch.autograd.Function):
    """A fused step that leaves PyTorch on its way forward, as an extension would."""

    @staticmethod
    def forward(ctx: object, gates: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        i, f, g, o = torch.from_numpy(gates.detach().numpy().copy()).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class FusedCell(nn.Module):
    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.w, self.u = nn.Parameter(torch.randn(4 * hidden, inputs)), nn.Parameter(torch.randn(4 * hidden, hidden))
        self.b = nn.Parameter(torch.randn(4 * hidden))

    def forward(self, x: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor] | None) -> tuple[torch.Tensor, ...]:
        h, c = state or (x.new_zeros(len(x), self.hidden), x.new_zeros(len(x), self.hidden))
        return Opaque.apply(x @ self.w.t() + h @ self.u.t() + self.b, c)


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = FusedCell(5, 8), FusedCell(8, 7), nn.Linear(7, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = b = None
        for step in x.unbind(1):
            a = self.one(step, a)
            b = self.two(a[0], b)
        return self.out(b[0])


@pytest.fixture
def _declared() -> Iterator[None]:
    register_cell(FusedCell, units="hidden", own={"w": 0, "u": 0, "b": 0}, reads={"u": 1}, inputs={"w": 1})
    yield
    _DECLARED.clear()


def test_undeclared_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="No recurrent layer"):
        reprune.torch.inspect(Tagger(), [torch.randn(2, 4, 5)])


@pytest.mark.usefixtures("_declared")
def test_declared_is_exact() -> None:
    torch.manual_seed(0)
    model = prepared(Tagger().double(), train=False)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    structure = reprune.torch.inspect(model, [torch.randn(2, 4, 5, dtype=torch.float64)]).structure
    assert structure.prunable == ("one:l0", "two:l0")
    for plan in random_plans(structure, 3):
        check_oracle(model, plan, torch.randn(3, 6, 5, dtype=torch.float64))
        small = reprune.torch.apply(model, plan)
        assert small.one.hidden == len(plan.kept["one:l0"])


def spans(layer: str, units: int, gates: int) -> tuple[Span, ...]:
    return tuple(Span(gate * units, layer, 0, units) for gate in range(gates))


@pytest.mark.usefixtures("_declared")
def test_what_is_declared_is_the_structure() -> None:
    structure = reprune.torch.trace(Tagger(), torch.randn(2, 4, 5))
    one, two = (lambda gates: spans("one:l0", 8, gates)), (lambda gates: spans("two:l0", 7, gates))
    assert {(slot.tensor, slot.axis): (slot.role, slot.spans) for slot in structure.slots} == {
        ("one.w", 0): ("own", one(4)), ("one.u", 0): ("own", one(4)), ("one.b", 0): ("own", one(4)),
        ("one.u", 1): ("reads", one(1)), ("two.w", 1): ("reads", one(1)),
        ("two.w", 0): ("own", two(4)), ("two.u", 0): ("own", two(4)), ("two.b", 0): ("own", two(4)),
        ("two.u", 1): ("reads", two(1)), ("out.weight", 1): ("reads", two(1)),
    }  # fmt: skip
    assert {(consumer.tensor, consumer.axis, consumer.bias) for consumer in structure.consumers} == {
        ("one.u", 1, None), ("two.u", 1, None), ("out.weight", 1, "out.bias"),
    }  # fmt: skip
    assert {(size.owner, size.path): size.extent.layers for size in structure.sizes} == {
        (name, ("hidden",)): ((f"{name}:l0", 1),) for name in ("one", "two")
    }
    # Two sequences of four steps.
    macs = sum(c.rows * np.prod([extent(structure.counts()) for extent in c.extents]) for c in structure.contractions)
    assert macs == 2 * 4 * (32 * 5 + 32 * 8 + 28 * 8 + 28 * 7) + 2 * 3 * 7
    assert structure.steps == 8
    assert {layer.cell for layer in structure.layers.values()} == {"custom"}


class Counting(FusedCell):
    """Also returns numbers that are as many as no units, and a lone one."""

    def forward(self, x: torch.Tensor, state: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return *super().forward(x, state[:2]), x.new_ones(len(x), 3), x.new_ones(())


class Started(nn.Module):
    """A declared cell that reads another layer's responses, and starts from its last state or from the caller's."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.cell, self.out = nn.GRU(5, 8), Counting(8, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        steps, h = self.encoder(x.transpose(0, 1))
        state = h[0], c
        for step in steps:
            state = self.cell(step, state=state)
        return self.out(state[0]), state[1]


@pytest.mark.usefixtures("_declared")
def test_declared_cells_start_from_states_of_others_and_of_the_caller() -> None:
    torch.manual_seed(0)
    model = Started().double().requires_grad_(False)

    def given() -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(3, 4, 5, dtype=torch.float64), torch.randn(3, 8, dtype=torch.float64)

    structure = reprune.torch.inspect(model, [given()]).structure
    assert structure.prunable == ("encoder:l0", "cell:l0")
    assert structure.index_coupled == (("encoder:l0", "cell:l0"),)
    ((state_in, state_out),) = [(state.given, state.returned) for state in structure.states]
    assert (state_in.path, state_in.axis, state_in.layers) == (("c",), 1, ("encoder:l0",))
    assert (state_out.path, state_out.axis) == ((1,), 1)
    for plan in random_plans(structure, 2):
        small, masked = reprune.torch.apply(model, plan), reprune.torch.mask(model, plan)
        x, c = given()
        (y, ours), (expected, theirs) = small(x, c), masked(x, c)
        torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(ours, theirs[:, plan.kept["cell:l0"]], rtol=1e-10, atol=1e-10)


class ReadsStart(Started):
    """What starts a cell of PyTorch's is read by the declared one, too: it is no state of the first alone."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.GRUCell(5, 8)

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        h = self.encoder(x, z)
        return self.out(self.cell(z, (torch.zeros_like(h), torch.zeros_like(h)))[0]) + self.out(h)


@pytest.mark.usefixtures("_declared")
def test_a_start_that_a_declared_cell_reads_is_no_state() -> None:
    structure = reprune.torch.trace(ReadsStart(), (torch.randn(3, 5), torch.randn(3, 8)))
    assert not structure.states
    assert "encoder:l0" in structure.outside_states


@pytest.mark.parametrize("wrong", [{"own": {"w": 1}}, {"own": {"v": 0}}, {"reads": {"w": 0}}], ids=str)
@pytest.mark.usefixtures("_declared")
def test_wrong_declaration_names_the_cell(wrong: dict[str, dict[str, int]]) -> None:
    right = {"own": {"w": 0, "u": 0, "b": 0}, "reads": {"u": 1}}
    register_cell(FusedCell, units="hidden", **{**right, **wrong})
    with pytest.raises(UnsupportedModelError, match=r"one.*declared"):
        reprune.torch.inspect(Tagger(), [torch.randn(2, 4, 5)])


@pytest.mark.parametrize("method", ["reconstruct", "iss-gm", "iss-gm+mean"])
@pytest.mark.usefixtures("_declared")
def test_declared_is_observed_in_what_it_returns(method: str) -> None:
    torch.manual_seed(0)
    model = prepared(Tagger().double(), train=False).requires_grad_(False)
    batches = [torch.randn(4, 6, 5, dtype=torch.float64) for _ in range(5)]
    calibration = reprune.torch.calibrate(model, batches, methods=[method])
    seen: list[torch.Tensor] = []
    model.one.register_forward_hook(lambda _, args, out: seen.append(out[0].detach()))
    for batch in batches:
        model(batch)
    rows = torch.cat(seen).numpy()
    found = calibration._evidence.layers["one:l0"]
    np.testing.assert_allclose(found.mean, rows.mean(0), rtol=1e-10)
    np.testing.assert_allclose(found.covariance, np.cov(rows.T, bias=True), rtol=1e-9, atol=1e-14)
    check_oracle(model, calibration.plan(0.5, method=method), torch.randn(3, 6, 5, dtype=torch.float64))


def test_a_number_for_each_sequence_is_no_response() -> None:
    seen: list[torch.Tensor] = []
    watch = _returned("one:l0", 4, lambda name, found, _: seen.append(found))
    watch(nn.Identity(), (), (torch.ones(4), torch.zeros(4, 4)))
    assert [found.shape for found in seen] == [(4, 4)]
