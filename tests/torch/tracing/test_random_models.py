"""Random models out of the usual pieces, random plans: pruned must equal masked, or the layer must be pinned.

`REPRUNE_FUZZ=5000 pytest tests/torch/tracing/test_random_models.py` runs that many examples.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import reprune.torch
from tests.helpers.torch_oracle import check_oracle, prepared, random_plans

EXAMPLES = int(os.environ.get("REPRUNE_FUZZ", "60"))
KINDS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN, "projected": nn.LSTM}
WIRINGS = (
    "chain", "residual", "skip", "gate", "batch_norm", "affine", "convolution", "attention", "self_attention", "linear",
    "halves", "multiply", "activation", "pyramid", "cell", "written", "shared", "state", "projected", "neighbours",
    "joined", "checked", "private", "summed",
)  # fmt: skip
HEADS = ("steps", "last", "mean", "max", "state", "states", "both_ends", "pooling", "flat", "norm")


class Block(nn.Module):
    """One recurrent module and what is wired around it; takes and gives (B, T, features)."""

    def __init__(self, read: int, options: dict[str, Any]) -> None:
        super().__init__()
        self.kind, self.wiring, self.packed = options["kind"], options["wiring"], options["packed"]
        units, self.directions = options["units"], 2 if options["bidirectional"] else 1
        self._options = options
        projected = max(1, units // 2) if self.kind == "projected" else 0
        self.width = (projected or units) * self.directions
        self.recurrent = self._recurrent(self.width if self.wiring in ("residual", "shared") else read, projected)
        self._wire(read)

    def _recurrent(self, read: int, projected: int) -> nn.RNNBase:
        options = {name: self._options[name] for name in ("bias", "batch_first", "bidirectional")}
        if projected:
            options["proj_size"] = projected
        return KINDS[self.kind](read, self._options["units"], self._options["layers"], **options)

    def _wire(self, read: int) -> None:
        width = self.width
        if self.wiring in ("residual", "shared"):
            self.before = nn.Linear(read, width)
        elif self.wiring == "affine":
            self.gain, self.shift = nn.Parameter(torch.randn(width)), nn.Parameter(torch.randn(1, 1, width))
        elif self.wiring == "attention":
            self.score = nn.Sequential(nn.Linear(width, 4), nn.Tanh(), nn.Linear(4, 1))
        elif self.wiring == "written":
            self.x2h, self.h2h = nn.Linear(width, 8), nn.Linear(4, 8, bias=False)
        elif self.wiring == "projected":
            self._units, self.x2h, self.h2h = 4, nn.Linear(width, 16), nn.Linear(3, 16, bias=False)
            self.down = nn.Linear(4, 3, bias=False)
        elif self.wiring == "joined":
            self.left, self.right = (
                nn.GRU(read, width // 2, batch_first=True),
                nn.GRU(read, width - width // 2, batch_first=True),
            )
        elif self.wiring == "private":
            self._sizes = (width, 2 * width)
        elif self.wiring == "summed":
            self.one, self.two = nn.Parameter(torch.randn(5, width) / 3), nn.Parameter(torch.randn(5, width) / 3)
        elif self.wiring == "state":
            self.start = nn.Linear(read, self.recurrent.hidden_size)
        made = {
            "gate": lambda: nn.Linear(width, width),
            "batch_norm": lambda: nn.BatchNorm1d(width),
            "convolution": lambda: nn.Conv1d(width, 4, 3, padding=1),
            "linear": lambda: nn.Linear(width, 5),
            "multiply": lambda: nn.GRU(read, width, batch_first=True),
            "cell": lambda: nn.LSTMCell(width, 4),
        }
        if self.wiring in made:
            self.piece = made[self.wiring]()
        widths = {
            "skip": width + read,
            "convolution": 4,
            "linear": 5,
            "cell": 4,
            "written": 4,
            "projected": 3,
            "summed": 5,
        }
        twice = 2 * width if self.wiring in ("attention", "pyramid") else width
        self.out_width = widths.get(self.wiring, twice)

    def run(self, x: torch.Tensor, sizes: torch.Tensor | None, state: Any = None) -> tuple[torch.Tensor, Any]:
        first = self.recurrent.batch_first
        x = x if first else x.transpose(0, 1)
        if self.packed and sizes is not None:
            packed = pack_padded_sequence(x, sizes, batch_first=first, enforce_sorted=False)
            output, state = self.recurrent(packed, state)
            output, _ = pad_packed_sequence(output, batch_first=first, total_length=x.size(1 if first else 0))
        else:
            output, state = self.recurrent(x, state)
        h = state[0] if isinstance(state, tuple) else state
        return output if first else output.transpose(0, 1), h

    def _start(self, x: torch.Tensor) -> Any:
        h = torch.tanh(self.start(x[:, 0])).unsqueeze(0).expand(self.recurrent.num_layers * self.directions, -1, -1)
        if self.kind == "projected":
            return None
        return (h.contiguous(), torch.zeros_like(h)) if self.kind == "lstm" else h.contiguous()

    def forward(self, x: torch.Tensor, sizes: torch.Tensor) -> tuple[torch.Tensor, Any]:
        read = self.before(x) if hasattr(self, "before") else x
        h, state = self.run(read, sizes, self._start(x) if self.wiring == "state" else None)
        if self.wiring == "residual":
            h = read + h
        return getattr(self, f"_{self.wiring}", lambda h, x: h)(h, x), state

    def _shared(self, h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self.run(h, None)[0]

    def _skip(self, h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([h, x], -1)

    def _gate(self, h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.piece(h)) * h

    def _batch_norm(self, h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self.piece(h.reshape(-1, h.size(-1))).view(h.size(0), h.size(1), -1)

    def _affine(self, h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return h * self.gain + self.shift

    def _convolution(self, h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.piece(h.transpose(1, 2))).transpose(1, 2)

    def _attention(self, h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        context = (h * self.score(h).softmax(1)).sum(1, keepdim=True)
        return torch.cat([h, context.expand_as(h)], -1)

    def _self_attention(self, h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return (h @ h.transpose(1, 2)).softmax(-1) @ h

    def _linear(self, h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.piece(h))

    def _halves(self, h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        if self.directions == 1:
            return h
        a, b = h.chunk(2, -1)
        return torch.cat([a + b, a - b], -1)

    def _multiply(self, h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return h * self.piece(x)[0]

    def _activation(self, h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.where(h > 0, h, nn.functional.gelu(h) - 0.1).clamp(-0.8, 0.8)

    def _pyramid(self, h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        wide = h.contiguous().view(h.size(0), h.size(1) // 2, h.size(2) * 2)
        return wide.repeat_interleave(2, 1)

    def _cell(self, h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        state, found = None, []
        for step in h.unbind(1):
            state = self.piece(step, state)
            found.append(state[0])
        return torch.stack(found, 1)

    def _projected(self, h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        s, c, found = h.new_zeros(h.size(0), self.down.out_features), h.new_zeros(h.size(0), self._units), []
        for step in h.unbind(1):
            i, f, g, o = torch.split(self.x2h(step) + self.h2h(s), [self._units] * 4, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            s = self.down(o.sigmoid() * c.tanh())
            found.append(s)
        return torch.stack(found, 1)

    def _neighbours(self, h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return h + torch.zeros_like(h).index_add(1, torch.arange(h.size(1)) // 2, h)

    def _joined(self, h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return h + torch.cat([self.left(x)[0], self.right(x)[0]], -1)

    def _checked(self, h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        assert torch.isfinite(h).all()
        return h + h.clone().zero_()

    def _private(self, h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        twice = torch.cat([h, h], -1).view(h.size(0), h.size(1), self._sizes[1])
        return twice[..., : self._sizes[0]] + torch.ones(self._sizes[0], dtype=h.dtype)

    def _summed(self, h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(h, self.one + self.two).tanh()

    def _written(self, h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        s, found = h.new_zeros(h.size(0), self.h2h.in_features), []
        for step in h.unbind(1):
            new, gate = (self.x2h(step) + self.h2h(s)).chunk(2, -1)
            s = s + torch.sigmoid(gate) * (torch.tanh(new) - s)
            found.append(s)
        return torch.stack(found, 1)


class RandomModel(nn.Module):
    def __init__(self, blocks: list[dict[str, Any]], head: str) -> None:
        super().__init__()
        self.blocks, width = nn.ModuleList(), 5
        for options in blocks:
            self.blocks.append(Block(width, options))
            width = self.blocks[-1].out_width
        self.head, last = head, self.blocks[-1]
        if head in ("state", "states"):
            states = last.recurrent.num_layers * last.directions
            width = (last.width // last.directions) * (states if head == "states" else 1)
        self.query = nn.Linear(width, 1)
        self.out = nn.Linear(width * {"both_ends": 2, "flat": 2}.get(head, 1), 3)

    def forward(self, x: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        state = None
        for block in self.blocks:
            x, state = block(x, sizes)
        if self.head == "last":
            x = x[:, -1]
        elif self.head == "mean":
            x = x.mean(1)
        elif self.head == "max":
            x = x.max(1).values
        elif self.head == "state":
            x = state[-1]
        elif self.head == "states":
            x = state.transpose(0, 1).reshape(x.size(0), -1)
        elif self.head == "both_ends":
            x = torch.cat([x[:, 0], x[:, -1]], -1)
        elif self.head == "pooling":
            x = torch.bmm(self.query(x).softmax(1).transpose(1, 2), x).squeeze(1)
        elif self.head == "flat":
            x = x[:, :2].flatten(1)
        elif self.head == "norm":
            x = nn.functional.normalize(x, dim=-1)
        return self.out(x)


BLOCKS = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(sorted(KINDS)),
        "wiring": st.sampled_from(WIRINGS),
        "units": st.integers(6, 10),
        "layers": st.integers(1, 3),
        "bidirectional": st.booleans(),
        "bias": st.booleans(),
        "batch_first": st.booleans(),
        "packed": st.booleans(),
    }
)


def batch(generator: torch.Generator, sequences: int, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    sizes = torch.randint(1, steps + 1, (sequences,), generator=generator)
    sizes[0] = steps
    return torch.randn(sequences, steps, 5, generator=generator, dtype=torch.float64), sizes


RIGHT = (
    "in step with layers of other sizes",
    "even when they are zero",  # A norm after an activation that does not keep zeros.
)


def check(blocks: list[dict[str, Any]], head: str, seed: int, *, train: bool) -> None:
    torch.manual_seed(seed)
    model = prepared(RandomModel(blocks, head).double(), train=False)
    generator = torch.Generator().manual_seed(seed)
    structure = reprune.torch.inspect(model, [batch(generator, 3, 4)]).structure
    # What a single unit is combined with cannot lose units either, and nothing but running shows it.
    right = (*RIGHT, "does not run") if any(layer.units == 1 for layer in structure.layers.values()) else RIGHT
    for name, layer in structure.layers.items():
        assert layer.pin is None or any(reason in layer.pin.reason for reason in right), f"{name}: {layer.pin}"
    plan = random_plans(structure, seed % 3 + 1)[-1]
    for sequences, steps in ((2, 6), (4, 4)):
        check_oracle(prepared(model, train=train), plan, batch(generator, sequences, steps))


@pytest.mark.timeout(4000)
@settings(
    max_examples=EXAMPLES, deadline=None, derandomize="REPRUNE_FUZZ" not in os.environ, print_blob=True,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(st.lists(BLOCKS, min_size=1, max_size=3), st.sampled_from(HEADS), st.integers(0, 10**6), st.booleans())
def test_random_models(blocks: list[dict[str, Any]], head: str, seed: int, train: bool) -> None:
    check(blocks, head, seed, train=train)


def piece(kind: str, wiring: str, units: int, layers: int = 1, **options: bool) -> dict[str, Any]:
    plain = {"bidirectional": False, "bias": True, "batch_first": True, "packed": False}
    return {"kind": kind, "wiring": wiring, "units": units, "layers": layers, **plain, **options}


def test_product_with_padding_keeps_one_name_over_time() -> None:
    """A packed layer's padding has no units; multiplied with another layer they must not seem to vary over time."""
    check([piece("projected", "multiply", 8, packed=True)], "pooling", 10436, train=False)


