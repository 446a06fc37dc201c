"""`Pruner` in a loop of one's own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reprune.core.errors import BudgetError, PlanError, RecipeError, RepruneError, UnsupportedModelError
from reprune.torch import apply, mask, prune
from reprune.torch.training.pruner import Pruner, silence


class Net(nn.Module):
    def __init__(self, units: int = 8) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, units, num_layers=2, batch_first=True)
        self.head = nn.Linear(units, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.lstm(x)[0][:, -1])
        return out


def start(every: int = 3, seed: int = 0) -> tuple[Net, torch.optim.Optimizer, Pruner]:
    torch.manual_seed(seed)
    model = Net()
    pruner = Pruner(model, torch.randn(2, 5, 3), ratio=0.5, schedule=f"soft:{every}")
    return model, torch.optim.Adam(model.parameters(), lr=1e-2), pruner


def train(model: Net, optimizer: torch.optim.Optimizer, pruner: Pruner, first: int, last: int) -> None:
    for step in range(first, last):
        x = torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(step))
        loss = (model(x) - x[:, -1, :2]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        pruner.step()


def test_ends_in_a_smaller_model_that_equals_the_masked_one() -> None:
    model, optimizer, pruner = start()
    train(model, optimizer, pruner, 0, 8)
    small = pruner.finish()
    assert pruner.plan is not None
    assert sum(pruner.plan.counts().values()) == 8
    x = torch.randn(3, 7, 3)
    torch.testing.assert_close(small.eval()(x), mask(model, pruner.plan).eval()(x))


def test_silenced_units_respond_with_zero_and_grow_back() -> None:
    model, optimizer, pruner = start(every=3)
    train(model, optimizer, pruner, 0, 3)
    assert pruner.plan is not None
    gone = pruner.plan.removed()["lstm:l1"]
    assert gone
    assert (model.lstm(torch.randn(2, 5, 3))[0][..., gone] == 0).all()
    torch.testing.assert_close(model(torch.ones(1, 4, 3)), apply(model, pruner.plan)(torch.ones(1, 4, 3)))
    train(model, optimizer, pruner, 3, 5)
    assert (model.lstm(torch.randn(2, 5, 3))[0][..., gone] != 0).all()


def test_plain_gradient_descent_grows_units_back() -> None:
    """No momentum is needed: what reads a silenced unit stays, so its gradient is not zero."""
    model, _, pruner = start(every=1)
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), pruner, 0, 1)
    assert pruner.plan is not None
    model.zero_grad()
    model(torch.randn(2, 5, 3)).square().sum().backward()
    rows = model.lstm.weight_ih_l1.grad.reshape(4, 8, -1)[:, pruner.plan.removed()["lstm:l1"]]  # type: ignore[union-attr]
    assert rows.abs().sum() > 0


def test_statistics_are_of_training_since_the_last_selection() -> None:
    model, optimizer, pruner = start(every=3)
    train(model, optimizer, pruner, 0, 4)
    model.eval()
    with torch.no_grad():
        model(torch.randn(50, 6, 3))
    seen = pruner.state_dict()["technique"]["window"]["pending"]
    assert {name: found.shape for name, found in seen.items()} == {"lstm:l0": (4 * 6, 8), "lstm:l1": (4 * 6, 8)}


def test_goes_on_from_its_state() -> None:
    model, optimizer, pruner = start()
    train(model, optimizer, pruner, 0, 10)
    expected = pruner.finish().state_dict()

    model, optimizer, pruner = start()
    train(model, optimizer, pruner, 0, 5)
    saved = (model.state_dict(), optimizer.state_dict(), pruner.state_dict())
    other, optimizer2, pruner2 = start(seed=1)
    other.load_state_dict(saved[0])
    optimizer2.load_state_dict(saved[1])
    pruner2.load_state_dict(saved[2])
    train(other, optimizer2, pruner2, 5, 10)
    for name, tensor in pruner2.finish().state_dict().items():
        assert torch.equal(tensor, expected[name])


def test_leaves_no_hooks_behind() -> None:
    model, optimizer, pruner = start()
    train(model, optimizer, pruner, 0, 4)
    small = pruner.finish()
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    assert not small._forward_hooks


def test_an_error_in_the_pass_stops_observing() -> None:
    model, optimizer, pruner = start()
    with pytest.raises(RuntimeError):
        model(torch.randn(2, 5, 4))
    train(model, optimizer, pruner, 0, 4)
    assert pruner.finish().lstm is not None


EXAMPLE = torch.randn(2, 5, 3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "taylor"}, "gradients of a loss"),
        ({"method": "nothing"}, "iss-group-lasso"),
        ({"method": 3}, "not a known method"),
        ({"method": "iss-group-lasso+reconstruct"}, "takes no compensation"),
        ({"ratio": 1.0}, "ratio=1.0"),
        ({"ratio": "half"}, "ratio='half'"),
        ({"ratio": None}, "ratio=None"),
        ({"schedule": "soft"}, "'soft' is not a schedule"),
        ({"schedule": 200}, "200 is not a schedule"),
        ({"total_steps": 0}, "total_steps=0"),
        ({"total_steps": "9"}, "total_steps='9'"),
        ({"optimizer": "adam"}, "not a torch.optim.Optimizer"),
    ],
)
def test_arguments_are_checked_before_the_model_runs(given: dict[str, Any], message: str) -> None:
    with pytest.raises(RepruneError, match=message):
        Pruner(Net(), **given)


def test_what_cannot_be_met_shows_in_the_first_pass() -> None:
    with pytest.raises(BudgetError, match="min_units=8"):
        Pruner(Net(), EXAMPLE, min_units=8)
    with pytest.raises(UnsupportedModelError, match="excluded"):
        Pruner(Net(), EXAMPLE, exclude=["lstm*"])
    model = Net()
    pruner = Pruner(model, exclude=["lstm*"])
    with pytest.raises(UnsupportedModelError, match="excluded"):
        model(EXAMPLE)
    pruner.close()
    model(EXAMPLE)


def test_what_cannot_be_done_while_training() -> None:
    with pytest.raises(RepruneError, match=r"reprune\.torch\.Pruner"):
        prune(Net(), [EXAMPLE], method="neuron-selection")
    with pytest.raises(RecipeError, match="forward pass before"):
        Pruner(Net(), ratio=0.5).step()
    with pytest.raises(RecipeError, match="total_steps="):
        Pruner(Net(), EXAMPLE, schedule="fractional:5").step()
    with pytest.raises(RecipeError, match="optimizer="):
        Pruner(Net(), EXAMPLE, schedule="gradual:5", total_steps=9).step()
    with pytest.raises(RecipeError, match=r"loss \+ pruner\.loss"):
        Pruner(Net(), EXAMPLE, method="iss-group-lasso").step()
    with pytest.raises(RecipeError, match=r"model\.train"):
        Pruner(Net(), EXAMPLE).finish()


@pytest.mark.parametrize("method", ["iss-gm", "neuron-selection"])
def test_a_finished_pruner_is_finished(method: str) -> None:
    model = Net()
    pruner = Pruner(model, EXAMPLE, method=method)
    model(EXAMPLE)
    expected = pruner.finish()(EXAMPLE)
    for act in (pruner.step, pruner.finish, pruner.loss):
        with pytest.raises(RecipeError, match="finished"):
            act()
    assert pruner.plan is not None
    torch.testing.assert_close(mask(model, pruner.plan)(EXAMPLE), expected)


def test_a_model_has_one_pruner() -> None:
    model = Net()
    first = Pruner(model)
    with pytest.raises(RecipeError, match="a Pruner already"):
        Pruner(model)
    first.close()
    Pruner(model, EXAMPLE).close()
    Pruner(copy.deepcopy(model), EXAMPLE)


def test_the_state_of_another_pruner_is_refused() -> None:
    state = Pruner(Net(), EXAMPLE, method="magnitude").state_dict()
    with pytest.raises(RecipeError, match="method='magnitude'"):
        Pruner(Net(), EXAMPLE, method="iss-gm").load_state_dict(state)
    with pytest.raises(PlanError, match="another model"):
        Pruner(Net(6), method="magnitude").load_state_dict(state)
    with pytest.raises(RecipeError, match="exclude="):
        Pruner(Net(), EXAMPLE, method="magnitude", exclude=["lstm:l0"]).load_state_dict(state)


class Language(nn.Module):
    """Its states go round: what the model returns beside the logits is no output that pins units."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 8, num_layers=2), nn.Linear(8, 3)

    def forward(self, x: Tensor, state: Any = None) -> Any:
        out, state = self.lstm(x, state)
        return self.head(out), state


