"""Shrinking in place: the same objects, the same function, and an optimiser that goes on where it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from reprune.core.errors import RecipeError
from reprune.core.plan import Plan
from reprune.core.training.shrink import shrunk
from reprune.torch import Pruner, RaggedLSTM, apply, mask, trace
from reprune.torch.training.shrink import shrink


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 6, num_layers=2, bidirectional=True)
        self.norm = nn.BatchNorm1d(12)
        self.head = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.norm(self.lstm(x)[0][-1]))
        return out


KEPT = {
    "lstm:l0": [0, 1, 3, 5],
    "lstm:l0_reverse": [1, 2],
    "lstm:l1": [0, 2, 4],
    "lstm:l1_reverse": [3, 4, 5],
}
MAKERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-2, amsgrad=True),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=1e-2, momentum=0.9),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
}


def stepped(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int = 0) -> None:
    for step in range(steps):
        x = torch.randn(4, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + step))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def positions(shape: tuple[int, ...], plan: Plan, name: str) -> Any:
    """Index of what stays of a tensor, from its slots, in NumPy."""
    index = [np.arange(size) for size in shape]
    for slot in plan.structure.slots:
        if slot.tensor == name:
            index[slot.axis] = np.setdiff1d(index[slot.axis], slot.positions(plan.removed()))
    return np.ix_(*index)


@pytest.mark.parametrize("kind", list(MAKERS))
def test_moments_are_cut_with_the_weights(kind: str) -> None:
    torch.manual_seed(0)
    model = Net().double()
    x = torch.randn(4, 5, 3, dtype=torch.float64)
    plan = Plan(trace(model, x), KEPT)
    groups = [{"params": [model.head.weight], "weight_decay": 0.01}, {"params": [*model.lstm.parameters()]}]
    groups.append({"params": [model.head.bias, *model.norm.parameters()]})
    optimizer = MAKERS[kind](groups)
    stepped(model, optimizer, 3)
    before = {
        name: (parameter.detach().clone(), copy.deepcopy(optimizer.state[parameter]))
        for name, parameter in model.named_parameters()
    }
    shrink(model, plan, [optimizer])
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert {id(parameter) for parameter in held} == {id(parameter) for parameter in model.parameters()}
    assert set(optimizer.state) == set(held)
    assert optimizer.param_groups[0]["params"][0] is model.head.weight
    for name, parameter in model.named_parameters():
        value, state = before[name]
        stay = positions(tuple(value.shape), plan, name)
        np.testing.assert_array_equal(parameter.detach().numpy(), value.numpy()[stay], err_msg=name)
        assert set(optimizer.state[parameter]) == set(state)
        for key, entry in state.items():
            found = optimizer.state[parameter][key]
            if isinstance(entry, Tensor) and entry.ndim:
                np.testing.assert_array_equal(found.numpy(), entry.numpy()[stay], err_msg=f"{name} {key}")
            else:
                assert found == entry
    stepped(model, optimizer, 2)


def test_the_model_stays_the_same_object_and_computes_what_the_masked_one_does() -> None:
    torch.manual_seed(0)
    model = Net().double()
    x = torch.randn(4, 5, 3, dtype=torch.float64)
    plan = Plan(trace(model, x), KEPT)
    lstm, head, bias, calls = model.lstm, model.head, model.head.bias, []
    handle = model.lstm.register_forward_hook(lambda *_: calls.append(1))
    expected, small = mask(model.eval(), plan)(x), apply(model, plan)
    shrink(model, plan, [])
    assert (model.lstm, model.head, model.head.bias) == (lstm, head, bias)
    assert isinstance(model.lstm, RaggedLSTM)
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-12)
    assert [str(module) for module in model.modules()] == [str(module) for module in small.modules()]
    calls.clear()
    handle.remove()
    model(x)
    assert not calls
    # And once more, from sizes that differ already.
    again = Plan(shrunk(plan.structure, KEPT), {name: units[1:] for name, units in _whole(plan).items()})
    expected = mask(model, again)(x)
    shrink(model, again, [])
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-12)
    assert model.lstm.hidden_sizes == ((3, 1), (2, 2))


def _whole(plan: Plan) -> dict[str, list[int]]:
    return {name: list(range(len(units))) for name, units in plan.kept.items()}


class Language(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.rnn, self.head = getattr(nn, kind)(3, 6, num_layers=2), nn.Linear(6, 2)

    def forward(self, x: Tensor, state: Any = None) -> Any:
        out, state = self.rnn(x, state)
        return self.head(out), state


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_carried_states_of_the_width_before_are_taken(kind: str) -> None:
    """Truncated back-propagation carries states over a stage."""

    torch.manual_seed(0)
    model = Language(kind)
    x = torch.randn(5, 2, 3)
    structure = trace(model, x)
    kept = {"rnn:l0": [0, 2, 3, 5], "rnn:l1": [1, 2, 4, 5]}
    again = {"rnn:l0": [0, 1], "rnn:l1": [0, 2]}
    full = model(x)[1]
    shrink(model, Plan(structure, kept), [])
    half = model(x, full)[1]
    model(x, half)
    shrink(model, Plan(shrunk(structure, kept), again), [])
    for state in (full, half, model(x)[1]):
        out, _ = model(x, state)
        assert out.shape == (5, 2, 2)


class Step(nn.Module):
    """One step of a cell whose states lie side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(3, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        h, c = self.cell(x, state.chunk(2, 1))
        return self.head(h), torch.cat([h, c], 1)


def test_states_side_by_side_are_taken_in_the_width_before() -> None:
    torch.manual_seed(0)
    model, x, state = Step(), torch.randn(4, 3), torch.randn(4, 12)
    structure = trace(model, (x, state))
    kept, again = {"cell:l0": [0, 2, 3, 5]}, {"cell:l0": [0, 3]}
    expected = mask(model, Plan(structure, {"cell:l0": [0, 5]}))
    full, half = copy.deepcopy(model), mask(model, Plan(structure, kept))(x, state)[1]
    shrink(model, Plan(structure, kept), [])
    carried = model(x, state)[1]
    torch.testing.assert_close(carried, half[:, [0, 2, 3, 5, 6, 8, 9, 11]])
    shrink(model, Plan(shrunk(structure, kept), again), [])
    torch.testing.assert_close(model(x, state)[0], expected(x, state)[0])
    assert model(x, carried)[1].shape == (4, 4)
    assert full(x, state)[1].shape == (4, 12)


def test_carried_states_of_the_width_before_are_taken_after_a_break() -> None:
    def start() -> tuple[Language, Pruner]:
        torch.manual_seed(0)
        model = Language("LSTM")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return model, Pruner(
            model, x, ratio=0.7, method="magnitude", schedule="gradual:1", total_steps=8, optimizer=optimizer
        )

    x = torch.randn(5, 2, 3)
    model, pruner = start()
    pruner.step()
    before = sum(pruner.plan.counts().values())  # type: ignore[union-attr]
    state = model(x)[1]
    pruner.step()
    assert sum(pruner.plan.counts().values()) < before  # type: ignore[union-attr]
    expected = model(x, state)[0]
    again, other = start()
    other.load_state_dict(pruner.state_dict())
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again(x, state)[0], expected, rtol=0, atol=0)


