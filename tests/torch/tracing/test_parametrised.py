"""Weights that PyTorch's own tools compute: they become plain ones, unless each element goes its own way."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils import parametrizations, parametrize

import reprune.torch
from reprune.core.errors import UnsupportedModelError
from reprune.torch.tracing.running.computed import computed
from reprune.torch.tracing.running.unwrap import checked, unwrap
from tests.helpers.torch_oracle import check_oracle, random_plans

pytestmark = pytest.mark.filterwarnings(
    "ignore::reprune.core.errors.CalibrationWarning", "ignore:.*weight_norm.*is deprecated"
)
OLD, NEW = nn.utils, parametrizations


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(5, 12, batch_first=True)
        self.mid, self.out = nn.Linear(12, 9), nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.mid(self.rnn(x)[0])))


class Adapter(nn.Module):
    """A low-rank correction."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(rows, 2)), nn.Parameter(torch.randn(2, columns))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.a @ self.b


class Drop(nn.Module):
    """Weight drop."""

    def forward(self, weight: Tensor) -> Tensor:
        return F.dropout(weight, 0.5, self.training)


def adapted(name: str, rows: int, columns: int) -> Callable[[nn.Module], object]:
    return lambda module: parametrize.register_parametrization(module, name, Adapter(rows, columns))


HH, IH, W = "weight_hh_l0", "weight_ih_l0", "weight"
KINDS: dict[str, tuple[str, str, Callable[[nn.Module], object]]] = {
    "weight_norm of a recurrent weight": ("rnn", HH, lambda m: NEW.weight_norm(m, HH)),
    "weight_norm of an input weight": ("rnn", IH, lambda m: NEW.weight_norm(m, IH)),
    "old weight_norm of a recurrent weight": ("rnn", HH, lambda m: OLD.weight_norm(m, HH)),
    "spectral_norm of a recurrent weight": ("rnn", HH, lambda m: NEW.spectral_norm(m, HH)),
    "old spectral_norm of a recurrent weight": ("rnn", HH, lambda m: OLD.spectral_norm(m, HH)),
    "orthogonal recurrent weight": ("rnn", HH, lambda m: NEW.orthogonal(m, HH)),
    "adapter of a recurrent weight": ("rnn", HH, adapted(HH, 48, 12)),
    "weight_norm of a consumer": ("mid", W, NEW.weight_norm),
    "weight_norm of its columns": ("mid", W, lambda m: NEW.weight_norm(m, dim=1)),
    "old weight_norm of all of it": ("mid", W, lambda m: OLD.weight_norm(m, dim=None)),
    "spectral_norm of a consumer": ("mid", W, NEW.spectral_norm),
    "old spectral_norm of a consumer": ("mid", W, OLD.spectral_norm),
    "orthogonal consumer": ("mid", W, NEW.orthogonal),
    "adapter of a consumer": ("mid", W, adapted(W, 9, 12)),
}


def frames() -> Tensor:
    return torch.randn(6, 7, 5, dtype=torch.float64)


def trained(part: str, tool: Callable[[nn.Module], object]) -> Net:
    """A model whose computed weights are not those that it was made with."""
    torch.manual_seed(0)
    net = Net().double()
    tool(net.get_submodule(part))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    net(frames())
    return net.eval()


@pytest.mark.parametrize(("part", "name", "tool"), KINDS.values(), ids=KINDS)
def test_is_plain_in_the_pruned_model(part: str, name: str, tool: Callable[[nn.Module], object]) -> None:
    net = trained(part, tool)
    found = reprune.torch.inspect(net, [frames()])
    assert found.prunable == ("rnn:l0",)
    assert found.layers["rnn:l0"].approximate is None
    assert f"{part}.{name} (" in "".join(found.made_plain)
    assert "will be plain in the pruned model" in " ".join(str(found).split())
    x = frames()
    before = net(x)
    for plan in random_plans(found.structure, 2):
        check_oracle(net, plan, x)
    keeps_all = reprune.torch.apply(net, reprune.torch.plan(net, [x], 0.0, method="magnitude"))
    torch.testing.assert_close(keeps_all(x), before, rtol=1e-10, atol=1e-12)
    small = reprune.torch.apply(net, random_plans(found.structure, 1)[0])
    assert isinstance(small.get_submodule(part).get_parameter(name), nn.Parameter)
    assert type(small.get_submodule(part)) in (nn.LSTM, nn.Linear)
    torch.testing.assert_close(net(x), before, rtol=0, atol=0)  # The model itself is as it was.


