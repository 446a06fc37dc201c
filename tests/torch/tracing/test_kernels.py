"""Recurrent kernels: which axis of which weight holds what, who reads whom, and what a pass costs, by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import reprune.torch
from reprune.core.layers import Consumer, Span, Structure
from reprune.torch.tracing.labels import storage_id
from reprune.torch.tracing.recording import State
from tests.helpers.torch_oracle import check_oracle, random_plans
from tests.helpers.torch_tracing import Bench, size

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
Axes = dict[tuple[str, int], tuple[str, tuple[Span, ...]]]
STEPS = 4


class Net(nn.Module):
    """A recurrent module, and what reads its output."""

    def __init__(self, rnn: nn.RNNBase, width: int) -> None:
        super().__init__()
        self.rnn, self.out = rnn, nn.Linear(width, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.rnn(x)[0])


class Cells(nn.Module):
    """A cell step by step; `start` makes its first state."""

    def __init__(self, cell: nn.RNNCellBase, units: int) -> None:
        super().__init__()
        self.cell, self.out = cell, nn.Linear(units, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state: Any = None
        found = []
        for step in x.unbind(0):
            state = self.cell(step, state)
            found.append(self.out(state[0] if isinstance(state, tuple) else state))
        return torch.stack(found)


def gates(count: int, layer: str, units: int) -> tuple[Span, ...]:
    return tuple(Span(gate * units, layer, 0, units) for gate in range(count))


def of(layer: str, units: int, start: int = 0) -> Span:
    return Span(start, layer, 0, units)


def inspected(model: nn.Module, batch: torch.Tensor) -> tuple[Axes, Structure]:
    structure = reprune.torch.inspect(model.double(), [batch]).structure
    assert structure.prunable == tuple(structure.layers)
    for plan in random_plans(structure, 2):
        check_oracle(model, plan, batch)
    return {(slot.tensor, slot.axis): (slot.role, slot.spans) for slot in structure.slots}, structure


def frames() -> torch.Tensor:
    return torch.randn(STEPS, 3, 5, dtype=torch.float64)


def macs(structure: Structure, counts: dict[str, int]) -> int:
    """Multiply-accumulates of the example."""
    total = 0.0
    for product in structure.contractions:
        each = product.rows
        for extent in product.extents:
            each *= extent(counts)
        total += each
    return int(total)


@pytest.mark.parametrize("bias", [True, False])
def test_both_directions_of_two_layers(bias: bool) -> None:
    torch.manual_seed(0)
    axes, structure = inspected(Net(nn.GRU(5, 4, 2, bidirectional=True, bias=bias), 8), frames())
    expected: Axes = {("out.weight", 1): ("reads", (of("rnn:l1", 4), of("rnn:l1_reverse", 4, 4)))}
    consumers = {Consumer("out.weight", 1, "out.bias")}
    for level in range(2):
        for suffix in ("", "_reverse"):
            layer, end = f"rnn:l{level}{suffix}", f"_l{level}{suffix}"
            for weight in ("weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if bias else ())):
                expected[f"rnn.{weight}{end}", 0] = "own", gates(3, layer, 4)
            expected[f"rnn.weight_hh{end}", 1] = "reads", (of(layer, 4),)
            consumers.add(Consumer(f"rnn.weight_hh{end}", 1, f"rnn.bias_hh{end}" if bias else None))
            if level:
                expected[f"rnn.weight_ih{end}", 1] = "reads", (of("rnn:l0", 4), of("rnn:l0_reverse", 4, 4))
                consumers.add(Consumer(f"rnn.weight_ih{end}", 1, f"rnn.bias_ih{end}" if bias else None))
    assert axes == expected
    assert set(structure.consumers) == consumers
    assert structure.steps == 4 * 3
    assert structure.index_coupled == tuple((name,) for name in structure.layers)
    n = {"rnn:l0": 1, "rnn:l0_reverse": 2, "rnn:l1": 3, "rnn:l1_reverse": 4}
    below = 3 * (1 * (5 + 1) + 2 * (5 + 2)) + 3 * (3 * (3 + 3) + 4 * (3 + 4))
    assert macs(structure, n) == 12 * (below + 2 * (3 + 4))


@pytest.mark.parametrize("bias", [True, False])
def test_projections(bias: bool) -> None:
    torch.manual_seed(0)
    axes, structure = inspected(Net(nn.LSTM(5, 6, 2, proj_size=3, bias=bias), 3), frames())
    expected: Axes = {("out.weight", 1): ("reads", (of("rnn:l1:projection", 3),))}
    for level in range(2):
        layer, made = f"rnn:l{level}", f"rnn:l{level}:projection"
        for weight in ("weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if bias else ())):
            expected[f"rnn.{weight}_l{level}", 0] = "own", gates(4, layer, 6)
        expected[f"rnn.weight_hh_l{level}", 1] = "reads", (of(made, 3),)
        expected[f"rnn.weight_hr_l{level}", 0] = "own", (of(made, 3),)
        expected[f"rnn.weight_hr_l{level}", 1] = "reads", (of(layer, 6),)
    expected["rnn.weight_ih_l1", 1] = "reads", (of("rnn:l0:projection", 3),)
    assert axes == expected
    assert {(each.tensor, each.bias) for each in structure.consumers} == {
        ("out.weight", "out.bias"),
        ("rnn.weight_ih_l1", "rnn.bias_ih_l1" if bias else None),
        *((f"rnn.weight_hh_l{level}", f"rnn.bias_hh_l{level}" if bias else None) for level in range(2)),
        *((f"rnn.weight_hr_l{level}", None) for level in range(2)),
    }
    assert {name: (layer.cell, layer.units) for name, layer in structure.layers.items()} == {
        "rnn:l0": ("lstm", 6), "rnn:l0:projection": ("projection", 3),
        "rnn:l1": ("lstm", 6), "rnn:l1:projection": ("projection", 3),
    }  # fmt: skip
    n = {"rnn:l0": 5, "rnn:l0:projection": 2, "rnn:l1": 4, "rnn:l1:projection": 1}
    assert macs(structure, n) == 12 * (4 * 5 * (5 + 2) + 2 * 5 + 4 * 4 * (2 + 1) + 1 * 4 + 2 * 1)


CELLS: dict[str, tuple[type[Any], int, str]] = {
    "lstm": (nn.LSTMCell, 4, "lstm"),
    "gru": (nn.GRUCell, 3, "gru"),
    "rnn": (nn.RNNCell, 1, "rnn"),
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("kind", "count", "cell"), CELLS.values(), ids=CELLS)
def test_cells(kind: type[Any], count: int, cell: str, bias: bool) -> None:
    torch.manual_seed(0)
    axes, structure = inspected(Cells(kind(5, 4, bias=bias), 4), frames())
    expected: Axes = {("out.weight", 1): ("reads", (of("cell:l0", 4),))}
    for weight in ("weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if bias else ())):
        expected[f"cell.{weight}", 0] = "own", gates(count, "cell:l0", 4)
    expected["cell.weight_hh", 1] = "reads", (of("cell:l0", 4),)
    assert axes == expected
    assert structure.layers["cell:l0"].cell == cell
    assert structure.steps == 4 * 3
    assert {(each.tensor, each.bias) for each in structure.consumers} == {
        ("out.weight", "out.bias"), ("cell.weight_hh", "cell.bias_hh" if bias else None),
    }  # fmt: skip
    assert macs(structure, {"cell:l0": 3}) == 12 * (count * 3 * (5 + 3) + 2 * 3)


class Learned(nn.Module):
    """A first state of the projection's units, and one of the cell's."""

    def __init__(self) -> None:
        super().__init__()
        self.h, self.c = nn.Parameter(torch.randn(1, 1, 3)), nn.Parameter(torch.randn(1, 1, 6))
        self.rnn, self.out = nn.LSTM(5, 6, proj_size=3), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states = tuple(state.expand(-1, x.size(1), -1).contiguous() for state in (self.h, self.c))
        return self.out(self.rnn(x, states)[0])


def test_learned_states_follow_the_units_of_their_kind() -> None:
    torch.manual_seed(0)
    axes, structure = inspected(Learned(), frames())
    assert axes["h", 2] == ("follows", (of("rnn:l0:projection", 3),))
    assert axes["c", 2] == ("follows", (of("rnn:l0", 6),))
    assert set(structure.index_coupled) == {("rnn:l0",), ("rnn:l0:projection",)}
    assert not structure.outside_states


class Given(nn.Module):
    """A decoder that starts from what an encoder ends with, or from zeros of a size that is written out."""

    def __init__(self, made: str) -> None:
        super().__init__()
        layers = 2 if made == "layers" else 1
        self.made, self.encoder, self.decoder = made, nn.GRU(5, 6, layers), nn.GRU(5, 6, layers)
        self.start, self.out = nn.Linear(5, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = {
            "encoder": lambda: self.encoder(x)[1],
            "layers": lambda: self.encoder(x)[1],
            "zeros": lambda: torch.zeros(1, x.size(1), 6, dtype=x.dtype),
            "none": lambda: None,
            "sized": lambda: x.new_zeros(1, x.size(1), self.decoder.hidden_size),
        }[self.made]()
        return self.out(self.decoder(x, h)[0])


@pytest.mark.parametrize(
    ("made", "coupled", "outside"),
    [
        ("encoder", (("encoder:l0", "decoder:l0"),), ()),
        ("layers", (("encoder:l0", "decoder:l0"), ("encoder:l1", "decoder:l1")), ()),
        ("zeros", (("decoder:l0",),), ("decoder:l0",)),
        ("none", (("decoder:l0",),), ()),
        ("sized", (("decoder:l0",),), ("decoder:l0",)),
    ],
)
def test_states_that_are_given(made: str, coupled: Any, outside: Any) -> None:
    torch.manual_seed(0)
    _, structure = inspected(Given(made), frames())
    assert structure.index_coupled == coupled
    assert structure.outside_states == outside


def test_a_kernel_reads_units() -> None:
    for module, weight in ((nn.GRU(4, 3).double(), "weight_ih_l0"), (nn.RNNCell(4, 3).double(), "weight_ih")):
        bench = Bench(module)
        a = bench.layer("a", 4)
        bench.run(module, bench.holding(a, 2, 4))
        assert bench.along(weight, 1) == a.tolist()
        # Run again, it is the same layer, whose labels are those of its weights.
        labels = bench.recording.layers[":l0"].labels.tolist()
        bench.run(module, bench.holding(a, 2, 4))
        assert bench.recording.layers[":l0"].labels.tolist() == labels
        assert bench.recording.axes[weight.replace("ih", "hh"), 1].tolist() == labels
        assert bench.apart(a)


def test_a_projection_that_runs_again_is_the_same() -> None:
    bench = Bench(nn.LSTM(4, 6, proj_size=3))
    found = []
    for _ in range(2):
        bench.run(bench.model, torch.ones(2, 4))
        found.append({name: layer.labels.tolist() for name, layer in bench.recording.layers.items()})
    assert found[0] == found[1]
    assert {name: len(labels) for name, labels in found[0].items()} == {":l0": 6, ":l0:projection": 3}


def test_a_kernel_whose_weights_are_computed() -> None:
    """Doubled, they are those of the parameters; in no order, nothing is known of them."""
    cell, x, h = nn.GRUCell(5, 4).double(), torch.ones(3, 5).double(), torch.ones(3, 4).double()
    bench = Bench(cell)
    bench.run(lambda: torch.gru_cell(x, h, cell.weight_ih * 2, cell.weight_hh * 2))
    (layer,) = bench.recording.layers.values()
    units = bench.roots(layer.labels).tolist()
    assert len(set(units)) == 4
    assert bench.along("weight_hh", 1) == units
    assert bench.along("weight_ih", 0) == bench.along("weight_hh", 0) == units * 3
    assert not bench.pins
    bench = Bench(cell)
    order = torch.randperm(48, generator=torch.Generator().manual_seed(0))
    bench.run(lambda: torch.gru_cell(x, h, cell.weight_ih, cell.weight_hh.flatten()[order].view(12, 4)))
    (layer,) = bench.recording.layers.values()
    assert bench.pins == {"its weights are computed in a way that was not understood": set(layer.labels.tolist())}


def test_weights_of_other_names_make_a_layer_without_one() -> None:
    model = nn.Module()
    model.read, model.back = nn.Parameter(torch.randn(12, 5)), nn.Parameter(torch.randn(12, 4))
    bench = Bench(model)
    bench.run(lambda: torch.gru_cell(torch.ones(3, 5), torch.ones(3, 4), model.read, model.back))
    assert {name: (layer.cell, layer.module) for name, layer in bench.recording.layers.items()} == {
        "unnamed0:l0": ("gru", "unnamed0")
    }


def test_whoever_reads_an_input_is_remembered() -> None:
    """A tensor from outside the call may be a state: labels of a weight's axis tell which of its columns it reads."""
    for module, weight, axis in (
        (nn.GRU(4, 3), "weight_ih_l0", 1),
        (nn.LSTMCell(4, 3), "weight_ih", 1),
        (nn.Linear(4, 3), "weight", 1),
    ):
        bench = Bench(module)
        x = torch.randn(2, 4)
        bench.tracer.memory.set(x, bench.tracer.origins.add(("x",), x, held=False))
        bench.run(module, x)
        (source,) = bench.tracer.origins.sources
        assert set(source.read_by) == {weight}
        assert source.read(weight).reshape(2, 4).tolist() == [bench.recording.axes[weight, axis].tolist()] * 2
    module = nn.Conv1d(4, 3, 2)
    bench = Bench(module)
    x = torch.randn(2, 4, 5)
    bench.tracer.memory.set(x, bench.tracer.origins.add(("x",), x, held=False))
    bench.run(module, x)
    (source,) = bench.tracer.origins.sources
    columns = torch.from_numpy(bench.recording.axes["weight", 1])
    assert set(source.read_by) == {"weight"}
    assert source.read("weight").reshape(2, 4, 5).tolist() == columns[:, None].expand(2, 4, 5).tolist()


