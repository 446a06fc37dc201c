"""States of a model that is entered by other methods than `forward`, by parts of it, or by a `forward` that repacks."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reprune.torch
from reprune.core.plan import Plan
from tests.helpers.torch_oracle import assert_close, prepared, random_plans


class Agent(nn.Module):
    """Acts on an observation and a state; has no `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.core, self.gate = nn.LSTM(5, 8), nn.Linear(8, 8)
        self.actor, self.critic = nn.Linear(8, 3), nn.Linear(8, 1)

    def act(self, x: Tensor, memory: Any = None) -> tuple[Tensor, Any]:
        y, memory = self.core(x[None], memory)
        return self.actor(y[0]), memory

    def judge(self, x: Tensor, memory: Any) -> Tensor:
        return self.critic(self.core(x[None], memory)[0][0])


class Wide(Agent):
    """A weight reads the state before any recurrent layer sees it."""

    def act(self, x: Tensor, memory: Any = None) -> tuple[Tensor, Any]:
        h, c = memory
        y, memory = self.core(x[None], (h, c))
        return self.actor(y[0]) + self.critic(torch.tanh(self.gate(h[0]))), memory


@dataclass
class Answer:
    """An object of the user's own, whose tensors are not the first that comes back."""

    logits: Tensor
    chance: Any


class Packs(Agent):
    """What `forward` returns holds more tensors than what the caller makes of it."""

    def forward(self, x: Tensor, memory: Any) -> tuple[Answer, Any]:
        logits, memory = self.act(x, memory)
        return Answer(logits, {"p": logits.softmax(-1), "q": logits.exp()}), memory


def acts(model: Any, batch: Any) -> Any:
    return model.act(*batch)


def acts_and_judges(model: Any, batch: Any) -> Any:
    return (*model.act(*batch), model.judge(*batch))


def repacks(model: Any, batch: Any) -> Any:
    answer, memory = model(*batch)
    return answer.logits, memory


def by_parts(model: Any, batch: Any) -> Any:
    y, memory = model.core(batch[0][None], batch[1])
    return model.actor(y[0]), memory


def inputs(batch: int) -> Tensor:
    return torch.randn(batch, 5, dtype=torch.float64)


def zeros(batch: int, width: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(1, batch, width, dtype=torch.float64), torch.zeros(1, batch, width, dtype=torch.float64)


CASES: list[tuple[type[nn.Module], Callable[..., Any], set[str]]] = [
    (Agent, acts, {"act(memory)"}),
    (Agent, acts_and_judges, {"act(memory)", "judge(memory)"}),
    (Wide, acts, {"act(memory)"}),
    (Packs, repacks, {"memory"}),
    (Agent, by_parts, {"core.forward(hx)"}),
]


@pytest.mark.parametrize(("kind", "forward", "names"), CASES, ids=lambda value: getattr(value, "__name__", ""))
def test_states_are_carried_by_whatever_method(
    kind: type[nn.Module], forward: Callable[..., Any], names: set[str]
) -> None:
    torch.manual_seed(0)
    model = prepared(kind().double(), train=False)
    structure = reprune.torch.inspect(model, [(inputs(3), zeros(3, 8))], forward=forward).structure
    assert structure.prunable == ("core:l0",)
    assert {str(state.given.path[0]) for state in structure.states if state.given is not None} == names
    for plan in random_plans(structure, 2):
        small = reprune.torch.apply(model, Plan.from_json(plan.to_json()))
        masked = reprune.torch.mask(model, plan)
        kept = len(plan.kept["core:l0"])
        for start, pruned in [
            (zeros(4, 8), small),
            (zeros(4, kept), copy.deepcopy(small)),
            (zeros(4, 8), again(small)),
        ]:
            ours, theirs = start, zeros(4, 8)
            for _ in range(3):
                x = inputs(4)
                (y, ours, *_), (expected, theirs, *_) = forward(pruned, (x, ours)), forward(masked, (x, theirs))
                assert_close(y, expected, "answer")
            assert [state.shape[-1] for state in ours] == [kept, kept]
    assert not [name for name in vars(model) if name in ("act", "forward", "judge")]


def again(model: nn.Module) -> nn.Module:
    """The model, out of a file."""
    return pickle.loads(pickle.dumps(model))  # type: ignore[no-any-return]


def test_a_state_left_out_of_a_method_is_found() -> None:
    torch.manual_seed(0)
    model = prepared(Agent().double(), train=False)
    structure = reprune.torch.inspect(model, [(inputs(3),)], forward=acts).structure
    assert structure.prunable == ("core:l0",)
    assert [state.given.path for state in structure.states if state.given] == [("act(memory)", 0), ("act(memory)", 1)]


def test_what_a_caller_takes_out_of_a_part_stays() -> None:
    """Responses that the caller gets, and does not hand back, are no states."""
    model = prepared(Agent().double(), train=False)
    batch = torch.randn(2, 3, 5, dtype=torch.float64), zeros(3, 8)
    info = reprune.torch.inspect(model, [batch], forward=lambda m, b: m.core(*b)[0])
    assert "part of what the model returns" in info.pinned["core:l0"].reason


class Restarts(nn.Module):
    """Keeps its state; a method of its own makes the first one out of parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.h, self.c = nn.Parameter(torch.randn(1, 8)), nn.Parameter(torch.randn(1, 8))
        self.cell, self.out = nn.LSTMCell(5, 8), nn.Linear(8, 3)

    def restart(self, batch: int) -> None:
        self.state = self.h.clone().repeat(batch, 1), self.c.clone().repeat(batch, 1)

    def forward(self, x: Tensor) -> Tensor:
        self.state = self.cell(x, self.state)
        return self.out(self.state[0])


def test_a_kept_state_made_of_parameters_goes_with_them() -> None:
    def forward(model: Any, batch: Tensor) -> Tensor:
        model.restart(len(batch))
        return torch.stack([model(x) for x in batch.unbind(1)], 1)

    torch.manual_seed(0)
    model = Restarts().double()
    xs = torch.randn(3, 4, 5, dtype=torch.float64)
    structure = reprune.torch.inspect(model, [xs], forward=forward).structure
    assert structure.prunable == ("cell:l0",)
    for plan in random_plans(structure, 2):
        small = reprune.torch.apply(model, plan)
        assert small.h.shape == (1, len(plan.kept["cell:l0"]))
        assert_close(forward(small, xs), forward(reprune.torch.mask(model, plan), xs), "answers")