@pytest.mark.parametrize("given", [(), (None,), "by name"])
def test_the_first_pass_is_the_example(given: Any) -> None:
    """With the arguments it has, and it counts as any other."""

    def train(pruner: Pruner, model: Language) -> dict[str, Tensor]:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(5):
            x = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            out, _ = model(x, state=None) if given == "by name" else model(x, *given)
            (out.square().mean() + pruner.loss()).backward()
            optimizer.step()
            pruner.step()
        return dict(pruner.finish().state_dict())

    found = []
    for example in (None, torch.randn(6, 4, 3)):
        torch.manual_seed(0)
        model = Language()
        found.append(train(Pruner(model, example, method="neuron-selection", schedule="soft:2"), model))
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())


# The compiler hides this warning of its own from users, not from a filter that raises.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize(("method", "schedule"), [("iss-gm", "soft:3"), ("neuron-selection", "gradual:3")])
def test_a_compiled_model_is_pruned_as_the_plain_one(method: str, schedule: str) -> None:
    plans = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = Net()
        run: Any = torch.compile(model, backend="eager") if compiled else model
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        pruner = Pruner(run, method=method, schedule=schedule, optimizer=optimizer, total_steps=8)
        for step in range(8):
            x = torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            ((run(x) - x[:, -1, :2]).square().mean() + pruner.loss()).backward()
            optimizer.step()
            pruner.step()
        pruner.finish()
        assert pruner.plan is not None
        plans.append(pruner.plan.kept)
    assert plans[0] == plans[1]