def test_stacked_states_that_are_used_keep_their_layers_equal() -> None:
    """What recurrent modules do with them themselves is no use, and passes on what they are."""
    bench = Bench()
    state = torch.randn(2, 3, 4)
    bench.tracer.states[storage_id(state)] = State(["a", "b"], 3)
    bench.run(lambda s: (s.detach(), s[0], list(s)), state)
    bench.tracer.inside_module += 1
    moved = bench.run(lambda s: s.index_select(1, torch.tensor([2, 0, 1])), state)
    bench.tracer.inside_module -= 1
    assert not bench.recording.count_coupled
    assert bench.tracer.states[storage_id(moved)].layers == ["a", "b"]
    for used in (moved, state):
        bench.run(lambda s: s.sum(0), used)
    assert bench.recording.count_coupled == [["a", "b"]] * 2


def test_first_states_of_units_and_of_sizes() -> None:
    reason = "its initial state is joined of units and of something whose size does not follow"
    for cell in (False, True):
        for state, coupled, sized, pinned, outside in (
            (lambda a: a, 4, False, False, False),
            (lambda a: torch.cat([a[..., :3], torch.randn(*a.shape[:-1], 1).double()], -1), 3, False, True, True),
            (lambda a: torch.zeros(*a.shape[:-1], size("n", 4)).double(), 0, True, False, True),
            (lambda a: torch.randn(*a.shape[:-1], 4).double(), 0, False, False, True),
        ):
            module = (nn.GRUCell if cell else nn.GRU)(5, 4).double()
            bench = Bench(module)
            a = bench.layer("a", 4)
            given = bench.holding(a, *(() if cell else (1,)), 3, 4)
            x = torch.randn(*(() if cell else (2,)), 3, 5).double()
            bench.run(lambda g, x, module=module, state=state: module(x, state(g)), given, x)
            layer = bench.recording.layers[":l0"]
            assert bench.roots(layer.labels).tolist()[:coupled] == a.tolist()[:coupled]
            assert bench.apart(torch.from_numpy(layer.labels))
            assert bench.sizes == ({("self.n", 1, tuple(layer.labels.tolist()))} if sized else set())
            assert not any(use.firm for use in bench.recording.sizes)
            assert (reason in bench.pins) == pinned
            assert bench.recording.outside_states == ({":l0"} if outside else set())
