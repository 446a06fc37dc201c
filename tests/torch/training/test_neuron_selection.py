"""Hard concrete gates: their distribution in closed form, how they reach every consumer, and how they are folded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor, nn

from reprune.core.budget.budget import Budget
from reprune.core.budget.cost import CostModel
from reprune.core.training.hard_concrete import BETA, GAMMA, SLACK, ZETA
from reprune.torch import Pruner, mask, trace
from reprune.torch.training.neuron_selection import NeuronSelection, open_probability, sampled, settled


class Net(nn.Module):
    """Stacked and bidirectional, with a nonlinearity before the head."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.LSTM(3, 4, bidirectional=True, num_layers=2, batch_first=True)
        self.top = nn.GRU(8, 6, batch_first=True)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.top(self.both(x)[0])[0].relu())
        return out


def start(of: str = "units") -> tuple[Net, NeuronSelection]:
    torch.manual_seed(0)
    model = Net().double()
    structure = trace(model, torch.randn(2, 5, 3, dtype=torch.float64))
    return model, NeuronSelection(model, structure, "neuron-selection", Budget(0.5, of), 0, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("location", [-3.0, -0.5, 0.0, 2.0])
def test_probability_of_being_open_is_that_of_the_density(location: float) -> None:
    """s is a logistic variable squashed: P(stretched s > 0) is the tail of a logistic distribution."""
    threshold = np.log(-GAMMA / ZETA)  # logit of −γ / (ζ − γ)
    tail = stats.logistic(loc=location / BETA, scale=1 / BETA).sf(threshold)
    found = float(open_probability(torch.tensor(location, dtype=torch.float64)))
    assert found == pytest.approx(tail, rel=1e-9)

    def gate(u: float) -> float:
        return float(sampled(torch.tensor(location, dtype=torch.float64), torch.tensor(u, dtype=torch.float64)) > 0)

    share = np.mean([gate(u) for u in np.linspace(0.0005, 0.9995, 1000)])
    assert found == pytest.approx(share, abs=2e-3)


def test_stretch_and_clamp() -> None:
    location = torch.tensor([-1.0, 0.3, 4.0], dtype=torch.float64)
    noise = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    for place, u, z in zip(location.tolist(), noise.tolist(), sampled(location, noise).tolist(), strict=True):
        s = 1 / (1 + np.exp(-(np.log(u / (1 - u)) + place) / BETA))
        assert z == pytest.approx(min(1.0, max(0.0, s * 1.2 - 0.1)), rel=1e-12)
    assert sampled(torch.tensor(-9.0), torch.tensor(0.5)) == 0
    assert sampled(torch.tensor(9.0), torch.tensor(0.5)) == 1
    closing = float(np.log((1 / 12) / (11 / 12)))  # σ(log α) · 1.2 = 0.1
    assert settled(torch.tensor([closing - 1e-3, closing + 1e-3]))[0] == 0
    assert settled(torch.tensor([closing - 1e-3, closing + 1e-3]))[1] > 0
    assert settled(torch.tensor(0.0)) == pytest.approx(0.5)


def test_mean_of_a_gate_is_the_integral_of_its_quantiles() -> None:
    location = torch.tensor(0.4, dtype=torch.float64)
    mean = integrate.quad(lambda u: float(sampled(location, torch.tensor(u, dtype=torch.float64))), 0, 1, limit=200)[0]
    noise = torch.rand(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert float(sampled(location, noise).mean()) == pytest.approx(mean, abs=3e-3)


@pytest.mark.parametrize("of", ["units", "parameters", "macs"])
def test_expected_size(of: str) -> None:
    model, gates = start(of)
    with torch.no_grad():
        gates.log_alpha.copy_(torch.linspace(-4, 4, 22))
    opening = open_probability(gates.log_alpha.detach()).double().numpy()
    structure, first, counts = gates.structure, 0, {}
    for group in structure.index_coupled:
        units = structure.layers[group[0]].units
        counts[group[0]] = float(opening[first : first + units].sum())
        first += units
    cost = CostModel(structure)
    expected = 1 - cost(of, counts) / cost(of, structure.counts())  # type: ignore[arg-type]
    assert float(gates.expected_removed().detach()) == pytest.approx(expected, rel=1e-6)
    gates.strength = 0.7
    for missing in (0.3, -0.3):
        gates._target = expected + missing
        assert float(gates.loss().detach()) == pytest.approx(0.7 * (0.3 - SLACK / 2), abs=1e-6)
    gates._target = expected + 0.6 * SLACK  # within the slack, a parabola of the same slope at its ends
    assert float(gates.loss().detach()) == pytest.approx(0.7 * 0.18 * SLACK, abs=1e-6)
    del model


def test_gated_model_equals_the_folded_pruned_one() -> None:
    torch.manual_seed(1)
    model = Net().double().eval()
    x = torch.randn(4, 6, 3, dtype=torch.float64)
    pruner = Pruner(model, x, ratio=0.5, method="neuron-selection", schedule="after")
    gates = pruner._work.technique  # type: ignore[union-attr]
    assert isinstance(gates, NeuronSelection)
    plain = model(x)
    with torch.no_grad():
        gates.log_alpha.copy_(torch.randperm(22).double() - 10.5)  # 11 open to some degree, the others shut or nearly
        gates.log_alpha[gates.log_alpha < 0] = -5.0 + gates.log_alpha[gates.log_alpha < 0] / 100
    expected = model(x)
    assert not torch.allclose(plain, expected)
    small = pruner.finish()
    assert pruner.plan is not None
    assert sum(pruner.plan.counts().values()) == 11
    torch.testing.assert_close(small(x), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(mask(model, pruner.plan)(x), expected, rtol=1e-10, atol=1e-12)


def test_a_gate_multiplies_what_every_consumer_reads() -> None:
    """One LSTM, step by step in NumPy, with the responses multiplied where they are read."""
    torch.manual_seed(0)

    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(2, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.lstm(x)[0])
            return out

    model = One().double().eval()
    x = torch.randn(4, 1, 2, dtype=torch.float64)
    pruner = Pruner(model, x, method="neuron-selection", schedule="after")
    gates = pruner._work.technique  # type: ignore[union-attr]
    assert isinstance(gates, NeuronSelection)
    with torch.no_grad():
        gates.log_alpha.copy_(torch.tensor([-1.0, 0.0, 1.5]))
    found = model(x).detach().numpy()[:, 0]
    w = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
    z = np.clip(1 / (1 + np.exp([1.0, 0.0, -1.5])) * 1.2 - 0.1, 0, 1)
    h, c = np.zeros(3), np.zeros(3)

    def sigmoid(a: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-a))

    for t in range(4):
        pre = w["lstm.weight_ih_l0"] @ x[t, 0].numpy() + w["lstm.bias_ih_l0"] + w["lstm.bias_hh_l0"]
        i, f, g, o = np.split(pre + w["lstm.weight_hh_l0"] @ (z * h), 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        np.testing.assert_allclose(found[t], w["head.weight"] @ (z * h) + w["head.bias"], rtol=1e-6)
    assert isinstance(model.lstm.weight_hh_l0, nn.Parameter)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_the_target_is_reached_and_the_right_gates_close(scale: float) -> None:
    """The output needs one of two layers, so the units of the other one close; whether losses are means or sums."""
    torch.manual_seed(0)

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.useful, self.useless = nn.GRU(2, 4), nn.GRU(2, 4)
            self.head = nn.Linear(8, 1)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(torch.cat([self.useful(x)[0], self.useless(0 * x)[0]], -1))
            return out

    model = Two()
    pruner = Pruner(model, torch.randn(4, 3, 2), ratio=0.5, method="neuron-selection", schedule="after")
    gates = pruner._work.technique  # type: ignore[union-attr]
    assert isinstance(gates, NeuronSelection)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(600):
        x = torch.randn(6, 16, 2, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (scale * (model(x)[..., 0] - x.cumsum(0).tanh().sum(-1)).square().mean() + pruner.loss()).backward()
        optimizer.step()
        pruner.step()
    assert float(gates.expected_removed().detach()) == pytest.approx(0.5, abs=0.03)
    pruner.finish()
    assert pruner.plan is not None
    assert len(pruner.plan.kept["useful:l0"]) > len(pruner.plan.kept["useless:l0"])