@pytest.mark.parametrize("told", ["later", "first"])
def test_labels_are_told_before_the_pass(told: str) -> None:
    """FSDP: half of the units respond to the class, and those stay."""
    model = Net()
    x = torch.randn(20, 5, 3)
    classes = torch.arange(20) % 2
    pruner = Pruner(model, x, ratio=0.5, method="class-separability", schedule="soft:1")
    with pytest.raises(RecipeError, match=r"pruner\.label"):
        model(x)
    with torch.no_grad():
        model.lstm.weight_ih_l0.zero_()
        model.lstm.weight_hh_l0.zero_()
        for gate in range(4):
            model.lstm.weight_ih_l0[gate * 8 + 1 : gate * 8 + 8 : 2, 0] = 2.0
    x[:, :, 0] = 2.0 * classes[:, None] - 1.0
    if told == "first":
        pruner.close()
        pruner = Pruner(model, ratio=0.5, method="class-separability", schedule="soft:1")
    pruner.label(classes)
    model(x)
    pruner.step()
    assert pruner.plan is not None
    assert pruner.plan.kept["lstm:l0"] == [1, 3, 5, 7]
    seen = pruner.state_dict()["technique"]["last"]["classes"]["lstm:l0"]
    assert seen["counts"].tolist() == [50, 50]


def test_silence_spares_what_stays() -> None:
    model, optimizer, pruner = start(every=1)
    train(model, optimizer, pruner, 0, 1)
    assert pruner.plan is not None
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    silence(model, pruner.plan)
    silence(model, pruner.plan)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