class Step(nn.Module):
    """A step given as a function; numbers of its own, and ways to take it back, where they are wanted."""

    def __init__(self, step: Callable[[Tensor], Tensor], *own: str) -> None:
        super().__init__()
        self.step = step
        if "buffer" in own:
            self.register_buffer("scale", torch.ones(1))
        if "parts" in own:
            self.right_inverse = lambda weight: (weight, weight)

    def forward(self, *weight: Tensor) -> Tensor:
        return self.step(*weight)


@pytest.mark.parametrize(
    ("steps", "plain"),
    [
        ([Step(lambda w: 2 * w.tanh())], False),
        ([Step(torch.relu), Step(lambda w: w * 3)], False),
        ([Step(torch.relu), Step(lambda w: w + 1)], True),  # Zeros do not stay zeros.
        ([Step(lambda w: w - w.mean())], True),
        ([Step(lambda w: w - w.mean(1, keepdim=True))], True),
        ([Step(lambda w: w * torch.ones(9, 12).double())], True),  # Of all the weight or none.
        ([Step(lambda w: w * 1, "buffer")], True),
        ([Step(lambda v, w: v + w, "parts")], True),
    ],
)
def test_what_works_element_by_element_is_left_alone(steps: list[Step], plain: bool) -> None:
    net = Net().double()
    for step in steps:
        parametrize.register_parametrization(net.mid, "weight", step)
    name = ", ".join(["Step"] * len(steps))
    assert list(map(str, computed(net))) == ([f"mid.weight ({name})"] if plain else [])
    alone = computed(net.mid)
    assert [(one.path, str(one)) for one in alone] == ([("", f"weight ({name})")] if plain else [])


def test_all_weights_of_a_module_are_made_plain_or_none() -> None:
    net = Net().double()
    parametrize.register_parametrization(net.mid, "weight", Drop())
    assert not computed(net)
    assert checked(net) is net
    NEW.weight_norm(net.mid, "bias", dim=None)
    assert list(map(str, computed(net))) == ["mid.weight (Drop)", "mid.bias (WeightNorm)"]


@pytest.mark.parametrize("tool", [NEW.spectral_norm, OLD.spectral_norm])
def test_plain_weights_are_those_of_evaluation(tool: Callable[[nn.Module], object]) -> None:
    """The model itself goes on as it was: in its mode, and with weights that learn or not."""
    net = trained("mid", tool).train()
    net.out.eval()
    for parameter in net.mid.parameters():
        parameter.requires_grad_(False)
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    small = checked(net)
    assert not computed(small)
    assert [part.training for part in (small.mid, small.out, net.mid)] == [True, False, True]
    assert (small.mid.weight.requires_grad, small.out.weight.requires_grad) == (False, True)
    x = frames()
    torch.testing.assert_close(small(x), net.eval()(x), rtol=0, atol=0)
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    wanted = [r"mid \(.*\) (is parametrised|has a weight that spectral_norm computes)"]
    with pytest.raises(UnsupportedModelError, match=wanted[0]):
        unwrap(net)
    assert unwrap(net, computed=True) is net


@pytest.mark.parametrize("method", ["magnitude", "iss-gm", "reconstruct"])
def test_every_method_prunes_it(method: str) -> None:
    net = trained("rnn", lambda m: NEW.weight_norm(m, HH))
    NEW.spectral_norm(net.mid)
    result = reprune.torch.prune(net, [frames(), frames()], 0.5, method=method)
    assert result.model.rnn.hidden_size == 6
    assert result.model.mid.in_features == 6


def test_is_saved_and_loaded(tmp_path: object) -> None:
    net = trained("mid", NEW.weight_norm)
    result = reprune.torch.prune(net, [frames()], 0.5, method="iss-gm")
    result.save(str(tmp_path))
    x = frames()
    torch.testing.assert_close(reprune.torch.load(net, str(tmp_path))(x), result.model(x), rtol=0, atol=0)


@pytest.mark.parametrize(("part", "name"), [("rnn", HH), ("mid", W)])
def test_weight_drop_goes_on(part: str, name: str) -> None:
    net = trained(part, lambda m: parametrize.register_parametrization(m, name, Drop()))
    found = reprune.torch.inspect(net, [frames()])
    assert found.prunable == ("rnn:l0",), found
    assert found.made_plain == ()
    for plan in random_plans(found.structure, 2):
        check_oracle(net, plan, frames())
    small = reprune.torch.prune(net, [frames()], 0.5).model
    assert small.rnn.hidden_size == small.mid.in_features == 6
    assert parametrize.is_parametrized(small.get_submodule(part), name)
    small.train()
    assert not torch.equal(small(x := frames()), small(x))
