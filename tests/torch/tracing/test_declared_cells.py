"""Cells that users declare because their code cannot be followed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn

import reprune.torch
from reprune.core.errors import UnsupportedModelError
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
