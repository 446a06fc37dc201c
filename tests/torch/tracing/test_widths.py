"""`scope="all"`: channels, features, columns and heads, in models of every kind, and that pruning them is exact."""

from __future__ import annotations

import re
from functools import cache

import pytest
import torch
from torch import nn

import reprune.torch
from reprune.core.errors import RepruneError, UnsupportedModelError
from reprune.core.layers import Structure
from reprune.core.plan import Plan
from tests.helpers.torch_oracle import check_oracle, converted, prepared, random_plans
from tests.helpers.torch_zoo import CASES
from tests.helpers.torch_zoo.case import Case
from tests.helpers.width_zoo import WIDTH_CASES, WidthCase

RECURRENT = [case for case in CASES.values() if not case.approximate]


@cache
def inspected(case: WidthCase | Case) -> tuple[nn.Module, Structure]:
    """A model in double precision and every width that was found in it."""
    torch.manual_seed(0)
    model = prepared(case.build().double(), train=False)
    example = converted(case.batch(3, 6), torch.float64)
    return model, reprune.torch.inspect(model, [example], scope="all").structure


@pytest.mark.parametrize("case", WIDTH_CASES.values(), ids=str)
def test_finds_every_width_by_name(case: WidthCase) -> None:
    _, structure = inspected(case)
    assert {name: layer.units for name, layer in structure.layers.items() if layer.pin is None} == case.free
    assert {name for name, layer in structure.layers.items() if layer.pin is not None} == set(case.pins)
    for name, reason in case.pins.items():
        pin = structure.layers[name].pin
        assert re.search(reason, pin.reason), pin
        assert "/width_zoo/" in pin.site.location, pin
    assert any(layer.approximate for layer in structure.layers.values()) == case.approximate
    for names in case.coupled:
        assert any(set(names) <= set(group) for group in structure.index_coupled), structure.index_coupled


@pytest.mark.parametrize("case", [case for case in WIDTH_CASES.values() if not case.approximate], ids=str)
def test_pruned_equals_masked_in_double(case: WidthCase) -> None:
    model, structure = inspected(case)
    for seed, plan in enumerate(random_plans(structure, 3)):
        plan = Plan.from_json(plan.to_json())
        torch.manual_seed(seed + 10)
        sizes = [(2, 6), (4, 3 if case.steps else 6), (3, 9 if case.steps else 6)][seed]
        check_oracle(model, plan, converted(case.batch(*sizes), torch.float64))


@pytest.mark.parametrize("case", WIDTH_CASES.values(), ids=str)
def test_recurrent_scope_leaves_widths_alone(case: WidthCase) -> None:
    torch.manual_seed(0)
    model, example = case.build(), case.batch(2, 6)
    recurrent = {name for name in case.free if re.search(r":l\d", name)}
    if recurrent:
        assert set(reprune.torch.inspect(model, [example]).structure.layers) == recurrent
    else:
        with pytest.raises(UnsupportedModelError, match="scope='all'"):
            reprune.torch.inspect(model, [example])


@pytest.mark.parametrize("case", RECURRENT[::3], ids=str)
def test_recurrent_layers_are_found_as_before_among_all_widths(case: Case) -> None:
    model, structure = inspected(case)
    alone = reprune.torch.inspect(model, [converted(case.batch(3, 6), torch.float64)]).structure
    for name, layer in alone.layers.items():
        assert (structure.layers[name].units, structure.layers[name].pin is None) == (layer.units, layer.pin is None)
    for seed, plan in enumerate(random_plans(structure, 1)):
        torch.manual_seed(seed)
        check_oracle(model, plan, converted(case.batch(2, 6), torch.float64), case.states)


def test_says_which_scopes_there_are() -> None:
    with pytest.raises(RepruneError, match="scope='every' is not one of 'recurrent', 'all'"):
        reprune.torch.plan(nn.LSTM(2, 4), [torch.randn(3, 1, 2)], scope="every")  # type: ignore[arg-type]


class Stacked(nn.Module):
    """Two layers, one above the other in a tensor that is viewed in the shape it has."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 6), nn.Linear(5, 6)
        self.c, self.d = nn.Linear(6, 2), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.stack([self.a(x), self.b(x)], 1).view(len(x), -1, self.a.out_features)
        return self.c(h[:, 0]) + self.d(h[:, 1])


def test_layers_one_above_the_other_lose_units_of_their_own() -> None:
    structure = reprune.torch.inspect(Stacked(), [torch.randn(3, 5)], scope="all").structure
    assert structure.prunable == ("a:features", "b:features")
    assert {("a:features",), ("b:features",)} < set(structure.index_coupled)


class Pairs(nn.Module):
    """Linear attention, whose keys and values are heads that plain numbers take apart."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(5, 12) for _ in range(3))
        self.out = nn.Linear(12, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (part(x).view(*x.shape[:2], 3, 4).transpose(1, 2) for part in (self.q, self.k, self.v))
        return self.out((q @ (k.transpose(-1, -2) @ v)).transpose(1, 2).reshape(*x.shape[:2], -1)).sum(1)


def test_products_of_pairs_couple_heads() -> None:
    structure = reprune.torch.inspect(Pairs(), [torch.randn(3, 7, 5)], scope="all").structure
    assert ("k:heads", "v:heads") in structure.index_coupled
