"""Cells written out with layers: a state that goes round through any number of weights; what is no cell."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import reprune.torch
from reprune.core.errors import UnsupportedModelError
from reprune.core.layers import Structure
from reprune.torch.tracing.record import _widths
from tests.helpers.torch_oracle import check_all_lose, check_oracle, random_plans


def frames(steps: int = 6) -> torch.Tensor:
    return torch.randn(4, steps, 5, dtype=torch.float64)


def exact(model: nn.Module, layers: dict[str, int]) -> Structure:
    return check_all_lose(model, layers, frames, longer=8)


class Projected(nn.Module):
    """LSTMP written out: the state that goes round is a projection of the memory's."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.r, self.project = nn.Linear(5, 48), nn.Linear(8, 48, bias=False), nn.Linear(12, 8, bias=False)
        self.out = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, c = x.new_zeros(x.size(0), self.r.in_features), x.new_zeros(x.size(0), self.project.in_features)
        for step in x.unbind(1):
            i, f, g, o = (self.x(step) + self.r(h)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = self.project(o.sigmoid() * c.tanh())
        return self.out(h)


class MemoryThroughWeight(nn.Module):
    """The memory reaches the state through a weight; one layer makes the gates of both."""

    def __init__(self) -> None:
        super().__init__()
        self.n, self.x, self.h = 8, nn.Linear(5, 32, bias=False), nn.Linear(8, 32, bias=False)
        self.last, self.out = nn.Linear(8, 8, bias=False), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, c = x.new_zeros(x.size(0), self.n), x.new_zeros(x.size(0), self.n)
        for step in x.unbind(1):
            i, f, g, o = torch.split(self.x(step) + self.h(h), self.n, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * torch.tanh(self.last(c))
        return self.out(h)


class Einsum(nn.Module):
    """One head's matrices in one parameter, applied with einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.u, self.out = nn.Linear(5, 8), nn.Parameter(torch.randn(8, 8) / 3), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x.new_zeros(x.size(0), self.u.size(0))
        for step in x.unbind(1):
            h = torch.tanh(self.x(step) + torch.einsum("bi,ij->bj", h, self.u))
        return self.out(h)


class Messages(nn.Module):
    """A graph network with a written update: neighbours are what comes from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.update, self.out = nn.Linear(5, 8), nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        near, h = (x @ x.transpose(1, 2)).softmax(-1), torch.tanh(self.start(x))
        for _ in range(3):
            h = torch.tanh(self.update(torch.cat([h, near @ h], -1)))
        return self.out(h)


def test_projected_state() -> None:
    assert not exact(Projected(), {":l0": 8, ":l1": 12}).count_coupled


def test_memory_through_a_weight() -> None:
    """One attribute is the size of both: they stay equal, and lose units of their own."""
    structure = exact(MemoryThroughWeight(), {":l0": 8, ":l1": 8})
    assert structure.count_coupled == ((":l0", ":l1"),)
    assert structure.index_coupled == ((":l0",), (":l1",))


@pytest.mark.parametrize("kind", [Projected, MemoryThroughWeight])
@pytest.mark.parametrize("method", ["reconstruct", "iss-gm+mean"])
def test_states_that_go_round_through_several_weights_are_observed(kind: type[nn.Module], method: str) -> None:
    torch.manual_seed(0)
    model = kind().double()
    plan = reprune.torch.plan(model, [frames(8) for _ in range(8)], 0.5, method=method)
    assert sum(plan.counts().values()) == sum(layer.units for layer in plan.structure.layers.values()) // 2
    check_oracle(model, plan, frames())


def test_einsum() -> None:
    exact(Einsum(), {":l0": 8})


def test_messages() -> None:
    exact(Messages(), {":l0": 8})


class Highway(nn.Module):
    """Highway layers before an LSTM: shared by two inputs, or applied to one again and again."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times, self.h, self.g = times, nn.Linear(12, 12), nn.Linear(12, 12)
        self.features, self.rnn, self.out = nn.Linear(5, 12), nn.LSTM(12, 10, batch_first=True), nn.Linear(10, 3)

    def highway(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(self.times):
            g = self.g(x).sigmoid()
            x = g * self.h(x).relu() + (1 - g) * x
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, two = self.highway(self.features(x)), self.highway(self.features(x.flip(1)))
        return self.out(self.rnn(one)[0] + self.rnn(two)[0])


@pytest.mark.parametrize("times", [1, 2, 3])
def test_layers_used_twice_are_no_cells(times: int) -> None:
    exact(Highway(times), {"rnn:l0": 10})


class Elementwise(nn.Module):
    """A recurrence without a matrix, as in SRU, QRNN or minGRU."""

    def __init__(self) -> None:
        super().__init__()
        self.make, self.out = nn.Linear(5, 16), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x.new_zeros(x.size(0), 8)
        for step in self.make(x).unbind(1):
            z, f = step.chunk(2, -1)
            h = f.sigmoid() * h + (1 - f.sigmoid()) * z
        return self.out(h)


def test_a_recurrence_without_a_matrix_is_told_with_its_widths() -> None:
    with pytest.raises(UnsupportedModelError, match=r"from element to element.*make \(16\), out \(3\)"):
        reprune.torch.inspect(Elementwise().double(), [frames()])
    assert _widths(nn.Sequential(*[nn.Linear(2, 2) for _ in range(8)])).endswith("6 (2), 7 (2)")
    assert _widths(nn.Sequential(*[nn.Linear(2, 2) for _ in range(9)])).endswith("6 (2), 7 (2), …")


def test_residual_layers_alone_hold_no_hidden_units() -> None:
    class Residual(Highway):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.highway(self.features(x))[..., :10])

    with pytest.raises(UnsupportedModelError, match="No recurrent layer ran") as raised:
        reprune.torch.inspect(Residual(3).double(), [frames()])
    assert "lost sight" not in str(raised.value)


class Attended(nn.Module):
    """A GRU's cell whose update comes from outside; its weights still make the gate for it, which nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.h, self.score, self.out = nn.Linear(5, 24), nn.Linear(8, 24), nn.Linear(5, 1), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x.new_zeros(x.size(0), self.h.in_features)
        for step in x.unbind(1):
            (r, _, n), (r_h, _, n_h) = self.x(step).chunk(3, 1), self.h(h).chunk(3, 1)
            update = self.score(step).sigmoid()
            h = (1 - update) * h + update * (n + (r + r_h).sigmoid() * n_h).tanh()
        return self.out(h)


def test_a_gate_that_nothing_uses_goes_with_the_others() -> None:
    structure = exact(Attended(), {":l0": 8})
    assert [len(slot.spans) for slot in structure.slots if slot.tensor == "x.weight" and slot.axis == 0] == [3]


class Normalised(nn.Module):
    """A convolutional cell whose gates are normalised in groups that cut each of them in half."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.norm, self.out = nn.Conv1d(13, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.Conv1d(8, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x.new_zeros(x.size(0), self.out.in_channels, 7)
        for step in x.unbind(1):
            z, n = self.norm(self.gates(torch.cat([step[..., None].expand(-1, -1, 7), h], 1))).chunk(2, 1)
            h = z.sigmoid() * h + n.tanh()
        return self.out(h)


def test_groups_that_cut_gates_pin_the_cell() -> None:
    layers = reprune.torch.inspect(Normalised().double(), [frames()]).layers
    assert [str(layer.pin and layer.pin.reason) for layer in layers.values()] == [
        "group_norm cuts its units into 4 groups"
    ]


class Orthogonal(nn.Module):
    """A state that goes through an operation without a rule on its way round."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.h = nn.Linear(5, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x.new_zeros(x.size(0), 4)
        for step in x.unbind(1):
            h = torch.linalg.qr(self.x(step) + self.h(h))[0]
        return h.sum(1)


def test_a_model_without_layers_is_told_where_values_were_lost() -> None:
    with pytest.raises(UnsupportedModelError, match=r"lost sight of: 'linalg_qr' is not .* at .*test_written_cells.py"):
        reprune.torch.inspect(Orthogonal().double(), [frames()])


class Looking(nn.Module):
    """A state that says where the model looks next: its numbers are places in the input."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.h, self.out = nn.Linear(5, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x.new_zeros(x.size(0), self.out.in_features)
        for _ in range(3):
            h = torch.tanh(self.x(x[:, int(h[0, 1].abs() * 5)]) + self.h(h))
        return self.out(h)


def test_a_value_that_leaves_pytorch_pins_with_that_reason() -> None:
    pins = [layer.pin for layer in reprune.torch.inspect(Looking().double(), [frames()]).layers.values()]
    assert [pin and "takes a value of its units out of PyTorch" in pin.reason for pin in pins] == [True]


class Ordered(nn.Module):
    """A written cell whose forget gate is one number for every chunk of its units, as in ordered neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.h, self.out = nn.Linear(5, 3 + 12), nn.Linear(12, 3 + 12), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x.new_zeros(x.size(0), self.out.in_features)
        for step in x.unbind(1):
            master, new = (self.x(step) + self.h(h)).split([3, 12], 1)
            forget = master.softmax(1).cumsum(1)[..., None]
            h = (forget * h.view(-1, 3, 4) + new.tanh().view(-1, 3, 4)).view(h.shape)
        return self.out(h)


def test_chunks_of_units_are_told_as_what_keeps_them() -> None:
    (layer,) = reprune.torch.inspect(Ordered().double(), [frames()]).layers.values()
    assert layer.pin is not None
    assert "its units are split into parts of" in layer.pin.reason
    assert __file__ in layer.pin.site.location


class Remembering(nn.Module):
    """The last states, zeros of a size from an attribute at first, go through a convolution over time."""

    def __init__(self) -> None:
        super().__init__()
        self.units, self.cell, self.conv = 8, nn.GRUCell(5, 8), nn.Conv1d(8, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.zeros(x.size(0), self.units, dtype=x.dtype)
        last = torch.zeros(x.size(0), 3, self.units, dtype=x.dtype)
        answers = []
        for step in x.unbind(1):
            h = self.cell(step, h)
            last = torch.cat([last[:, 1:], h[:, None]], 1)
            answers.append(self.conv(last.transpose(1, 2)))
        return torch.cat(answers, 2)


def test_a_convolution_over_states_and_zeros_before_them() -> None:
    exact(Remembering(), {"cell:l0": 8})


class LearnedStates(nn.Module):
    """Two written cells, one above the other, whose learned initial states are repeated in a size of one attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.units, self.lower, self.upper = 8, nn.Linear(13, 8), nn.Linear(16, 8)
        self.first, self.second, self.out = (
            nn.Parameter(torch.randn(1, 8)),
            nn.Parameter(torch.randn(1, 8)),
            nn.Linear(8, 3),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, two = (state.expand(len(x), self.units) for state in (self.first, self.second))
        for step in x.unbind(1):
            one = self.lower(torch.cat([step, one], 1)).tanh()
            two = self.upper(torch.cat([one, two], 1)).tanh()
        return self.out(two)


def test_learned_states_beside_data_and_beside_units() -> None:
    torch.manual_seed(0)
    model = LearnedStates().double()
    structure = reprune.torch.inspect(model, [frames()]).structure
    assert structure.prunable == (":l0", ":l1")
    assert structure.count_coupled == ((":l0", ":l1"),)
    for plan in random_plans(structure, 2):
        check_oracle(model, plan, frames(8))


class ReadsPlaces(nn.Module):
    """A memory that picks from places of an image, whose channels it is multiplied with: they are a layer of their own.

    The weight that reads both comes before the one that reads the memory alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.places, self.ask, self.write, self.out = (
            nn.Conv1d(5, 6, 1),
            nn.Linear(8, 6),
            nn.Linear(14, 8),
            nn.Linear(8, 3),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        known, memory = self.places(x.transpose(1, 2)), x.new_zeros(len(x), self.out.in_features)
        found = known.mean(2)
        for _ in range(3):
            memory = self.write(torch.cat([found, memory], 1)).tanh()
            found = (self.ask(memory)[..., None] * known).tanh().mean(2)
        return self.out(memory)


def test_states_that_a_weight_reads_side_by_side_are_layers_each() -> None:
    exact(ReadsPlaces(), {":l0": 6, ":l1": 8})


class Controlled(nn.Module):
    """A controlled differential equation: one weight makes a matrix of units by channels, which changes multiply."""

    def __init__(self) -> None:
        super().__init__()
        self.units, self.channels = 8, 5
        self.first, self.inner = nn.Linear(5, 8), nn.Linear(8, 12)
        self.field, self.out = nn.Linear(12, 8 * 5), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x[:, 0])
        for step in x.diff(dim=1).unbind(1):
            matrix = self.field(self.inner(h).relu()).tanh().view(len(h), self.units, self.channels)
            h = h + (matrix @ step.unsqueeze(-1)).squeeze(-1)
        return self.out(h)


def test_a_matrix_that_one_weight_makes_is_summed_over_data() -> None:
    structure = exact(Controlled(), {":l0": 8, ":l1": 12})
    (slot,) = [slot for slot in structure.slots_of(":l0") if slot.tensor == "field.weight"]
    assert [(span.units, span.each) for span in slot.spans] == [(8, 5)]


class LowRank(nn.Module):
    """A recurrent weight of low rank beside a diagonal."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Parameter(torch.randn(8, 3)), nn.Parameter(torch.randn(3, 8) / 3)
        self.diagonal = nn.Parameter(torch.randn(8) / 5)
        self.x, self.out = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.left @ self.right + torch.diag(self.diagonal)
        h = x.new_zeros(len(x), self.x.out_features)
        for step in x.unbind(1):
            h = torch.tanh(self.x(step) + h @ weight)
        return self.out(h)


def test_a_diagonal_belongs_to_its_rows_and_columns() -> None:
    exact(LowRank(), {":l0": 8})


class Clockwork(nn.Module):
    """Units of different periods, whole numbers in a buffer, of which some rest at each step."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("periods", torch.tensor([1, 1, 2, 2, 2, 4, 4, 4]))
        self.x, self.h, self.out = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x.new_zeros(len(x), self.x.out_features)
        for t, step in enumerate(x.unbind(1)):
            moves = (t % self.periods == 0).to(h)
            h = moves * torch.tanh(self.x(step) + self.h(h)) + (1 - moves) * h
        return self.out(h)


def test_whole_numbers_in_a_buffer_go_with_their_units() -> None:
    structure = exact(Clockwork(), {":l0": 8})
    assert "periods" in structure.buffers
