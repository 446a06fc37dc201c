"""States that are handed in and out, left out, or kept: the pruned model carries them at its own width."""

from __future__ import annotations

import copy
from collections import deque
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reprune.torch
from reprune.core.layers import Structure
from reprune.core.plan import Plan
from reprune.torch.tracing.leaves import leaves, replaced
from reprune.torch.tracing.record import record
from tests.helpers.torch_oracle import assert_close, prepared, random_plans
from tests.helpers.torch_zoo.carried import STREAMS, GruBase, Stream


def inputs(batch: int) -> Tensor:
    return torch.randn(batch, 5, dtype=torch.float64)


def doubled(states: Any) -> Any:
    return replaced(states, lambda _, tensor: tensor.double())


def found(model: nn.Module, *given: Any) -> Structure:
    return reprune.torch.inspect(model, [given]).structure


def seeded(kind: Any) -> nn.Module:
    torch.manual_seed(0)
    return prepared(kind().double(), train=False)


def check_stream(model: nn.Module, plan: Plan, states: tuple[Any, ...], batch: int) -> None:
    """Three steps, each on the states of the one before: the same answers, and states of the smaller width."""
    small, masked = reprune.torch.apply(model, plan), reprune.torch.mask(model, plan)
    ours, theirs = copy.deepcopy(states), copy.deepcopy(states)
    for step in range(3):
        x = inputs(batch)
        (y, *ours), (expected, *theirs) = small(x, *ours), masked(x, *theirs)
        assert_close(y, expected, f"answer of step {step}")
    widths = [(one.numel(), two.numel()) for (_, one), (_, two) in zip(leaves(ours), leaves(theirs), strict=True)]
    assert widths
    assert all(one < two for one, two in widths), widths


@pytest.mark.parametrize("case", STREAMS.values(), ids=str)
def test_states_are_carried(case: Stream) -> None:
    model = seeded(case.build)
    structure = found(model, inputs(3), *doubled(case.states(3)))
    assert structure.prunable == case.layers, [str(layer.pin) for layer in structure.layers.values()]
    assert structure.states
    # Layers whose states are stacked in one tensor stay equal, but for those that lie side by side.
    assert bool(structure.count_coupled) == (case.name in ("StackOfCellsStep", "FlattenedChunk"))
    for plan in random_plans(structure, 2):
        check_stream(model, Plan.from_json(plan.to_json()), doubled(case.states(4)), 4)


class Keeps(GruBase):
    """Keeps its state in an attribute."""

    state: Any = None

    def forward(self, x: Tensor) -> Tensor:
        self.state = self.cell(x, self.state).detach()
        return self.out(self.state)