def test_sizes_fall_along_the_cubic_and_stay() -> None:
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.Adam(model.parameters())
    pruner = Pruner(model, ratio=0.75, method="magnitude", schedule="gradual:5", optimizer=optimizer, total_steps=40)
    sizes = []
    for step in range(40):
        x = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        pruner.step()
        sizes.append(sum(p.shape[1] for name, p in model.lstm.named_parameters() if "weight_hh" in name))
    for step in range(1, 41):
        progress = step // 5 * 5 / 40
        share = 1 - (1 - min(progress / 0.5, 1)) ** 3
        assert sizes[step - 1] == pytest.approx(24 * (1 - 0.75 * share), abs=2)
    small = pruner.finish()
    assert sum(p.shape[1] for name, p in small.lstm.named_parameters() if "weight_hh" in name) == 6  # type: ignore[union-attr]


ELEMENTWISE: dict[str, Callable[..., torch.optim.Optimizer]] = {
    **MAKERS,
    "fused": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, amsgrad=True, fused=True),
    "foreach": lambda parameters: torch.optim.NAdam(parameters, lr=1e-2, foreach=True),
    "nesterov": lambda parameters: torch.optim.SGD(parameters, lr=1e-2, momentum=0.9, nesterov=True, weight_decay=0.01),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, lr=1e-3, momentum=0.9, centered=True),
    "adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=1e-2),
    "rprop": lambda parameters: torch.optim.Rprop(parameters, lr=1e-3),
}


