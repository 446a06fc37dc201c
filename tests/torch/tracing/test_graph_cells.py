"""Recurrent cells on graphs: a matrix over nodes mixes rows of the state, weights beside it make the features."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import reprune.torch
from tests.helpers.torch_oracle import check_all_lose

NODES, UNITS = 5, 8


class GraphGRU(nn.Module):
    """A GRU whose gates read the neighbours' states through an adjacency matrix, which may be learned."""

    def __init__(self, form: str, learned: bool) -> None:
        super().__init__()
        self.form, self.units = form, UNITS
        adjacency = torch.rand(NODES, NODES)
        if learned:
            self.adjacency = nn.Parameter(adjacency)
        else:
            self.register_buffer("adjacency", adjacency)
        self.gates = nn.Parameter(torch.randn(UNITS + 2, 2 * UNITS) / 3)
        self.candidate = nn.Parameter(torch.randn(UNITS + 2, UNITS) / 3)
        self.bias = nn.Parameter(torch.randn(2 * UNITS))
        self.out = nn.Linear(UNITS, 3)

    def neighbours(self, x: Tensor, h: Tensor) -> Tensor:
        both = torch.cat([x, h], -1)
        if self.form == "matmul":
            return self.adjacency @ both
        if self.form == "einsum":
            return torch.einsum("nm,bmc->bnc", self.adjacency, both)
        if self.form == "degrees":
            return (self.adjacency @ x.new_ones(NODES, 1)) * both
        batch, nodes, features = both.shape
        mixed = self.adjacency @ both.permute(1, 2, 0).reshape(nodes, features * batch)
        return mixed.reshape(nodes, features, batch).permute(2, 0, 1)

    def forward(self, xs: Tensor) -> Tensor:
        h = xs.new_zeros(len(xs), NODES, self.units)
        for x in xs.unbind(1):
            rows = self.neighbours(x, h).reshape(len(xs) * NODES, -1)
            r, z = torch.sigmoid(rows @ self.gates + self.bias).view(len(xs), NODES, -1).chunk(2, -1)
            h = z * h + (1 - z) * torch.tanh(self.neighbours(x, r * h) @ self.candidate)
        return self.out(h)


def frames(steps: int = 4) -> Tensor:
    return torch.randn(3, steps, NODES, 2, dtype=torch.float64)


@pytest.mark.parametrize(
    ("form", "learned"),
    [("matmul", False), ("einsum", False), ("degrees", False), ("flat", False), ("einsum", True), ("flat", True)],
)
def test_features_are_units_and_nodes_are_not(form: str, learned: bool) -> None:
    check_all_lose(GraphGRU(form, learned), {":l0": UNITS}, frames, longer=6)


class OwnWeights(nn.Module):
    """A convolution over nodes whose weights each node makes of its embedding and a pool that all share."""

    def __init__(self, read: int, made: int) -> None:
        super().__init__()
        self.pool = nn.Parameter(torch.randn(3, 2, read, made) / 4)
        self.bias = nn.Parameter(torch.randn(3, made))

    def forward(self, x: Tensor, nodes: Tensor) -> Tensor:
        near = torch.softmax(torch.relu(nodes @ nodes.T), 1)
        views = torch.einsum("knm,bmc->bnkc", torch.stack([torch.eye(len(nodes)).to(near), near]), x)
        weights = torch.einsum("nd,dkio->nkio", nodes, self.pool)
        return torch.einsum("bnki,nkio->bno", views, weights) + nodes @ self.bias


class AdaptiveGRU(nn.Module):
    def __init__(self, nodes: int = NODES) -> None:
        super().__init__()
        self.nodes, self.units = nodes, UNITS
        self.embeddings = nn.Parameter(torch.randn(nodes, 3))
        self.gates, self.candidate = OwnWeights(UNITS + 2, 2 * UNITS), OwnWeights(UNITS + 2, UNITS)
        self.out = nn.Conv2d(1, 3, (1, UNITS))

    def forward(self, xs: Tensor) -> Tensor:
        h = torch.zeros(len(xs), self.nodes, self.units).to(xs)
        for x in xs.unbind(1):
            gates = torch.sigmoid(self.gates(torch.cat([x, h], -1), self.embeddings))
            z, r = torch.split(gates, self.units, -1)
            new = torch.tanh(self.candidate(torch.cat([x, z * h], -1), self.embeddings))
            h = r * h + (1 - r) * new
        return self.out(h.unsqueeze(1))


