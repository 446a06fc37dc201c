"""Random networks of convolutions, attention, gates and recurrences, every width pruned: pruned must equal masked.

`REPRUNE_FUZZ=3000 pytest tests/torch/tracing/test_random_widths.py` runs that many examples.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import reprune.torch
from tests.helpers.torch_oracle import check_oracle, prepared, random_plans

EXAMPLES = int(os.environ.get("REPRUNE_FUZZ", "40"))
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda width: nn.Identity(),
    "batch": nn.BatchNorm1d,
    "groups": lambda width: nn.GroupNorm(width // 2, width),
    "instance": lambda width: nn.InstanceNorm1d(width, affine=True),
}
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "tanh": torch.tanh,
    "silu": F.silu,
}


class Stage(nn.Module):
    """One piece of a network; takes and gives (B, channels, T)."""

    def __init__(self, kind: str, read: int, width: int, norm: str, activation: str, bias: bool) -> None:
        super().__init__()
        self.kind, self.width, self.heads = kind, width, 2
        self.activation, self.norm = ACTIVATIONS[activation], NORMS[norm](width)
        self.enter = nn.Conv1d(read, width, 1, bias=bias)
        getattr(self, f"_make_{kind}", lambda: None)()

    def forward(self, x: Tensor) -> Tensor:
        h = self.activation(self.norm(self.enter(x)))
        found: Tensor = getattr(self, f"_{self.kind}")(h)
        return found

    def _plain(self, x: Tensor) -> Tensor:
        return x

    def _make_residual(self) -> None:
        self.one, self.two = nn.Conv1d(self.width, 6, 3, padding=1), nn.Conv1d(6, self.width, 3, padding=1)

    def _residual(self, x: Tensor) -> Tensor:
        return x + self.two(self.activation(self.one(x)))

    def _make_separable(self) -> None:
        self.deep = nn.Conv1d(self.width, self.width, 3, padding=1, groups=self.width)
        self.point = nn.Conv1d(self.width, self.width, 1)

    def _separable(self, x: Tensor) -> Tensor:
        return self.point(self.deep(x))

    def _make_grouped(self) -> None:
        self.one = nn.Conv1d(self.width, 3 * self.width // 2, 3, padding=1, groups=self.width // 2)

    def _grouped(self, x: Tensor) -> Tensor:
        return self.activation(self.one(x))

    def _make_excite(self) -> None:
        self.squeeze, self.grow = nn.Linear(self.width, 4), nn.Linear(4, self.width)

    def _excite(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.grow(F.relu(self.squeeze(x.mean(-1)))))[..., None]

    def _make_gated(self) -> None:
        self.one = nn.Conv1d(self.width, 2 * self.width, 3, padding=1)

    def _gated(self, x: Tensor) -> Tensor:
        a, b = self.one(x).chunk(2, 1)
        return x + torch.tanh(a) * torch.sigmoid(b)

    def _make_dense(self) -> None:
        self.one = nn.Conv1d(self.width, 4, 3, padding=1)

    def _dense(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.activation(self.one(x))], 1)

    def _make_hourglass(self) -> None:
        self.down, self.up = nn.Conv1d(self.width, 6, 2, 2), nn.ConvTranspose1d(6, 4, 2, 2)

    def _hourglass(self, x: Tensor) -> Tensor:
        return torch.cat([F.interpolate(self.up(F.relu(self.down(x))), size=x.shape[-1]), x], 1)

    def _shuffled(self, x: Tensor) -> Tensor:
        b, c, t = x.shape
        return x.view(b, 2, c // 2, t).transpose(1, 2).reshape(b, c, t)

    def _make_recurrent(self) -> None:
        self.lstm = nn.LSTM(self.width, 4, batch_first=True, bidirectional=True)

    def _recurrent(self, x: Tensor) -> Tensor:
        return self.lstm(x.transpose(1, 2))[0].transpose(1, 2)

    def _make_attention(self) -> None:
        self.qkv, self.merge = nn.Linear(self.width, 3 * 8), nn.Linear(8, self.width)

    def _attention(self, x: Tensor) -> Tensor:
        b, _, t = x.shape
        q, k, v = self.qkv(x.transpose(1, 2)).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        context = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, -1)
        return x + self.merge(context).transpose(1, 2)

    def _make_module(self) -> None:
        self.one = nn.MultiheadAttention(self.width, 2, batch_first=True)

    def _module(self, x: Tensor) -> Tensor:
        h = x.transpose(1, 2)
        return (h + self.one(h, h, h)[0]).transpose(1, 2)

    def _make_minimal(self) -> None:
        self.gate, self.candidate = nn.Linear(self.width, 6), nn.Linear(self.width, 6)

    def _minimal(self, x: Tensor) -> Tensor:
        h = x.transpose(1, 2)
        gates, candidates = torch.sigmoid(self.gate(h)), self.candidate(h)
        state, found = torch.zeros_like(candidates[:, 0]), []
        for z, new in zip(gates.unbind(1), candidates.unbind(1), strict=True):
            state = (1 - z) * state + z * new
            found.append(state)
        return torch.stack(found, 2)

    def _make_scan(self) -> None:
        self.rows, self.decay = nn.Linear(self.width, self.width), nn.Parameter(torch.rand(self.width))
        self.gain = nn.Parameter(torch.randn(self.width, 1))

    def _scan(self, x: Tensor) -> Tensor:
        h = F.logsigmoid(self.rows(x.transpose(1, 2))) * F.softplus(self.decay)
        return torch.exp(h.cumsum(1)).transpose(1, 2) * x * self.gain

    def _make_network(self) -> None:
        self.one, self.two = nn.Linear(self.width, 9), nn.Linear(9, self.width)

    def _network(self, x: Tensor) -> Tensor:
        return x + self.two(self.activation(self.one(x.transpose(1, 2)))).transpose(1, 2)

    def _make_pooled(self) -> None:
        self.score = nn.Linear(self.width, 1)

    def _pooled(self, x: Tensor) -> Tensor:
        return x * (x @ self.score(x.transpose(1, 2)).softmax(1))


KINDS = sorted(name.removeprefix("_") for name, value in vars(Stage).items() if name[1:2] != "_" and callable(value))
KINDS = [name for name in KINDS if not name.startswith(("make_", "forward"))]
STAGES = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(KINDS),
        "width": st.sampled_from([4, 6, 8]),
        "norm": st.sampled_from(sorted(NORMS)),
        "activation": st.sampled_from(sorted(ACTIVATIONS)),
        "bias": st.booleans(),
    }
)


class RandomNetwork(nn.Module):
    def __init__(self, stages: list[dict[str, Any]], head: str) -> None:
        super().__init__()
        self.stages, width = nn.ModuleList(), 5
        for options in stages:
            self.stages.append(Stage(read=width, **options))
            with torch.no_grad():
                width = self.stages[-1].eval()(torch.zeros(1, width, 4)).shape[1]
        self.head, self.hidden = head, nn.Linear(width * (2 if head == "flat" else 1), 7)
        self.out = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x)
        if self.head == "flat":
            x = F.adaptive_max_pool1d(x, 2).flatten(1)
        else:
            x = x.mean(-1) if self.head == "mean" else x.transpose(1, 2)
        return self.out(F.relu(self.hidden(x)))


# What cannot be followed, and why that is right.
RIGHT = ("part of what the model returns",)


def check(stages: list[dict[str, Any]], head: str, seed: int, *, train: bool) -> None:
    torch.manual_seed(seed)
    model = prepared(RandomNetwork(stages, head).double(), train=False)
    generator = torch.Generator().manual_seed(seed)

    def batch(sequences: int, steps: int) -> Tensor:
        return torch.randn(sequences, 5, steps, generator=generator, dtype=torch.float64)

    structure = reprune.torch.inspect(model, [batch(3, 4)], scope="all").structure
    for name, layer in structure.layers.items():
        assert layer.pin is None or any(reason in layer.pin.reason for reason in RIGHT), f"{name}: {layer.pin}"
    plan = random_plans(structure, seed % 3 + 1)[-1]
    for sequences, steps in ((2, 6), (4, 4)):
        check_oracle(prepared(model, train=train), plan, batch(sequences, steps))


@pytest.mark.timeout(4000)
@settings(
    max_examples=EXAMPLES, deadline=None, derandomize="REPRUNE_FUZZ" not in os.environ, print_blob=True,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(
    st.lists(STAGES, min_size=1, max_size=4),
    st.sampled_from(["flat", "mean", "steps"]),
    st.integers(0, 10**6),
    st.booleans(),
)
def test_random_widths(stages: list[dict[str, Any]], head: str, seed: int, train: bool) -> None:
    check(stages, head, seed, train=train)