@pytest.mark.parametrize("kind", list(ELEMENTWISE))
def test_it_trains_on_as_the_masked_model_of_full_size(kind: str) -> None:
    """Weights and moments of removed units are held at zero there; all others take the same values, step by step."""
    torch.manual_seed(0)
    small = Net().double()
    optimizer = ELEMENTWISE[kind](small.parameters())
    stepped(small, optimizer, 3)
    full, other = copy.deepcopy((small, optimizer))
    plan = Plan(trace(small, torch.randn(4, 5, 3, dtype=torch.float64)), KEPT)
    stays = {}
    for name, parameter in full.named_parameters():
        stays[name] = torch.zeros(parameter.shape, dtype=torch.float64)
        stays[name][positions(tuple(parameter.shape), plan, name)] = 1
        parameter.register_hook(lambda gradient, stay=stays[name]: gradient * stay)
        for key, value in other.state[parameter].items():
            if isinstance(value, Tensor) and value.ndim:
                other.state[parameter][key] = value * stays[name]

    def hold() -> None:
        with torch.no_grad():
            for name, parameter in full.named_parameters():
                parameter.mul_(stays[name])

    shrink(small, plan, [optimizer])
    hold()
    for step in range(5):
        stepped(small, optimizer, 1, seed=100 + step)
        stepped(full, other, 1, seed=100 + step)
        hold()
    for name, parameter in full.named_parameters():
        expected = parameter.detach().numpy()[positions(tuple(parameter.shape), plan, name)]
        np.testing.assert_allclose(
            small.get_parameter(name).detach().numpy(), expected, rtol=1e-9, atol=1e-12, err_msg=name
        )


def test_sums_over_an_axis_are_cut_along_the_other() -> None:
    """Adafactor keeps a sum of each row and of each column."""
    torch.manual_seed(0)
    model = Net().double()
    optimizer = torch.optim.Adafactor(model.parameters(), lr=1e-2)
    stepped(model, optimizer, 3)
    plan = Plan(trace(model, torch.randn(4, 5, 3, dtype=torch.float64)), KEPT)
    before = copy.deepcopy(optimizer.state[model.lstm.weight_hh_l0])
    shrink(model, plan, [optimizer])
    after = optimizer.state[model.lstm.weight_hh_l0]
    rows = [gate * 6 + unit for gate in range(4) for unit in KEPT["lstm:l0"]]
    assert torch.equal(after["row_var"], before["row_var"][rows])
    assert torch.equal(after["col_var"], before["col_var"][:, KEPT["lstm:l0"]])
    stepped(model, optimizer, 2)


