"""Files carry the states that models carry: taken and returned, kept in modules, or started from zeros."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import reprune
from reprune.runtimes import open_file
from reprune.torch.export import export
from reprune.torch.export.carried import carried_states
from reprune.torch.export.example import Example

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


class Keeper(nn.Module):
    """Keeps its state from call to call, in a way that a subclass names."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.output = nn.GRU(5, 7, batch_first=True), nn.Linear(7, 2)

    def step(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        y, state = self.gru(x, state)
        return self.output(y), state


class InAttribute(Keeper):
    state: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        y, self.state = self.step(x, self.state)
        return y


class InPlace(Keeper):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("state", torch.full((1, 1, 7), 0.3))

    def forward(self, x: Tensor) -> Tensor:
        y, state = self.step(x, self.state.clone())
        self.state.copy_(state)
        return y


class InDict(Keeper):
    def __init__(self) -> None:
        super().__init__()
        self.memory: dict[str, list[Tensor]] = {}

    def forward(self, x: Tensor) -> Tensor:
        y, state = self.step(x, self.memory["states"][0] if self.memory else None)
        self.memory["states"] = [state]
        return y


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.core = InAttribute()

    def forward(self, x: Tensor) -> Tensor:
        return self.core(x).tanh()


@pytest.mark.parametrize("build", [InAttribute, InPlace, InDict, Inner])
def test_what_a_model_keeps_becomes_inputs_and_outputs(build: Callable[[], nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build().eval()
    report = export(model, torch.randn(1, 3, 5), tmp_path / "model.onnx")
    (pair,) = report.states
    assert report.inputs[pair.input] == (1, "batch", 7)
    assert pair.start == "nothing"
    assert all(comparison.calls == 3 for comparison in report.comparisons)
    assert not report.notes
    run, states = open_file(tmp_path / "model.onnx"), []
    for _ in range(4):
        x = torch.randn(1, 2, 5)
        output, *states = run(x.numpy(), *states)
        np.testing.assert_allclose(output, model(x).detach().numpy(), atol=1e-6)


def test_the_file_s_metadata_names_the_pairs(tmp_path: Path) -> None:
    report = export(InAttribute(), torch.randn(1, 3, 5), tmp_path / "model.onnx")
    stored = {entry.key: entry.value for entry in onnx.load(tmp_path / "model.onnx").metadata_props}
    assert json.loads(stored["reprune.states"]) == [{"input": "state", "output": "state_next", "start": "nothing"}]
    assert "state state_next → state, at first nothing" in str(report)


class Counting(Keeper):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.step(x, None)[0] * self.calls


class Growing(Keeper):
    seen: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.step(x, None)
        self.seen = y if self.seen is None else torch.cat([self.seen, y], 1)
        return self.seen.mean(1)


class Remembering(Keeper):
    """Keeps its last answer for a loss, and never reads it."""

    last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.last, _ = self.step(x, None)
        return self.last


@pytest.mark.parametrize(("build", "name"), [(Counting, "calls"), (Growing, "seen"), (Remembering, None)])
def test_what_a_file_cannot_carry_is_said(build: Callable[[], nn.Module], name: str | None, tmp_path: Path) -> None:
    model = build()
    report = export(model, torch.randn(1, 3, 5), tmp_path / "model.onnx")
    assert report.states == ()
    assert [f"({name})" in note for note in report.notes] == ([True] if name else [])
    assert report.difference < 1e-6


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.output = nn.LSTM(5, 12, 2, batch_first=True), nn.Linear(12, 2)

    def forward(self, x: Tensor, hc: tuple[Tensor, Tensor]) -> Any:
        y, hc = self.lstm(x, hc)
        return self.output(y), hc


class Cells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.low, self.high, self.output = nn.GRUCell(5, 12), nn.LSTMCell(12, 9), nn.Linear(9, 2)

    def forward(self, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        h = self.low(x, states[0])
        top, c = self.high(h, (states[1], states[2]))
        return self.output(top), [h, top, c]


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape)


CARRIED = {
    "layers": (TwoLayers, (torch.randn(2, 4, 5), (zeros(2, 2, 12), zeros(2, 2, 12)))),
    "cells": (Cells, (torch.randn(2, 5), [zeros(2, 12), zeros(2, 9), zeros(2, 9)])),
}


@pytest.mark.parametrize("name", CARRIED)
@pytest.mark.parametrize("pruned", [False, True])
def test_states_come_back_in_the_width_in_which_they_go_in(name: str, pruned: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    build, example = CARRIED[name]
    model = build().eval()
    if pruned:
        model = reprune.prune(model, [example], counts={"*": 5}, ratio=None, method="magnitude").model
    report = export(model, example, tmp_path / "model.onnx")
    assert len(report.states) == (2 if name == "layers" else 3)
    for pair in report.states:
        assert report.inputs[pair.input] == report.outputs[pair.output]
    # The model starts from zeros of its old width, the file from zeros of the new one.
    run, start = open_file(tmp_path / "model.onnx"), example
    shapes = [tuple(3 if size == "batch" else size for size in report.inputs[pair.input]) for pair in report.states]
    states = [np.zeros(shape, np.float32) for shape in shapes]
    kept: Any = torch.utils._pytree.tree_map(lambda t: t.new_zeros(*t.shape[:-2], 3, t.shape[-1]), start[1])
    for _ in range(3):
        x = torch.randn(3, *example[0].shape[1:])
        expected, kept = model(x, kept)
        output, *states = run(x.numpy(), *states)
        np.testing.assert_allclose(output, expected.detach().numpy(), atol=1e-6)


def test_a_denoiser_s_output_is_no_state(tmp_path: Path) -> None:
    class Denoiser(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru, self.output = nn.GRU(5, 7, batch_first=True), nn.Linear(7, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.output(self.gru(x)[0])

    assert export(Denoiser(), torch.randn(2, 3, 5), tmp_path / "model.onnx").states == ()


class Loop(nn.Module):
    """A loop over cells from a learned beginning and from zeros; backwards if wanted."""

    def __init__(self, backwards: bool = False) -> None:
        super().__init__()
        self.low, self.high, self.output = nn.GRUCell(5, 7), nn.LSTMCell(7, 6), nn.Linear(6, 2)
        self.begin = nn.Parameter(torch.randn(1, 7))
        self.backwards = backwards

    def forward(self, x: Tensor) -> Tensor:
        h, hc = self.begin.expand(x.shape[0], -1), None
        outputs = []
        for step in reversed(x.unbind(1)) if self.backwards else x.unbind(1):
            h = self.low(step, h)
            hc = self.high(h, hc)
            outputs.append(self.output(hc[0]))
        return torch.stack(outputs, 1)


def test_loops_over_cells_run_frame_by_frame(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Loop().eval()
    report = export(model, torch.randn(1, 1, 5), tmp_path / "model.onnx", streaming=True)
    assert [pair.input for pair in report.states] == ["low.h_0", "high.h_0", "high.c_0"]
    frames = torch.randn(3, 6, 5)
    expected = model(frames).detach().numpy()
    run, states = open_file(tmp_path / "model.onnx"), []
    for step in range(6):
        output, *states = run(frames[:, step : step + 1].numpy(), *states)
        np.testing.assert_allclose(output[:, 0], expected[:, step], atol=1e-5)


class Counted(nn.Module):
    """Keeps how far it is, a whole number, beside its state."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.places = nn.GRUCell(5, 7), nn.Embedding(9, 5)
        self.register_buffer("at", torch.zeros(1, dtype=torch.long))
        self.register_buffer("state", torch.zeros(1, 7))

    def forward(self, x: Tensor) -> Tensor:
        self.state = self.cell(x + self.places(self.at), self.state)
        self.at = self.at + 1
        return self.state


def test_whole_numbers_are_states_too(tmp_path: Path) -> None:
    model = Counted().eval()
    export(model, torch.randn(1, 5), tmp_path / "model.onnx")
    run, states = open_file(tmp_path / "model.onnx"), []
    for _ in range(4):
        x = torch.randn(1, 5)
        output, *states = run(x.numpy(), *states)
        np.testing.assert_allclose(output, model(x).detach().numpy(), atol=1e-6)


class Fields(NamedTuple):
    h: Tensor
    c: Tensor


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(5, 7)

    def forward(self, x: Tensor, state: Fields) -> Fields:
        return Fields(*self.cell(x, tuple(state)))


def test_fields_of_a_state_have_their_names(tmp_path: Path) -> None:
    report = export(Named(), (torch.randn(2, 5), Fields(zeros(2, 7), zeros(2, 7))), tmp_path / "model.onnx")
    assert [pair.input for pair in report.states] == ["state_h", "state_c"]


class Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(5, 7, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.gru(x)[0].mean(1)


def test_streaming_says_what_else_reads_across_steps(tmp_path: Path) -> None:
    report = export(Pooled(), torch.randn(1, 4, 5), tmp_path / "model.onnx", streaming=True)
    assert any("reads across steps" in note for note in report.notes)
    report = export(Loop(backwards=True), torch.randn(1, 4, 5), tmp_path / "model.onnx", streaming=True)
    assert any("reads across steps" in note for note in report.notes)


def test_pt2_files_stream_too(tmp_path: Path) -> None:
    model = InAttribute().eval()
    report = export(model, torch.randn(1, 3, 5), tmp_path / "model.pt2")
    assert [pair.start for pair in report.states] == ["zeros"]
    run, states = open_file(tmp_path / "model.pt2"), [np.zeros((1, 1, 7), np.float32)]
    for _ in range(3):
        x = torch.randn(1, 3, 5)
        output, *states = run(x.numpy(), *states)
        np.testing.assert_allclose(output, model(x).detach().numpy(), atol=1e-6)


def test_locks_and_gradients_do_not_stand_in_the_way(tmp_path: Path) -> None:
    import threading

    model = Pooled()
    model.guard = threading.Lock()  # type: ignore[assignment]
    assert export(model, torch.randn(1, 4, 5), tmp_path / "model.onnx").difference < 1e-6
    trained = Remembering()
    trained(torch.randn(2, 3, 5)).sum().backward()
    assert export(trained, torch.randn(1, 4, 5), tmp_path / "model.onnx").difference < 1e-6


class WrittenStep(nn.Module):
    """One step of an LSTM by hand: what it joins may be divided anywhere, in one call, but not in the next."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.output = nn.Linear(5 + 8, 4 * 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        i, f, g, o = self.gates(torch.cat([x, h], 1)).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return self.output(h), h, c


def test_sizes_that_only_the_first_call_could_vary_are_fixed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = WrittenStep().eval(), torch.randn(3, 2, 5)
    report = export(model, (x[0], torch.zeros(2, 8), torch.zeros(2, 8)), tmp_path / "step.onnx")
    assert list(report.inputs.values()) == [("batch", 5), ("batch", 8), ("batch", 8)]
    run, given = open_file(tmp_path / "step.onnx"), [np.zeros((2, 8), np.float32)] * 2
    expected = [torch.zeros(2, 8)] * 2
    for frame in x:
        output, *given = run(frame.numpy(), *given)
        wanted, *expected = model(frame, *expected)
        np.testing.assert_allclose(output, wanted.detach().numpy(), atol=1e-6)


class AnyName(WrittenStep):
    """A step whose state has no telling name, in one tensor."""

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:  # type: ignore[override]
        output, *after = super().forward(x, *y.chunk(2, 1))
        return output, {"y": torch.cat(after, 1)}


def test_a_state_is_known_by_its_units_not_by_its_name(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = AnyName().eval(), torch.randn(4, 2, 5)
    batches = [(frame, torch.zeros(2, 16)) for frame in x]
    small = reprune.prune(model, batches, 0.5, method="magnitude").model
    report = export(small, batches[0], tmp_path / "step.onnx")
    assert [(pair.output, pair.input) for pair in report.states] == [("output_1", "y")]
    assert report.inputs["y"][1] == report.outputs["output_1"][1] == 8
    run, state, expected = open_file(tmp_path / "step.onnx"), np.zeros((2, 8), np.float32), torch.zeros(2, 16)
    for frame in x:
        output, state = run(frame.numpy(), state)
        wanted, after = small(frame, expected)
        expected = after["y"]
        np.testing.assert_allclose(output, wanted.detach().numpy(), atol=1e-6)


def test_a_state_that_the_example_leaves_out_is_told(tmp_path: Path) -> None:
    report = export(nn.GRU(3, 4), torch.randn(5, 2, 3), tmp_path / "gru.onnx")
    assert not report.states
    assert any("the model takes states (hx) that the example leaves out" in note for note in report.notes)
    streaming = export(nn.GRU(3, 4), torch.randn(5, 2, 3), tmp_path / "gru.onnx", streaming=True)
    assert streaming.states
    assert not streaming.notes


class Writing(nn.Module):
    """Writes into what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 4)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        y: tuple[Tensor, Tensor] = self.gru(x.mul_(2), h)
        return y


def test_looking_for_states_leaves_the_example_as_it_was() -> None:
    model, x = Writing(), torch.randn(5, 2, 3)
    before = x.clone()
    found = carried_states(model, Example.of(model, (x, torch.zeros(1, 2, 4))))
    assert [state.input for state in found.states] == ["h"]
    assert torch.equal(x, before)