def test_units_are_an_axis_of_weights_that_nodes_make() -> None:
    model = AdaptiveGRU()
    check_all_lose(model, {":l0": UNITS}, frames, longer=6)
    batches = [frames(3) for _ in range(3)]
    lost = {}
    for method in ("magnitude", "magnitude+reconstruct"):
        small = reprune.torch.prune(model, batches, ratio=0.5, method=method).model
        with torch.no_grad():
            lost[method] = float(sum((small(x) - model(x)).pow(2).sum() for x in batches))
    assert lost["magnitude+reconstruct"] < lost["magnitude"] / 1.5  # What the pools read is seen and folded in.
    assert small.out.kernel_size == (1, UNITS // 2)


class Mixed(nn.Module):
    """A weight over time behind a cell written by hand: the units are beside it, and stay units."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.h = nn.Linear(2, UNITS), nn.Linear(UNITS, UNITS, bias=False)
        self.time, self.out = nn.Linear(4, 6), nn.Linear(UNITS, 3)

    def forward(self, xs: Tensor) -> Tensor:
        h, states = xs.new_zeros(len(xs), self.h.in_features), []
        for x in xs[:, :, 0].unbind(1):
            h = torch.tanh(self.x(x) + self.h(h))
            states.append(h)
        return self.out(self.time(torch.stack(states, -1)[..., :4]).transpose(1, 2))


def test_a_weight_over_time_leaves_units_alone() -> None:
    check_all_lose(Mixed(), {":l0": UNITS}, frames, longer=6)


class AcrossNodes(nn.Module):
    """A GRU on a graph whose gates are cut from a vector of all nodes, so that each node's gates are of both kinds."""

    def __init__(self, nodes: int) -> None:
        super().__init__()
        self.units = UNITS
        self.register_buffer("adjacency", torch.rand(nodes, nodes))
        self.gates = nn.Parameter(torch.randn(UNITS + 2, 2 * UNITS) / 3)
        self.candidate = nn.Parameter(torch.randn(UNITS + 2, UNITS) / 3)
        self.out = nn.Linear(UNITS, 3)

    def convolve(self, x: Tensor, h: Tensor, weight: Tensor) -> Tensor:
        batch, nodes, _ = x.shape
        both = torch.cat([x, h.reshape(batch, nodes, self.units)], 2)
        mixed = self.adjacency @ both.permute(1, 2, 0).reshape(nodes, -1)
        rows = mixed.reshape(nodes, both.size(2), batch).permute(2, 0, 1).reshape(batch * nodes, -1)
        return (rows @ weight).reshape(batch, -1)

    def forward(self, xs: Tensor) -> Tensor:
        batch, _, nodes, _ = xs.shape
        h = torch.zeros(batch, nodes * self.units).to(xs)
        for x in xs.unbind(1):
            r, z = torch.sigmoid(self.convolve(x, h, self.gates)).chunk(2, 1)
            h = z * h + (1 - z) * torch.tanh(self.convolve(x, r * h, self.candidate))
        return self.out(h.reshape(batch, nodes, self.units))


@pytest.mark.parametrize("nodes", [4, 5])
def test_gates_cut_across_nodes_go_with_their_units(nodes: int) -> None:
    def several(steps: int = 4) -> Tensor:
        return torch.randn(3, steps, nodes, 2, dtype=torch.float64)

    check_all_lose(AcrossNodes(nodes), {":l0": UNITS}, several, longer=6)


class Diffusion(AcrossNodes):
    """Features of neighbours one, two and three steps away, side by side: Chebyshev polynomials of the matrix."""

    def __init__(self, steps: int) -> None:
        super().__init__(NODES)
        self.steps = steps
        self.gates = nn.Parameter(torch.randn((UNITS + 2) * (steps + 1), 2 * UNITS) / 5)
        self.candidate = nn.Parameter(torch.randn((UNITS + 2) * (steps + 1), UNITS) / 5)

    def convolve(self, x: Tensor, h: Tensor, weight: Tensor) -> Tensor:
        batch, nodes, _ = x.shape
        both = torch.cat([x, h.reshape(batch, nodes, -1)], 2)
        size = both.size(2)
        before = both.permute(1, 2, 0).reshape(nodes, size * batch)
        now = self.adjacency @ before
        held = [before, now]
        for _ in range(1, self.steps):
            now, before = 2 * self.adjacency @ now - before, now
            held.append(now)
        rows = torch.stack(held).reshape(self.steps + 1, nodes, size, batch).permute(3, 1, 2, 0)
        return (rows.reshape(batch * nodes, size * (self.steps + 1)) @ weight).reshape(batch, -1)

    def forward(self, xs: Tensor) -> Tensor:
        h = torch.zeros(len(xs), NODES * self.units).to(xs)
        for x in xs.unbind(1):
            gates = torch.sigmoid(self.convolve(x, h, self.gates)).reshape(-1, NODES, 2 * self.units)
            r, z = (gate.reshape(-1, NODES * self.units) for gate in torch.split(gates, self.units, -1))
            h = z * h + (1 - z) * torch.tanh(self.convolve(x, r * h, self.candidate))
        return self.out(h.view(-1, NODES, self.units))


@pytest.mark.parametrize("steps", [1, 2])
def test_features_of_far_neighbours_side_by_side(steps: int) -> None:
    check_all_lose(Diffusion(steps), {":l0": UNITS}, frames, longer=6)
