"""Sizes wherever a model's code keeps them: pruned exactly, and changed with the units; two of one value told apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

import reprune.torch
from reprune.core.layers import Structure
from reprune.torch.tracing.labels import ShadowMemory
from tests.helpers.torch_oracle import check_all_lose, check_oracle, random_plans


def frames(steps: int = 5) -> torch.Tensor:
    return torch.randn(4, steps, 5, dtype=torch.float64)


def exact(model: nn.Module, layers: dict[str, int]) -> Structure:
    return check_all_lose(model, layers, frames, longer=7)


@dataclass(frozen=True)
class Settings:
    hidden: int = 12


class Cell(nn.Module):
    """A written cell whose size is kept by `keep` and looked up by `size`."""

    CLASS = 12

    def __init__(self, keep: Callable[[Any], None], size: Callable[[Any], int], zeros: Any = torch.zeros) -> None:
        super().__init__()
        keep(self)
        self._look, self._zeros = size, zeros
        self.gates, self.out = nn.Linear(5 + 12, 36), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = self._look(self)
        h = self._zeros(x.size(0), n).to(x.dtype)
        for step in x.unbind(1):
            r, c, u = torch.split(self.gates(torch.cat([step, h], -1)), [n] * 3, -1)
            c, u = torch.tanh(r.sigmoid() * c), u.sigmoid()
            h = u * c + (1 - u) * h
        return self.out(h)


def keeps(**values: Any) -> Callable[[Any], None]:
    return lambda cell: vars(cell).update(values)


KEPT: dict[str, Callable[[], nn.Module]] = {
    "public": lambda: Cell(keeps(n=12), lambda cell: cell.n),
    "private": lambda: Cell(keeps(_n=12), lambda cell: cell._n),
    "product": lambda: Cell(keeps(_gates=36), lambda cell: cell._gates // 3),
    "sum": lambda: Cell(keeps(_n=17), lambda cell: cell._n - 5),
    "list": lambda: Cell(keeps(sizes=[5, 12, 3]), lambda cell: cell.sizes[1]),
    "tuple": lambda: Cell(keeps(sizes=(5, 12, 3)), lambda cell: cell.sizes[1]),
    "shape": lambda: Cell(keeps(shape=torch.Size((12,))), lambda cell: cell.shape[0]),
    "nested": lambda: Cell(keeps(config={"cell": {"size": [12]}}), lambda cell: cell.config["cell"]["size"][0]),
    "frozen dataclass": lambda: Cell(keeps(config=Settings()), lambda cell: cell.config.hidden),
    "class": lambda: Cell(keeps(), lambda cell: cell.CLASS),
    "legacy constructor": lambda: Cell(keeps(n=12), lambda cell: cell.n, lambda *s: torch.FloatTensor(*s).fill_(0)),
    "tensor constructor": lambda: Cell(keeps(_n=12), lambda cell: cell._n, lambda *s: torch.Tensor(*s).zero_()),
    "NumPy": lambda: Cell(keeps(n=12), lambda cell: cell.n, lambda *s: torch.from_numpy(np.zeros(s))),
    "NumPy integer": lambda: Cell(keeps(n=np.int64(12)), lambda cell: int(cell.n)),
    "text": lambda: Cell(keeps(n="12"), lambda cell: cell.gates.out_features // 3),
}


@pytest.mark.parametrize("build", KEPT.values(), ids=KEPT)
def test_wherever_it_is_kept(build: Callable[[], nn.Module]) -> None:
    exact(build(), {":l0": 12})


class Two(nn.Module):
    """Two layers of one size, side by side; `cut` takes them apart again."""

    def __init__(
        self, cut: Callable[[Any, torch.Tensor], torch.Tensor], one: int = 8, two: int = 8, **kept: Any
    ) -> None:
        super().__init__()
        self.a, self.b = nn.GRU(5, one, batch_first=True), nn.GRU(5, two, batch_first=True)
        self.p, self.q, self._cut = nn.Linear(one, 3), nn.Linear(two, 3), cut
        vars(self).update(kept)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = self._cut(self, torch.cat([self.a(x)[0], self.b(x)[0]], -1))
        return self.p(first) + self.q(second)


def test_two_attributes_of_one_value_are_told_apart() -> None:
    structure = exact(Two(lambda m, y: y.split([m.n, m.m], -1), n=8, m=8), {"a:l0": 8, "b:l0": 8})
    assert not structure.count_coupled
    assert {(size.path, size.extent.layers) for size in structure.sizes} == {
        (("n",), (("a:l0", 1),)), (("m",), (("b:l0", 1),)),
    }  # fmt: skip


def test_one_attribute_of_two_layers_keeps_them_equal() -> None:
    structure = exact(
        Two(lambda m, y: [y[..., i * m.n : (i + 1) * m.n] for i in range(2)], n=8), {"a:l0": 8, "b:l0": 8}
    )
    assert structure.count_coupled == (("a:l0", "b:l0"),)


def test_layers_of_different_sizes_cut_at_the_seam_are_free() -> None:
    structure = exact(Two(lambda m, y: (y[..., : m.n], y[..., m.n :]), 8, 6, n=8), {"a:l0": 8, "b:l0": 6})
    assert not structure.count_coupled


def test_sums_of_sizes() -> None:
    def cut(model: Any, y: torch.Tensor) -> Any:
        return y.reshape(-1, model.n + model.m).view(*y.shape[:2], model.total).split([model.n, model.m], -1)

    structure = exact(Two(cut, 8, 6, n=8, m=6, total=14), {"a:l0": 8, "b:l0": 6})
    assert {(size.path, size.extent.layers) for size in structure.sizes} == {
        (("n",), (("a:l0", 1),)), (("m",), (("b:l0", 1),)), (("total",), (("a:l0", 1), ("b:l0", 1))),
    }  # fmt: skip
    assert not structure.count_coupled


class Compared(nn.Module):
    """Features are padded up to a size that nothing else uses."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.start, self.cell, self.out = 12, nn.Linear(5, 12), nn.GRUCell(12, 12), nn.Linear(12, 3)
        self.message = nn.Linear(12, 12, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.start(x[:, 0])
        if h.size(-1) < self.width:
            h = F.pad(h, (0, self.width - h.size(-1)))
        for _ in range(3):
            h = self.cell(self.message(h), h)
        return self.out(h)


def test_only_compared() -> None:
    exact(Compared(), {"cell:l0": 12})


class ReadOff(nn.Module):
    """The state of one layer is made in the size of another one's output."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.GRU(5, 8, batch_first=True), nn.GRUCell(8, 8)
        self.query, self.out = nn.Linear(8, 8, bias=False), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        encoded = self.encoder(x)[0]
        h = encoded.new_zeros(encoded.size(0), encoded.size(-1))
        for step in encoded.unbind(1):
            h = self.decoder(step + self.query(h) * 0.1, h)
        return self.out(h)


def test_a_size_read_off_one_layer_and_used_for_another_keeps_them_equal() -> None:
    torch.manual_seed(0)
    model = ReadOff().double()
    structure = reprune.torch.inspect(model, [frames()]).structure
    assert structure.prunable == ("encoder:l0", "decoder:l0")
    for plan in random_plans(structure, 2):
        assert len(plan.kept["encoder:l0"]) == len(plan.kept["decoder:l0"]) < 8
        check_oracle(model, plan, frames())


class Gathered(nn.Module):
    """Both directions, each a layer: the index of each word's end, and a mask, are made as wide as a state."""

    def __init__(self, hidden: int = 12) -> None:
        super().__init__()
        self.hidden, self.fw, self.bw = hidden, nn.LSTM(5, hidden), nn.LSTM(5, hidden)
        self.words, self.last, self.out = nn.GRU(2 * hidden, 10), nn.GRU(10, 8), nn.Linear(8, 3)
        self.width = 10

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ends = torch.arange(0, x.size(1), 2).unsqueeze(1).unsqueeze(2).expand(-1, len(x), self.hidden)
        fw, bw = self.fw(x.transpose(0, 1))[0], self.bw(x.transpose(0, 1).flip(0))[0]
        words = self.words(torch.cat([fw.gather(0, ends), bw.gather(0, ends)], 2))[0]
        mask = x.new_full((len(ends), len(x), 1), 0.5).repeat(1, 1, self.width)
        return self.out(self.last(words * mask)[0])


def test_indices_and_masks_as_wide_as_an_attribute() -> None:
    structure = exact(Gathered(), {"fw:l0": 12, "bw:l0": 12, "words:l0": 10, "last:l0": 8})
    assert [set(bond) for bond in structure.count_coupled] == [{"fw:l0", "bw:l0"}]
    assert {("hidden",), ("width",)} < {size.path for size in structure.sizes}


class OneForTwo(nn.Module):
    """One attribute is the size of one layer, and half of it that of another one."""

    def __init__(self) -> None:
        super().__init__()
        self.dim, self.a, self.b = 12, nn.GRU(5, 12, batch_first=True), nn.GRU(5, 6, batch_first=True)
        self.of_a, self.of_b = nn.Linear(12, 3), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.a(x)[0].reshape(-1, self.dim), self.b(x)[0].reshape(-1, self.dim // 2)
        return self.of_a(a) + self.of_b(b)


def test_an_attribute_of_layers_of_two_sizes_is_named() -> None:
    structure = reprune.torch.inspect(OneForTwo().double(), [frames()]).structure
    for layer in structure.layers.values():
        assert "give each an attribute of its own (the attribute self.dim)" in str(layer.pin)


class Norm(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.n, self.rnn, self.out = how, 12, nn.LSTM(5, 12, batch_first=True), nn.Linear(12, 3)
        self.layer = nn.LayerNorm(12, elementwise_affine=False)
        self.rms = nn.RMSNorm((12,), elementwise_affine=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.rnn(x)[0]
        ways = {"layer": self.layer, "rms": self.rms, "functional": lambda h: F.layer_norm(h, (self.n,))}
        return self.out(ways[self.how](h))


@pytest.mark.parametrize("how", ["layer", "rms", "functional"])
def test_normalised_shape(how: str) -> None:
    model = Norm(how)
    result = reprune.torch.prune(model, [torch.randn(4, 6, 5)], 0.5, method="magnitude")
    assert result.plan.counts() == {"rnn:l0": 6}
    assert result.plan.structure.layers["rnn:l0"].approximate is not None
    h = result.model.rnn(x := torch.randn(4, 6, 5))[0]
    expected = F.rms_norm(h, (6,)) if how == "rms" else F.layer_norm(h, (6,))
    torch.testing.assert_close(result.model(x), result.model.out(expected))


class Written(nn.Module):
    """The number itself stands in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.query, self.out = nn.GRUCell(5, 12), nn.Linear(12, 5, bias=False), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.zeros(x.size(0), 12, dtype=x.dtype)
        for step in x.unbind(1):
            h = self.cell(step + self.query(h), h)
        return self.out(h)


def test_a_number_in_the_code_is_told_with_its_line() -> None:
    layer = reprune.torch.inspect(Written().double(), [frames()]).structure.layers["cell:l0"]
    assert layer.pin is not None
    reason = str(layer.pin)
    assert "does not run with fewer units" in reason
    assert "`h = self.cell(step + self.query(h), h)`, where h is (4, 12)" in reason
    assert "take it from a tensor or a module" in reason
    assert __file__ in reason


def test_attributes_are_as_they_were() -> None:
    model = Cell(keeps(sizes=(5, 12, 3), _n=12), lambda cell: cell.sizes[1]).double()
    small = reprune.torch.prune(model, [frames()], 0.5, method="magnitude").model
    assert model.sizes == (5, 12, 3)
    assert all(type(size) is int for size in model.sizes)
    assert small.sizes == (5, 6, 3)


@pytest.mark.parametrize("steps", [200, 500])
def test_units_that_grow_without_bound_are_rehearsed_within_it(steps: int) -> None:
    """ReLU units that read each other through noise overflow; nothing of it may reach the comparison."""

    class Relu(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.out = nn.RNN(8, 64, nonlinearity="relu", batch_first=True), nn.Linear(64, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.rnn(x)[0])

    torch.manual_seed(0)
    assert reprune.torch.inspect(Relu(), [torch.randn(4, steps, 8)]).structure.prunable == ("rnn:l0",)


class Told(nn.Module):
    """A size that goes through a text, where it cannot be followed, beside a number that is the same by chance."""

    def __init__(self) -> None:
        super().__init__()
        self.labels = self.units = 12
        self.rnn, self.out = nn.GRU(5, 12, batch_first=True), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.labels != 12:
            raise ValueError("as many labels as ever")
        return self.out(self.rnn(x)[0] + torch.zeros(int(str(self.units))))


class ToldTwice(Told):
    """Two such sizes, one twice the other."""

    def __init__(self) -> None:
        super().__init__()
        self.labels, self.both = 3, 24

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.rnn(x)[0]
        return self.out((torch.cat([h, h], -1) + torch.zeros(int(str(self.both))))[..., : int(str(self.units))])


@pytest.mark.parametrize(("kind", "times"), [(Told, {"units": 1}), (ToldTwice, {"units": 1, "both": 2})])
def test_sizes_that_cannot_be_followed_are_found_by_trying(kind: type[nn.Module], times: dict[str, int]) -> None:
    structure = exact(kind(), {"rnn:l0": 12})
    assert {size.path: size.extent.layers for size in structure.sizes} == {
        (name,): (("rnn:l0", each),) for name, each in times.items()
    }


class StackedZeros(nn.Module):
    """First states of two cells in one tensor, each made by the cell in its own size."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.ModuleList([WrittenCell(5, 8), WrittenCell(8, 8)])
        self.out = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states = torch.stack([cell.zeros(x) for cell in self.cells])
        for cell, h in zip(self.cells, states, strict=True):
            answers = []
            for step in x.unbind(1):
                h = cell(step, h)
                answers.append(h)
            x = torch.stack(answers, 1)
        return self.out(x)


class WrittenCell(nn.Module):
    def __init__(self, features: int, units: int) -> None:
        super().__init__()
        self.units = units
        self.gates = nn.Linear(features + units, 2 * units)

    def zeros(self, x: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(x), self.units).to(x)

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        z, new = self.gates(torch.cat([x, h], 1)).split(self.units, 1)
        return z.sigmoid() * h + (1 - z.sigmoid()) * new.tanh()


def test_states_that_begin_in_one_tensor_stay_as_long_as_each_other() -> None:
    structure = exact(StackedZeros(), {"cells.0:l0": 8, "cells.1:l0": 8})
    assert structure.count_coupled == (("cells.0:l0", "cells.1:l0"),)


class Messages(nn.Module):
    """Messages between nodes of a graph are added up in a tensor that is as wide as the states."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.message = nn.Linear(5, 8), nn.Linear(8, 8)
        self.cell, self.out = nn.GRUCell(8, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        nodes = x.flatten(0, 1)
        source, target = torch.arange(len(nodes)), torch.arange(len(nodes)).roll(1) // 2
        h = torch.tanh(self.first(nodes))
        for _ in range(3):
            sent = self.message(h)[source]
            index = target.unsqueeze(-1).expand_as(sent)
            h = self.cell(torch.zeros(len(nodes), h.size(-1)).to(h).scatter_add_(0, index, sent), h)
        return self.out(h)


def test_features_that_fill_a_tensor_as_wide_as_the_units_go_with_them() -> None:
    structure = exact(Messages(), {"cell:l0": 8})
    (slot,) = [slot for slot in structure.slots_of("cell:l0") if slot.tensor == "message.weight" and slot.axis == 0]
    assert [(span.layer, span.units) for span in slot.spans] == [("cell:l0", 8)]


def test_labels_are_where_the_elements_are() -> None:
    """What is made in a size from an attribute is labelled on the CPU, and meets what is labelled on a GPU."""
    memory, labels = ShadowMemory(), torch.tensor([1, 2, 3])
    for state in (torch.empty(2, 3, device="meta"), torch.empty(4, 3, device="meta")[:2]):
        memory.set(state, labels)
        assert memory.get(state).device == state.device