class KeepsInList(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out, self._states = nn.LSTM(5, 8, 2), nn.Linear(8, 3), []

    def forward(self, x: Tensor) -> Tensor:
        y, state = self.rnn(x[None], tuple(self._states) or None)
        self._states = list(state)
        return self.out(y[0])


class KeepsInDict(GruBase):
    def __init__(self) -> None:
        super().__init__()
        self.cache: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.cache["h"] = self.cell(x, self.cache.get("h", torch.zeros(len(x), self.cell.hidden_size, dtype=x.dtype)))
        return self.out(self.cache["h"])


class KeepsInBuffer(GruBase):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("state", torch.randn(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        self.state = self.cell(x, self.state)
        return self.out(self.state)


class WritesIntoBuffer(KeepsInBuffer):
    def forward(self, x: Tensor) -> Tensor:
        h = self.cell(x, self.state)
        self.state.copy_(h.detach())
        return self.out(h)


class KeepsPlainTensor(GruBase):
    """A tensor that is no buffer, made when the model was built."""

    def __init__(self) -> None:
        super().__init__()
        self.h = torch.zeros(4, 8, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        self.h = self.cell(x, self.h).detach()
        return self.out(self.h)


class KeepsWrittenState(nn.Module):
    """One step of a written cell per call."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 8
        self.x, self.h, self.out, self.state = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3), None

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), self.n) if self.state is None else self.state
        self.state = torch.tanh(self.x(x) + self.h(h))
        return self.out(self.state)


class Holder:
    """An object of a user's class that refers to itself."""

    def __init__(self) -> None:
        self.me, self.h = self, None


class KeepsInObject(GruBase):
    def __init__(self) -> None:
        super().__init__()
        self.holder, self.last = Holder(), deque[Tensor](maxlen=2)

    def forward(self, x: Tensor) -> Tensor:
        self.holder.h = self.cell(x, self.holder.h).detach()
        self.last.append(self.holder.h)
        return self.out(sum(self.last))


KEEPERS = (
    Keeps, KeepsInList, KeepsInDict, KeepsInBuffer, WritesIntoBuffer, KeepsPlainTensor, KeepsWrittenState,
    KeepsInObject,
)  # fmt: skip


@pytest.mark.parametrize("used", [False, True], ids=["new", "used"])
@pytest.mark.parametrize("kind", KEEPERS)
def test_kept_states_go_on_from_where_they_were(kind: type[nn.Module], used: bool) -> None:
    model = seeded(kind)
    if used:
        with torch.no_grad():
            model(inputs(4))
    held = copy.deepcopy({name: value for name, value in vars(model).items() if not name.startswith("_forward")})
    structure = found(model, inputs(4))
    assert structure.prunable, [str(layer.pin) for layer in structure.layers.values()]
    for (_, now), (_, before) in zip(leaves(vars(model)), leaves(held), strict=True):
        assert torch.equal(now, before), "inspect wrote into the model"
    for plan in random_plans(structure, 2):
        small, masked = reprune.torch.apply(model, plan), reprune.torch.mask(model, plan)
        for call in range(3):
            x = inputs(4)
            assert_close(small(x), masked(x), f"call {call}")


KEPT_AT: dict[type[nn.Module], list[tuple[Any, ...]]] = {
    Keeps: [("state",)], KeepsInList: [("_states", 0), ("_states", 1)], KeepsInDict: [("cache", "h")],
    KeepsInBuffer: [("_buffers", "state")], WritesIntoBuffer: [], KeepsPlainTensor: [("h",)],
    KeepsWrittenState: [("state",)], KeepsInObject: [("holder", "h"), ("last", 0), ("last", 1)],
}  # fmt: skip


@pytest.mark.parametrize("kind", KEEPERS)
def test_where_states_are_kept(kind: type[nn.Module]) -> None:
    structure = reprune.torch.trace(seeded(kind), inputs(4))
    # A buffer that is written into is cut like a weight.
    assert [port.path for port in structure.kept_states] == [("", *path) for path in KEPT_AT[kind]]
    first = {name: [0] for name in structure.layers}
    assert all(one.stay(first)[0].tolist() == [*range(1, 8)] for one in structure.kept_states)
    assert structure.written == (("state",) if "Buffer" in kind.__name__ else ())
    assert not structure.states


def states_of(name: str) -> tuple[nn.Module, tuple[Any, ...], Structure]:
    model, batch = seeded(STREAMS[name].build), (inputs(3), *doubled(STREAMS[name].states(3)))
    return model, batch, reprune.torch.trace(model, batch)


@pytest.mark.parametrize(
    ("name", "pairs"),
    [
        ("CellStep", [(("h",), (1,)), (("c",), (2,))]),
        ("DictStep", [(("state", "h"), (1, "h")), (("state", "c"), (1, "c"))]),
        ("PackedInSplitOut", [(("state",), (1, 0)), (None, (1, 1))]),
        ("StackOfCellsStep", [(("state",), (1,))]),
    ],
)
def test_which_state_comes_back_where(name: str, pairs: Any) -> None:
    _, _, structure = states_of(name)
    assert [
        (state.given and state.given.path, state.returned and state.returned.path) for state in structure.states
    ] == pairs
    assert not structure.outside_states


class ReadsBoth(GruBase):
    """A weight reads the units, and likewise what the caller hands in."""

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return self.out(self.cell(x)) + self.out(z)


def test_what_one_weight_reads_like_the_units_is_cut_with_them() -> None:
    model, given = seeded(ReadsBoth), (inputs(3), torch.randn(3, 8).double())
    structure = found(model, *given)
    assert structure.prunable == ("cell:l0",)
    assert [state.given and state.given.path for state in structure.states] == [("z",)]
    plan = random_plans(structure, 1)[0]
    assert_close(reprune.torch.apply(model, plan)(*given), reprune.torch.mask(model, plan)(*given), "output")


class ReadsToo(GruBase):
    """What starts the cell is read by another weight, which has nothing to do with the cell's units."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(8, 3)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return self.out(self.cell(x, z)) + self.other(z)


def test_a_start_that_something_else_reads_is_cut_at_the_cell() -> None:
    model, given = seeded(ReadsToo), (inputs(3), torch.randn(3, 8).double())
    structure = found(model, *given)
    assert structure.prunable == structure.outside_states == ("cell:l0",)
    assert not structure.states
    plan = random_plans(structure, 1)[0]
    assert_close(reprune.torch.apply(model, plan)(*given), reprune.torch.mask(model, plan)(*given), "output")


def test_the_call_after_the_example() -> None:
    model, (x, h, c), _ = states_of("CellStep")
    after = record(model, (x, h, c)).next_call
    assert (after.pairs, after.keeps, after.everywhere, after.instead) == (
        {("h",): (1,), ("c",): (2,)},
        False,
        False,
        {},
    )
    out = model(x, h, c)
    again = after(model, out, lambda: model(x, h, c))
    assert_close(torch.cat(again, 1), torch.cat(model(x, *out[1:]), 1), "the second call")
    # Where the caller puts states together, nobody else can; where modules keep them, it is called once more.
    model, batch, _ = states_of("PackedInSplitOut")
    assert record(model, batch).next_call(model, model(*batch), lambda: 1 / 0) is None
    keeper = seeded(Keeps)
    after = record(keeper, x).next_call
    assert (after.pairs, after.keeps) == ({}, True)
    assert after(keeper, None, lambda: "called") == "called"
    left = seeded(lambda: LeftOut("pair"))
    after = record(left, x).next_call
    assert after.pairs == {("extra", 0): (1, 0), ("extra", 1): (1, 1)}
    out = left(x)
    again = after(left, out, lambda: left(x))
    assert_close(again[0], left(x, out[1])[0], "the second call")
    assert record(left, (x,), lambda net, batch: net(*batch)).next_call.everywhere


def test_one_tensor_given_twice_is_two_states() -> None:
    model, (x, h, _), _ = states_of("CellStep")
    structure = reprune.torch.trace(model, (x, h, h))
    assert [state.given.path for state in structure.states if state.given] == [("h",), ("c",)]
    # What the caller hands in for every unit and does not get back.
    (scale,) = reprune.torch.trace(seeded(PartlyScaled), (x, torch.randn(3, 8).double())).states
    assert scale.given is not None
    assert (scale.given.path, scale.given.axis, scale.returned) == (("scale",), 1, None)


def test_models_whose_states_stay_as_they_were_are_called_as_they_were() -> None:
    case = next(iter(STREAMS.values()))
    model = seeded(case.build)
    structure = found(model, inputs(3), *doubled(case.states(3)))
    small = reprune.torch.apply(model, Plan(structure, {name: range(n) for name, n in structure.counts().items()}))
    assert not small._forward_pre_hooks
    assert "forward" not in vars(small)


class Residual(GruBase):
    """The input itself is added to the units."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x + self.cell(x))


class Block(nn.Module):
    """A residual block with a condition: what it returns has the shape of what it is given, and is no state."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.rnn, self.out = nn.Linear(8, 8), nn.GRU(8, 6, batch_first=True), nn.Linear(6, 8)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        x = x + torch.relu(self.one(x)) * mask
        return self.out(self.rnn(x)[0]), x


class DeepBlock(Block):
    """The same, with a layer in between: what it reads is made of the input alone, too."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        x = x + self.two(torch.relu(self.one(x))) * mask
        return self.out(self.rnn(x)[0]), x


class DeepStep(nn.Module):
    """One step of a cell whose change is made of input and state by two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Linear(5 + 8, 12), nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = h + self.two(torch.tanh(self.one(torch.cat([x, h], 1))))
        return self.out(h), h


class Encoder(nn.Module):
    """Returns all of its responses beside the state that it takes: those are features."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(5, 8, batch_first=True)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        return self.rnn(x, h)


def test_an_input_that_is_added_to_units_pins_them() -> None:
    pin = found(seeded(Residual), torch.randn(3, 8, dtype=torch.float64)).layers["cell:l0"].pin
    assert pin is not None
    assert "an input of the model" in pin.reason
    assert __file__ in pin.site.location


@pytest.mark.parametrize("kind", [Block, DeepBlock])
def test_a_block_is_no_recurrent_layer(kind: type[nn.Module]) -> None:
    x = torch.randn(3, 4, 8, dtype=torch.float64)
    structure = found(seeded(kind), x, torch.ones(3, 4, 1, dtype=torch.float64))
    assert list(structure.layers) == ["rnn:l0"]
    assert structure.prunable == ("rnn:l0",)
    assert not structure.states


def test_a_state_that_two_layers_change_is_carried() -> None:
    model, states = seeded(DeepStep), doubled((torch.zeros(3, 8),))
    structure = found(model, inputs(3), *states)
    assert sorted(structure.layers[name].units for name in structure.prunable) == [8, 12]
    for plan in random_plans(structure, 2):
        check_stream(model, plan, doubled((torch.zeros(4, 8),)), 4)


def test_responses_that_are_returned_stay_although_the_state_is_carried() -> None:
    x, h = torch.randn(3, 4, 5, dtype=torch.float64), torch.randn(1, 3, 8, dtype=torch.float64)
    pin = found(seeded(Encoder), x, h).layers["rnn:l0"].pin
    assert pin is not None
    assert "part of what the model returns" in pin.reason


class LeftOut(nn.Module):
    """Optional states under names that tell nothing, in the forms that people give them."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.rnn, self.out = form, nn.LSTM(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, extra: Any = None, more: Any = None) -> Any:
        state = (extra, more) if self.form == "two" and extra is not None else extra
        y, (h, c) = self.rnn(x[None], state["s"] if self.form == "dict" and state else state)
        return self.returned(self.out(y[0]), h, c)

    def returned(self, y: Tensor, h: Tensor, c: Tensor) -> Any:
        nests = {"pair": (y, (h, c)), "two": (y, h, c), "dict": {"y": y, "s": {"s": (h, c)}}, "tail": (y, h, c)}
        return nests[self.form]

    def handed_back(self, output: Any) -> tuple[Any, ...]:
        """The arguments of the next call."""
        if self.form == "dict":
            return (output["s"],)
        return (output[1:],) if self.form == "tail" else output[1:]


@pytest.mark.parametrize("form", ["pair", "two", "dict", "tail"])
def test_states_that_the_example_leaves_out_are_found_by_handing_them_back(form: str) -> None:
    model = seeded(lambda: LeftOut(form))
    structure = found(model, inputs(3))
    assert structure.prunable == ("rnn:l0",), [str(layer.pin) for layer in structure.layers.values()]
    assert {str(state.given.path[0]) for state in structure.states} <= {"extra", "more"}
    assert len(structure.states) == 2
    plan = random_plans(structure, 1)[0]
    small, masked = reprune.torch.apply(model, plan), reprune.torch.mask(model, plan)
    ours: tuple[Any, ...] = ()
    theirs: tuple[Any, ...] = ()
    for step in range(3):
        x = inputs(4)
        one, two = small(x, *ours), masked(x, *theirs)
        assert_close(next(leaves(one))[1], next(leaves(two))[1], f"answer of step {step}")
        ours, theirs = model.handed_back(one), model.handed_back(two)


class FailsOnItsOwnState(GruBase):
    """The first call knows no state, and the second one wants it in a size that is written down."""

    def forward(self, x: Tensor, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
        h = self.cell(x, None if h is None else h.view(len(x), 8))
        return self.out(h), h


def test_a_second_call_is_rehearsed() -> None:
    layer = found(seeded(FailsOnItsOwnState), inputs(3)).layers["cell:l0"]
    assert layer.pin is not None
    assert __file__ in layer.pin.site.location


class ProjectedStep(nn.Module):
    """One step of an LSTM whose state is a projection of what its gates make, states handed in and out."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.project, self.out = nn.Linear(5 + 4, 4 * 8), nn.Linear(8, 4, bias=False), nn.Linear(4, 3)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        i, f, g, o = self.gates(torch.cat([x, h], 1)).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = self.project(torch.sigmoid(o) * torch.tanh(c))
        return self.out(h), h, c


def test_a_projected_state_is_carried_step_by_step() -> None:
    model = seeded(ProjectedStep)
    structure = found(model, inputs(3), *doubled((torch.zeros(3, 4), torch.zeros(3, 8))))
    assert sorted(structure.layers[name].units for name in structure.prunable) == [4, 8]
    for plan in random_plans(structure, 2):
        check_stream(model, plan, doubled((torch.zeros(4, 4), torch.zeros(4, 8))), 4)


def test_what_other_inputs_are_made_into_is_no_projected_state() -> None:
    """An answer in the shape of an input that the cell reads, made of another one: neither is a state."""

    class Answers(ProjectedStep):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(7, 5)

        def forward(self, x: Tensor, z: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            return *super().forward(x, h, c), self.embed(z)

    given = inputs(3), torch.randn(3, 7).double(), *doubled((torch.zeros(3, 4), torch.zeros(3, 8)))
    structure = found(seeded(Answers), *given)
    assert {state.given.path[0] for state in structure.states if state.given} == {"h", "c"}


def test_what_a_block_makes_of_its_input_is_no_projected_state() -> None:
    """A correction of the input, made with a state: the caller gets an answer, not a state."""

    class Corrects(ProjectedStep):
        def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            answer, h, c = super().forward(x, h, c)
            return answer, h + x[:, :4], c

    structure = found(seeded(Corrects), inputs(3), *doubled((torch.zeros(3, 4), torch.zeros(3, 8))))
    assert all(structure.layers[name].units != 4 for name in structure.prunable)


class JoinedWithNoise(nn.Module):
    """An initial state of a map's outputs and of noise as wide as a number that is written down."""

    def __init__(self) -> None:
        super().__init__()
        self.make, self.rnn, self.out = nn.Linear(5, 5), nn.GRU(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.cat([self.make(x[0]), torch.randn(x.size(1), 3, dtype=x.dtype)], 1)
        return self.out(self.rnn(x, state[None])[0])


def test_a_state_that_is_joined_with_something_of_a_size_of_its_own_stays() -> None:
    layer = found(seeded(JoinedWithNoise), torch.randn(4, 3, 5, dtype=torch.float64)).layers["rnn:l0"]
    assert layer.pin is not None
    assert "joined of units and of something whose size does not follow" in layer.pin.reason
    assert __file__ in layer.pin.site.location


class Restarted(nn.Module):
    """Where an episode has ended, learned first states of all layers, in one parameter, replace the states."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(2, 1, 6))
        self.gru, self.out = nn.GRU(5, 6, 2), nn.Linear(6, 3)

    def forward(self, x: Tensor, ended: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.where(ended.view(1, -1, 1), self.first.expand_as(h), h)
        y, h = self.gru(x.unsqueeze(0), h)
        return self.out(y[0]), h


def test_learned_states_of_all_layers_in_one_parameter() -> None:
    model = seeded(Restarted)
    given = inputs(3), torch.tensor([True, False, False]), torch.randn(2, 3, 6, dtype=torch.float64)
    structure = found(model, *given)
    assert structure.index_coupled == (("gru:l0", "gru:l1"),)  # The parameter has one axis of units for both.
    for plan in random_plans(structure, 2):
        small, masked = reprune.torch.apply(model, plan), reprune.torch.mask(model, plan)
        kept = plan.kept["gru:l0"]
        assert_close(small(*given)[0], masked(*given)[0], "output")
        assert_close(small(*given)[1], masked(*given)[1][..., kept], "state")


class TwoLayers(nn.Module):
    """States of two layers in one tuple, which holds nothing at first."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.GRUCell(5, 8), nn.LSTMCell(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor, states: tuple[Any, Any] = (None, None)) -> tuple[Tensor, tuple[Any, Any]]:
        h = self.first(x, states[0])
        pair = self.second(h, states[1])
        return self.out(pair[0]), (h, pair)


@pytest.mark.parametrize("given", [(), ((None, None),)])
def test_a_tuple_of_nothing_is_left_out(given: tuple[Any, ...]) -> None:
    model = seeded(TwoLayers)
    structure = found(model, inputs(3), *given)
    assert structure.prunable == ("first:l0", "second:l0")
    plan = random_plans(structure, 1)[0]
    zeros = torch.zeros(4, 8).double(), (torch.zeros(4, 6).double(), torch.zeros(4, 6).double())
    check_stream(model, plan, (zeros,), 4)


class ResetFirst(nn.Module):
    """One step of a GRU written out, in the usual order: the state meets the gate that resets it first."""

    def __init__(self, nodes: int) -> None:
        super().__init__()
        self.nodes = nodes
        self.near = nn.Parameter(torch.randn(nodes, nodes)) if nodes else None
        self.gates, self.candidate, self.out = nn.Linear(13, 16), nn.Linear(13, 8), nn.Linear(8, 3)

    def mixed(self, x: Tensor) -> Tensor:
        return x if self.near is None else self.near.softmax(-1) @ x

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        update, reset = self.gates(self.mixed(torch.cat([x, h], -1))).sigmoid().chunk(2, -1)
        new = self.candidate(self.mixed(torch.cat([x, reset * h], -1))).tanh()
        h = update * h + (1 - update) * new
        return self.out(h), h


@pytest.mark.parametrize("nodes", [0, 4])
def test_a_state_that_several_gates_meet_is_carried(nodes: int) -> None:
    def given(batch: int, size: int) -> Tensor:
        return torch.randn(batch, *[nodes][: bool(nodes)], size, dtype=torch.float64)

    model = seeded(lambda: ResetFirst(nodes))
    structure = found(model, given(3, 5), given(3, 8))
    assert structure.prunable == (":l0",)
    plan = random_plans(structure, 1)[0]
    small, masked = reprune.torch.apply(model, plan), reprune.torch.mask(model, plan)
    ours = theirs = given(4, 8)
    for step in range(3):
        x = given(4, 5)
        (y, ours), (expected, theirs) = small(x, ours), masked(x, theirs)
        assert_close(y, expected, f"answer of step {step}")
        assert ours.shape[-1] == len(plan.kept[":l0"])


class Layers(nn.Module):
    """Final states of two layers, taken apart in some way."""

    def __init__(self, apart: Any) -> None:
        super().__init__()
        self.apart, self.rnn, self.one, self.two = apart, nn.GRU(5, 8, 2), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.apart(self.rnn(x.transpose(0, 1))[1])
        return self.one(one) + self.two(two)


@pytest.mark.parametrize(
    ("apart", "free"),
    [
        (lambda h: (h[0], h[1]), True), (lambda h: h, True), (lambda h: list(h), True),
        (lambda h: (h[-2], h[-1]), True),
        (lambda h: h.unbind(), False), (lambda h: (h[0:1][0], h[1]), False), (lambda h: (h * 1), False),
    ],
)  # fmt: skip
def test_single_layers_that_are_taken_out_of_a_stack_are_free(apart: Any, free: bool) -> None:
    torch.manual_seed(0)
    model, x = Layers(apart).double(), torch.randn(3, 6, 5, dtype=torch.float64)
    structure = reprune.torch.trace(model, x)
    assert structure.count_coupled == (() if free else (("rnn:l0", "rnn:l1"),))
    plan = random_plans(structure, 1)[0]
    assert_close(reprune.torch.apply(model, plan)(x), reprune.torch.mask(model, plan)(x), "output")


class Gated(nn.Module):
    """Units are multiplied with the single unit of another layer, in every place."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.gate, self.out = nn.GRU(5, 8, batch_first=True), nn.GRU(5, 1, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0] * self.gate(x)[0])


def test_a_single_unit_is_a_number_like_any_other() -> None:
    model, x = seeded(Gated), torch.randn(3, 4, 5, dtype=torch.float64)
    structure = found(model, x)
    assert structure.index_coupled == (("rnn:l0",), ("gate:l0",))
    for plan in random_plans(structure, 2):
        assert len(plan.kept["rnn:l0"]) < 8
        assert_close(reprune.torch.apply(model, plan)(x), reprune.torch.mask(model, plan)(x), "output")


class OddlyNamed(GruBase):
    """A state under a key that no plan can name."""

    def forward(self, x: Tensor, states: dict[Any, Tensor]) -> tuple[Tensor, dict[Any, Tensor]]:
        ((key, h),) = states.items()
        h = self.cell(x, h)
        return self.out(h), {key: h}


@pytest.mark.parametrize(("key", "carried"), [("h", True), (3, True), ((0, 1), False), (0.5, False)])
def test_states_under_keys_that_are_neither_words_nor_numbers_stay(key: Any, carried: bool) -> None:
    structure = found(seeded(OddlyNamed), inputs(3), {key: torch.randn(3, 8).double()})
    assert structure.prunable == (("cell:l0",) if carried else ())
    assert [state.given.path for state in structure.states] == [("states", key)] * carried


class PartlyScaled(GruBase):
    """Numbers that the caller hands in scale the units; there may be others that have nothing to do with them."""

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return self.out(self.cell(x) * scale[:, : self.out.in_features])


@pytest.mark.parametrize("more", [0, 2])
def test_inputs_that_scale_units_are_cut_with_them_if_they_do_nothing_else(more: int) -> None:
    structure = found(seeded(PartlyScaled), inputs(3), torch.randn(3, 8 + more).double())
    assert bool(structure.prunable) == (not more)


class Iterates(ProjectedStep):
    """An input that a weight reads, corrected by what the state says, comes back in its own shape."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.out = nn.Linear(3 + 4, 4 * 8), nn.Linear(4, 3)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        change, h, c = super().forward(x, h, c)
        return x + change, h, c


def test_an_answer_that_comes_back_corrected_is_no_state() -> None:
    states = doubled((torch.zeros(3, 4), torch.zeros(3, 8)))
    structure = found(seeded(Iterates), torch.randn(3, 3).double(), *states)
    assert {state.given.path[0] for state in structure.states} == {"h", "c"}
    assert sorted(layer.units for layer in structure.layers.values()) == [4, 8]