def test_finishing_right_after_a_stage() -> None:
    """Early stopping: the last units go by what they did before the stage, as the smaller model has not run yet."""
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    pruner = Pruner(model, method="reconstruct", schedule="gradual:2", optimizer=optimizer, total_steps=40)
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.randn(5, 64, 3)).square().mean().backward()
        optimizer.step()
        pruner.step()
    assert pruner.plan is not None
    assert 12 < sum(pruner.plan.counts().values()) < 24
    pruner.finish()
    assert sum(pruner.plan.counts().values()) == 12


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda model: torch.optim.SGD(Net().parameters(), lr=0.1), r"'head.weight' becomes smaller"),
        (lambda model: torch.optim.LBFGS(model.parameters()), r"LBFGS keeps"),
    ],
)
def test_an_optimizer_that_cannot_follow_is_refused_at_the_first_step(
    make: Callable[[nn.Module], torch.optim.Optimizer], message: str
) -> None:
    model = Net()
    optimizer = make(model)
    pruner = Pruner(model, schedule="gradual:2", optimizer=optimizer, total_steps=40)

    def closure() -> float:
        optimizer.zero_grad()
        loss = model(torch.randn(4, 5, 3)).square().mean()
        loss.backward()
        return float(loss.detach())

    optimizer.step(closure)
    with pytest.raises(RecipeError, match=message):
        pruner.step()


def test_an_optimizer_of_another_model_is_refused() -> None:
    model = Net()
    plan = Plan(trace(model, torch.randn(4, 5, 3)), KEPT)
    with pytest.raises(RecipeError, match=r"becomes smaller"):
        shrink(model, plan, [torch.optim.SGD(Net().parameters(), lr=0.1)])
    assert model.lstm.weight_ih_l0.shape == (24, 3)


@pytest.mark.parametrize("kind", [list, tuple, lambda layers: dict(enumerate(layers))])
def test_modules_in_plain_containers_are_those_that_stay(kind: Any) -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.LSTM(3, 6), nn.LSTM(6, 5), nn.Linear(5, 2)
            self.stack = [kind([self.first, self.second])]

        def forward(self, x: Tensor) -> Tensor:
            for index in range(2):
                x, _ = self.stack[0][index](x)
            out: Tensor = self.head(x[-1])
            return out

    torch.manual_seed(0)
    model = Listed()
    optimizer = torch.optim.Adam(model.parameters())
    pruner = Pruner(model, ratio=0.5, method="reconstruct", schedule="gradual:2", optimizer=optimizer, total_steps=8)
    for step in range(8):
        optimizer.zero_grad()
        model(torch.randn(4, 7, 3, generator=torch.Generator().manual_seed(step))).square().mean().backward()
        optimizer.step()
        pruner.step()
    small = pruner.finish()
    assert small.stack[0][0] is small.first
    assert small.stack[0][1] is small.second
    assert small.first.hidden_size + small.second.hidden_size in (5, 6)


def test_plain_attributes_stay_the_same_objects() -> None:
    """A model that is its own trainer's module, say, goes on knowing its trainer and its layers by name."""

    class Known(Net):
        def __init__(self) -> None:
            super().__init__()
            self.trainer: Any = {"logged": []}
            self.metrics, self.note = [1.0], object()
            self.by_name = {"head": self.head}

        def __getstate__(self) -> dict[str, Any]:
            return {**self.__dict__, "trainer": None}

    model = Known().double()
    optimizer = MAKERS["adam"](model.parameters())
    stepped(model, optimizer, 2)
    held = {name: value for name, value in vars(model).items() if name in ("trainer", "metrics", "note", "by_name")}
    modules = dict(model.named_modules())
    plan = Plan(trace(model, torch.randn(5, 4, 3, dtype=torch.float64)), KEPT)
    expected = apply(model, plan).state_dict()
    shrink(model, plan, [optimizer])
    assert all(getattr(model, name) is value for name, value in held.items())
    assert all(module is modules[path] for path, module in model.named_modules())
    assert model.by_name["head"] is model.head
    assert isinstance(model.lstm, RaggedLSTM)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name])
    stepped(model, optimizer, 2)