def test_projection_to_one_component() -> None:
    check([piece("projected", "residual", 2, 3)], "both_ends", 110, train=False)
    check([piece("projected", "halves", 2, bidirectional=True), piece("rnn", "shared", 4)], "pooling", 170, train=True)


def test_type_of_a_state_decides() -> None:
    """Code that asks whether a state is a tuple keeps the layers of a GRU equal instead of pinning them."""
    check([piece("gru", "chain", 6, 3), piece("rnn", "written", 6, 2)], "state", 159, train=False)


def test_layer_beside_the_halves_of_another_is_taken_in_parts() -> None:
    check([piece("rnn", "multiply", 6, bidirectional=True)], "steps", 79, train=False)


def test_a_part_of_a_single_unit() -> None:
    check([piece("projected", "joined", 6)], "steps", 0, train=False)


def test_unread_direction_has_no_gradient() -> None:
    check([piece("projected", "gate", 7, 2, bidirectional=True)], "state", 4, train=True)


def test_more_layers_of_one_size_than_numbers_to_tell_them_apart() -> None:
    """Code that only works with stacked states was rehearsed on equal numbers, and kept its layers unequal."""
    block = {
        "kind": "gru", "wiring": "chain", "units": 7, "layers": 3, "bidirectional": True, "bias": False,
        "batch_first": False, "packed": False,
    }  # fmt: skip
    check([block, block], "state", 1, train=False)
    check([block, {**block, "layers": 2}], "state", 1, train=False)


def test_layer_cut_in_parts_is_as_wide_as_they_are_together() -> None:
    """Both layers of a GRU were rehearsed on equal numbers by chance, so that code that needs that was not seen."""
    blocks = [piece("gru", "chain", 7, bidirectional=True), piece("gru", "chain", 6, 2), piece("gru", "joined", 6, 2)]
    for seed in (1, 2):
        check(blocks, "state", seed, train=False)
