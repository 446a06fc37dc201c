"""The group lasso's penalty, worked out slice by slice in NumPy, and where the search for λ leads."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from reprune.core.budget.budget import Budget
from reprune.core.layers import Structure
from reprune.core.training.group_lasso import DEAD, FADE
from reprune.torch import Pruner, trace
from reprune.torch.surgery.apply import named_tensors
from reprune.torch.training.group_lasso import GroupLasso, IssLengths

sys.path.append(str(Path(__file__).parents[3] / "examples"))
from recurrent_highway import RecurrentHighway


class Stack(nn.Module):
    """Two bidirectional layers, a normalisation with a gain per unit, and a convolution that reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, num_layers=2, bidirectional=True)
        self.norm = nn.BatchNorm1d(8)
        self.conv = nn.Conv1d(8, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(self.norm(self.lstm(x)[0].permute(1, 2, 0)))
        return out


def gated(model: Stack) -> dict[tuple[str, int], list[NDArray[np.float64]]]:
    """By layer and unit, the slices of every tensor, by hand: (mask of the weights that belong to the structure)."""
    found = {}
    for layer in range(2):
        for direction, suffix in enumerate(("", "_reverse")):
            for unit in range(4):
                rows = [gate * 4 + unit for gate in range(4)]
                masks = {name: np.zeros(tensor.shape, bool) for name, tensor in model.named_parameters()}
                own = f"l{layer}{suffix}"
                for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                    masks[f"lstm.{kind}_{own}"][rows] = True
                masks[f"lstm.weight_hh_{own}"][:, unit] = True
                place = direction * 4 + unit
                if layer == 0:
                    for other in ("", "_reverse"):
                        masks[f"lstm.weight_ih_l1{other}"][:, place] = True
                else:
                    masks["norm.weight"][place] = masks["norm.bias"][place] = True
                    masks["conv.weight"][:, place] = True
                found[f"lstm:{own}", unit] = masks
    return found  # type: ignore[return-value]


@pytest.fixture
def stack() -> tuple[Stack, Structure]:
    torch.manual_seed(0)
    model = Stack().double()
    return model, trace(model, torch.randn(6, 2, 3, dtype=torch.float64))


def test_length_of_every_structure(stack: tuple[Stack, Structure]) -> None:
    model, structure = stack
    lengths = IssLengths(structure)
    found = lengths.index.by_layer(lengths(named_tensors(model)).detach().numpy())
    sizes = lengths.index.by_layer(lengths.weights.numpy())
    arrays = {name: tensor.detach().numpy() for name, tensor in model.named_parameters()}
    for (layer, unit), masks in gated(model).items():
        expected = np.sqrt(sum((arrays[name][mask] ** 2).sum() for name, mask in masks.items()))  # type: ignore[attr-defined]
        assert found[layer][unit] == pytest.approx(expected, rel=1e-12)
        assert sizes[layer][unit] == sum(mask.sum() for mask in masks.values())  # type: ignore[attr-defined]


@pytest.mark.parametrize(("missing", "share"), [(0.5, 1.0), (FADE / 4, 1 / 4), (-FADE, 0.0)])
def test_gradient_is_the_direction_of_every_structure(
    stack: tuple[Stack, Structure], missing: float, share: float
) -> None:
    """∂/∂w λ Σ_u ‖ISS_u‖ = λ w Σ 1/‖ISS_u‖ over the units u whose structure holds w; less near the target."""
    model, structure = stack
    lasso = GroupLasso(model, structure, "iss-group-lasso", Budget(0.5), 0, 0)
    lasso.pull.strength, lasso.pull.missing = 0.3, missing
    lasso.loss().backward()
    arrays = {name: tensor.detach().numpy() for name, tensor in model.named_parameters()}
    expected = {name: np.zeros_like(array) for name, array in arrays.items()}
    for masks in gated(model).values():
        length = np.sqrt(sum((arrays[name][mask] ** 2).sum() for name, mask in masks.items()))  # type: ignore[attr-defined]
        for name, mask in masks.items():  # type: ignore[attr-defined]
            expected[name] += 0.3 * share * mask * arrays[name] / length
    for name, parameter in model.named_parameters():
        found = np.zeros(parameter.shape) if parameter.grad is None else parameter.grad.numpy()
        np.testing.assert_allclose(found, expected[name], rtol=1e-10, atol=1e-14, err_msg=name)


def test_a_structure_of_zeros_has_no_gradient(stack: tuple[Stack, Structure]) -> None:
    model, structure = stack
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    lasso = GroupLasso(model, structure, "iss-group-lasso", Budget(0.5), 0, 0)
    lasso.loss().backward()
    assert all(torch.all(parameter.grad == 0) for parameter in model.parameters() if parameter.grad is not None)


def test_coupled_cells_are_one_structure() -> None:
    """A highway cell's state is read by its layers and the decoder, and made by the halves of its gates."""
    model = RecurrentHighway(words=7, embedding=3, units=4, depth=2).double()
    structure = trace(RecurrentHighway(words=7, embedding=3, units=4, depth=2), torch.zeros(5, 2, dtype=torch.int64))
    lengths = IssLengths(structure)
    found = lengths(named_tensors(model))
    arrays = {name: tensor.detach().numpy() for name, tensor in model.named_parameters()}
    for unit in range(4):
        total = (arrays["read.weight"][[unit, 4 + unit]] ** 2).sum() + (arrays["decoder.weight"][:, unit] ** 2).sum()
        for layer in ("layers.0", "layers.1"):
            mask = np.zeros((8, 4), bool)
            mask[[unit, 4 + unit]] = mask[:, unit] = True
            total += (arrays[f"{layer}.weight"][mask] ** 2).sum()
            total += (arrays[f"{layer}.bias"][[unit, 4 + unit]] ** 2).sum()
        assert float(found[unit].detach()) == pytest.approx(np.sqrt(total), rel=1e-12)


class Halves(nn.Module):
    """Two layers, one of which is given nothing to work with."""

    def __init__(self) -> None:
        super().__init__()
        self.useful, self.useless = nn.GRU(2, 4), nn.GRU(2, 4)
        self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.cat([self.useful(x)[0], self.useless(0 * x)[0]], -1))
        return out


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_lambda_is_found_for_the_ratio(scale: float) -> None:
    """Whether losses are means or sums; and once it is found, no more units follow."""
    torch.manual_seed(0)
    model = Halves()
    pruner = Pruner(model, torch.randn(4, 3, 2), ratio=0.5, method="iss-group-lasso", schedule="after")
    lasso = pruner._work.technique  # type: ignore[union-attr]
    assert isinstance(lasso, GroupLasso)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(1000):
        x = torch.randn(6, 16, 2, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (scale * (model(x)[..., 0] - x.cumsum(0).tanh().sum(-1)).square().mean() + pruner.loss()).backward()
        optimizer.step()
        pruner.step()
    assert lasso.gone() == pytest.approx(0.5, abs=1 / 8)
    lengths = lasso._lengths(named_tensors(model)).detach()
    # Every layer keeps a unit, dead or not.
    assert int((lengths < DEAD * lasso._start.mean()).sum()) in (round(8 * lasso.gone()), round(8 * lasso.gone()) + 1)
    small = pruner.finish()
    assert pruner.plan is not None
    assert len(pruner.plan.kept["useful:l0"]) > len(pruner.plan.kept["useless:l0"])
    x = torch.randn(6, 64, 2)
    torch.testing.assert_close(small(x), model(x), atol=0.05, rtol=0.05)
