"""States of the old width: which entries of them are left, where they come in, and what is no such state."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from reprune.core.layers import CarriedState, Layer, Port, Slot, Span, Structure
from reprune.core.plan import Plan
from reprune.torch.ragged.states import StateSelector
from reprune.torch.surgery.states import InputSelector, Selection, accept_states


def test_states_of_the_old_width_are_cut_and_others_pass() -> None:
    stacked = Selection((), 2, 4, [[0, 2], [1, 3]], 0)
    assert stacked(torch.arange(8).view(2, 1, 4)).tolist() == [[[0, 2]], [[5, 7]]]
    for other in (torch.zeros(3, 1, 4), torch.zeros(2, 1, 3), torch.zeros(2, 4)):
        assert stacked(other) is other
    assert Selection((), 0, 4, [[1, 2]], None)(torch.arange(4)).tolist() == [1, 2]
    behind = Selection((), 0, 4, [[0, 2], [1, 3]], 1)
    assert behind(torch.arange(8).view(4, 2)).tolist() == [[0, 3], [4, 7]]
    assert behind(other := torch.zeros(4)) is other
    assert [Selection((), 0, 2, stay, 1).cuts for stay in ([[0, 1]], [[0, 1], [0]], [[0], [0, 1]])] == [
        False,
        True,
        True,
    ]


class Carrying(nn.Module):
    """Takes states by two methods, keeps others, and has a part that takes one."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.part = nn.Parameter(torch.ones(4, 2)), nn.RNNCell(2, 4)
        self.kept, self.flat = {"h": [torch.arange(4.0), torch.arange(4.0)]}, torch.arange(4.0)

    def forward(self, x: torch.Tensor, states: Any = None) -> Any:
        return states

    def act(self, h: torch.Tensor, *, more: Any = None) -> Any:
        """Acts."""
        return h, more


def plan(kept: list[int]) -> Plan:
    spans = (Span(0, "a", 0, 4),)

    def port(*path: str | int) -> Port:
        return Port(path, 0, 4, (spans,))

    structure = Structure(
        {"a": Layer("a", "custom", 4)},
        (Slot("w", 0, 4, "own", spans),),
        {"w": (4, 2)},
        (("a",),),
        states=tuple(
            CarriedState(given, None)
            for given in (port("states", 1), port("act(h)"), port("act(more)", "c"), port("part.forward(hx)"), None)
        ),
        kept_states=(port("", "kept", "h", 1), port("", "flat"), port("", "gone")),
    )
    return Plan(structure, {"a": kept})


def test_states_come_in_by_any_method_of_any_part() -> None:
    model, four = Carrying(), torch.arange(4.0)
    model.act = act = lambda h, more=None: ("own", Carrying.act(model, h, more=more))  # type: ignore[method-assign]
    accept_states(model, plan([1, 3]))
    assert [part.tolist() for part in model.kept["h"]] == [[0, 1, 2, 3], [1, 3]]
    assert model.flat.tolist() == [1, 3]
    assert not hasattr(model, "gone")
    for call in ((four, (four, four)), {"x": four, "states": (four, four)}):
        found = model(*call) if isinstance(call, tuple) else model(**call)
        assert [part.tolist() for part in found] == [[0, 1, 2, 3], [1, 3]]
    two = torch.ones(2)
    assert model(four, (two, two))[1] is two
    assert model.act.__wrapped__ is act
    for model_ in (model, copy.deepcopy(model)):
        own, (h, more) = model_.act(four, more={"c": four, "d": four})
        assert own == "own"
        assert [h.tolist(), more["c"].tolist(), more["d"].tolist()] == [[1, 3], [1, 3], [0, 1, 2, 3]]
    (hook,) = model.part._forward_pre_hooks.values()
    assert repr(hook) == "InputSelector([('part.forward(hx)',)])"
    _, (cut,) = [*hook(model.part, (two, four), {})[:1], hook(model.part, (two, four), {})[0][1:]]
    assert cut.tolist() == [1, 3]

    class Plain(Carrying):
        pass

    model = Plain()
    accept_states(model, plan([1, 3]))
    assert model.act.__doc__ is not None
    assert model.act.__wrapped__ == Carrying.act.__get__(model)
    assert model.act(four)[0].tolist() == [1, 3]


def test_where_nothing_goes_nothing_is_put_before_a_method() -> None:
    model = Carrying()
    accept_states(model, plan([0, 1, 2, 3]))
    assert "act" not in vars(model)
    assert not model._forward_pre_hooks
    assert not model.part._forward_pre_hooks
    assert model.flat.tolist() == [0, 1, 2, 3]


KINDS = {
    "rnn:l0": 3, "rnn:l0_reverse": 4, "rnn:l1:0-1": 2, "rnn:l1:2-4": 3, "rnn:l1_reverse": 5, "rnn:l10": 3,
    "other:l0": 4, "wide:l0": 4, "wide:l0:projection": 2,
}  # fmt: skip


def test_modules_with_states_of_a_written_out_size_go_on_accepting_it() -> None:
    """Layer by layer, forward before reverse; the parts of a layer side by side; a projection is h, its cell is c."""
    layers = {
        name: Layer(
            name, "lstm", units, part=("rnn:l1", int(name[7])) if name.count(":") == 2 and "-" in name else None
        )
        for name, units in reversed(KINDS.items())
    }
    kept = {name: list(range(units)) for name, units in KINDS.items()}
    kept |= {"rnn:l0": [0, 2], "rnn:l1:2-4": [1], "rnn:l10": [1], "wide:l0": [0, 3], "wide:l0:projection": [1]}
    structure = Structure(layers, (), {}, tuple((name,) for name in layers), outside_states=tuple(layers))
    model = nn.ModuleDict({name: nn.Identity() for name in ("rnn", "other", "wide")})
    accept_states(model, Plan(structure, kept))
    found = {name: list(module._forward_pre_hooks.values()) for name, module in model.items()}
    assert found["other"] == []  # It lost nothing.
    expected = {
        "rnn": StateSelector([3, 4, 5, 5, 3], [[0, 2], [0, 1, 2, 3], [0, 1, 3], [0, 1, 2, 3, 4], [1]]),
        "wide": StateSelector([2], [[1]], cell_full_sizes=[4], cell_kept=[[0, 3]]),
    }
    for name, selector in expected.items():
        assert [repr(hook) for hook in found[name]] == [repr(selector)]
        assert found[name][0].hidden is found[name][0].cell or name == "wide"


@pytest.mark.parametrize("kept", [[0, 1], [0]])
def test_only_what_is_cut_is_selected(kept: list[int]) -> None:
    selector = InputSelector(None, Carrying.act, [Selection(("h",), 0, 2, [kept], None)])  # type: ignore[arg-type]
    assert len(selector.selections) == (kept == [0])
