"""Latency as a budget: what is timed of a model, and a model that really gets faster."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from typer.testing import CliRunner

import reprune
from reprune.core.budget.latency import LatencyTable
from reprune.core.errors import BudgetError, PlanError, UnsupportedModelError
from reprune.core.plan import Plan
from reprune.runtimes import timing
from reprune.runtimes.convolution import Geometry
from reprune.torch import latency


class Mixed(nn.Module):
    """Two layers in two directions on packed sequences, a cell in a loop, and heads that run twice."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 6, 2, batch_first=True, bidirectional=True)
        self.cell = nn.GRUCell(12, 7)
        self.head = nn.Linear(7, 3)
        self.other = nn.Linear(3, 2)

    def forward(self, frames: Tensor) -> Tensor:
        lengths = torch.full((frames.shape[0],), frames.shape[1])
        packed, _ = self.lstm(pack_padded_sequence(frames, lengths, batch_first=True))
        state = frames.new_zeros(frames.shape[0], 7)
        for step in torch.nn.utils.rnn.pad_packed_sequence(packed, batch_first=True)[0].unbind(1):
            state = self.cell(step, state)
        return self.other(self.head(state)) + self.other(self.head(-state))


@pytest.fixture
def by_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times that are known: a layer of H units takes H ms, and a model as many as it has parameters."""

    def shortest_ms(call: Any, **_: Any) -> float:
        return call.ms if hasattr(call, "ms") else float(sum(p.numel() for p in call.args[0].parameters()))

    monkeypatch.setattr(timing, "ROUNDS", 1)
    monkeypatch.setattr(timing, "shortest_ms", shortest_ms)

    def build(sizes: timing.Sizes) -> timing.Call:
        def call() -> None: ...

        call.ms = float(sizes.units)  # type: ignore[attr-defined]
        return call

    monkeypatch.setattr("reprune.torch.latency._build", build)


@pytest.mark.usefixtures("by_arithmetic")
def test_what_is_timed() -> None:
    table = reprune.measure_latency(Mixed().eval(), torch.randn(2, 9, 5))
    found = {
        part.name: (
            table.grids[part.grid].kind,
            table.grids[part.grid].batch,
            table.grids[part.grid].steps,
            part.inputs(table.layers),
            part.units(table.layers),
            part.calls,
        )
        for part in table.parts
    }
    assert found == {
        "lstm:l0": ("lstm", 2, 9, 5, 6, 1),
        "lstm:l0_reverse": ("lstm", 2, 9, 5, 6, 1),
        "lstm:l1": ("lstm", 2, 9, 12, 6, 1),
        "lstm:l1_reverse": ("lstm", 2, 9, 12, 6, 1),
        "cell": ("gru_cell", 2, 1, 12, 7, 9),
        "head": ("linear", 2, 1, 7, 3, 2),
    }
    fewer = {**table.layers, "lstm:l0": 2, "lstm:l0_reverse": 3}
    assert next(part for part in table.parts if part.name == "lstm:l1").inputs(fewer) == 5
    assert table.shapes == ((2, 9, 5),)


@pytest.mark.usefixtures("by_arithmetic")
def test_measured_once_for_any_number_of_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    calibration = reprune.calibrate(Mixed().eval(), [torch.randn(2, 9, 5)], methods=["magnitude"])
    plans = [calibration.plan(ratio, of="latency", method="magnitude") for ratio in (0.0, 0.5)]
    monkeypatch.setattr("reprune.torch.adapter.measure_latency", None)
    plans.append(calibration.plan(of="latency", method="magnitude", target_ms=900, round_to="auto"))
    assert len({id(plan.latency) for plan in plans}) == 1
    assert plans[0].counts() == plans[0].structure.counts()
    assert all(Plan.from_json(plan.to_json()) == plan for plan in plans)


class WrittenByHand(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.read, self.feed, self.head = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.eye(6)), nn.Linear(6, 2)

    def forward(self, frames: Tensor) -> Tensor:
        state = frames.new_zeros(frames.shape[0], 6)
        for step in frames.unbind(1):
            state = torch.tanh(step @ self.read + state @ self.feed)
        return self.head(state)


def test_layers_that_cannot_be_timed_are_named() -> None:
    with pytest.raises(UnsupportedModelError, match=r"\[.:l0.\] are something else"):
        reprune.measure_latency(WrittenByHand().eval(), torch.randn(1, 5, 4))


@pytest.mark.parametrize(("options", "named"), [({"runtime": "tpu"}, "tpu"), ({"threads": 0}, "threads=0")])
def test_wrong_options(options: dict[str, object], named: str) -> None:
    with pytest.raises(BudgetError, match=named):
        reprune.measure_latency(nn.LSTM(4, 6), torch.randn(5, 1, 4), **options)


def test_schedules_say_that_they_have_no_times() -> None:
    with pytest.raises(BudgetError, match="while training"):
        reprune.torch.Pruner(nn.LSTM(4, 6), of="latency")


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(64, 256, batch_first=True)
        self.head = nn.Linear(256, 10)

    def forward(self, frames: Tensor) -> Tensor:
        return self.head(self.lstm(frames)[0])


FRAMES = torch.randn(1, 20, 64)


class Handed(nn.Module):
    """A tagger that is handed its state and returns it."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 16)
        self.head = nn.Linear(16, 2)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        x, state = self.lstm(x, state)
        return self.head(x), state


class Keeping(nn.Module):
    """The same with a state that it keeps."""

    state: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 16)
        self.head = nn.Linear(16, 2)
        self.register_buffer("state", torch.zeros(1, 2, 16))

    def forward(self, x: Tensor) -> Tensor:
        x, self.state = self.gru(x, self.state)
        return self.head(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("model", "states", "wanted"), [(Handed(), [torch.rand(1, 2, 16)] * 2, 2), (Keeping(), None, 0)]
)
def test_states_of_the_file_are_fed(
    model: nn.Module, states: list[Tensor] | None, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    fed = []

    def shortest_ms(call: Any, **_: Any) -> float:
        call()
        fed.extend([[array.shape for array in call.args]] if hasattr(call, "args") else [])
        return 1.0

    monkeypatch.setattr(timing, "ROUNDS", 1)
    monkeypatch.setattr(timing, "shortest_ms", shortest_ms)
    x = torch.randn(5, 2, 3)
    table = reprune.measure_latency(model.eval(), (x, states) if states else x, runtime="onnxruntime")
    (small,) = set(table.small.values())
    assert small < 16
    assert fed == [[(5, 2, 3), *[(1, 2, units)] * wanted] for units in (16, small)]


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_a_real_model_gets_faster(runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "ROUNDS", 1)
    if runtime == "onnxruntime":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    model = Tagger().eval()
    table = reprune.measure_latency(model, FRAMES, runtime=runtime)
    assert runtime in table.runtime
    assert table(table.layers) == pytest.approx(table.dense_ms)
    small = {}
    for name, options in {"half": {"ratio": 0.5}, "target": {"target_ms": table.dense_ms / 2}}.items():
        result = reprune.prune(model, [FRAMES], of="latency", method="magnitude", latency=table, **options)
        assert table(result.plan.counts()) == pytest.approx(table.dense_ms / 2, rel=0.05)
        assert "ms predicted for one call on 1×20×64" in str(result)
        small[name] = result.model
    result.save(tmp_path)
    torch.testing.assert_close(reprune.load(Tagger(), tmp_path)(FRAMES), result.model(FRAMES))
    dense, pruned = (_shortest(net, runtime, tmp_path) for net in (model, small["target"]))
    # Half was asked for; a busy machine may be off, but not by as much.
    assert pruned < 0.85 * dense


def _shortest(model: nn.Module, runtime: str, folder: Path) -> float:
    if runtime == "torch":
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        run, given = torch.inference_mode()(model), FRAMES
    else:
        reprune.export(model, FRAMES, folder / "model.onnx")
        run, given = reprune.runtimes.open_file(folder / "model.onnx", threads=1), FRAMES.numpy()
    times = []
    for _ in range(100):
        start = time.perf_counter()
        run(given)
        times.append(time.perf_counter() - start)
    if runtime == "torch":
        torch.set_num_threads(threads)
    return min(times)


def batches() -> list[Tensor]:
    return [torch.randn(2, 9, 5)]


def example() -> Tensor:
    return torch.randn(1, 4, 5)


def build() -> nn.Module:
    torch.manual_seed(0)
    return Mixed()


@pytest.mark.usefixtures("by_arithmetic")
def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from reprune.cli.app import app

    here = Path(__file__).parent
    monkeypatch.syspath_prepend(str(here.parent.parent))
    monkeypatch.chdir(here.parent.parent)
    named = "tests.torch.test_latency"
    table, out = tmp_path / "times.json", tmp_path / "out"
    shared = ["prune", "--model", f"{named}:build", "--batches", f"{named}:batches", "--out", str(out)]
    shared += ["--method", "magnitude", "--of", "latency", "--latency-table", str(table)]
    ran = CliRunner().invoke(app, [*shared, "--example", f"{named}:example", "--ratio", "0"])
    assert ran.exit_code == 0, ran.output
    assert LatencyTable.read(table).shapes == ((1, 4, 5),)
    monkeypatch.setattr("reprune.measure_latency", None)
    ran = CliRunner().invoke(app, [*shared, "--target-ms", "900", "--round-to", "auto"])
    assert ran.exit_code == 0, ran.output
    assert json.loads((out / "plan.json").read_text())["latency"]["shapes"] == [[1, 4, 5]]
    for wrong, message in ((["--target-ms", "0"], "greater than 0"), (["--round-to", "some"], "--round-to some")):
        ran = CliRunner().invoke(app, [*shared, *wrong])
        assert ran.exit_code == 1
        assert message in ran.output
    table.write_text("{}")
    ran = CliRunner().invoke(app, shared)
    assert ran.exit_code == 1
    assert "times.json" in ran.output


def test_a_table_of_another_model_is_refused() -> None:
    table = LatencyTable("torch", 1, (), {"lstm:l0": 9}, 2.0, {"lstm:l0": 1}, 1.0, (), ())
    with pytest.raises(PlanError, match="measured for a model"):
        reprune.plan(Tagger().eval(), [FRAMES], of="latency", method="magnitude", latency=table)


class Convolved(nn.Module):
    """A convolution, one with a stride, a transposed one, and an LSTM after them."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 8, (3, 2), stride=(1, 2))
        self.up, self.lstm = nn.ConvTranspose2d(8, 5, 2, stride=2), nn.LSTM(5 * 8, 7, batch_first=True)
        self.out = nn.Linear(7, 2)

    def forward(self, frames: Tensor) -> Tensor:
        x = self.up(self.two(self.one(frames[:, None])))
        return self.out(self.lstm(x.transpose(1, 2).flatten(2))[0])


def test_convolutions_are_timed_by_their_channels(by_arithmetic: None) -> None:
    model, frames = Convolved(), torch.randn(3, 9, 8)
    structure = reprune.inspect(model, [frames], scope="all").structure
    table = reprune.measure_latency(model, frames, structure=structure)
    kinds = {part.name: table.grids[part.grid].kind for part in table.parts}
    assert kinds["two"] == "convolution 3x2 stride 1x2 padding 0x0 dilation 1x1 over 9x8"
    assert kinds["up"] == "transposed convolution 2x2 stride 2x2 padding 0x0 dilation 1x1 over 7x4"
    assert {part.name: part.units(table.layers) for part in table.parts if "conv" in kinds[part.name]} == {
        "one": 6, "two": 8, "up": 5
    }  # fmt: skip
    plan = reprune.plan(model, [frames], 0.4, of="latency", method="random", scope="all", latency=table)
    assert table(plan.counts()) == pytest.approx(0.6 * table(structure.counts()), rel=0.02)


@pytest.mark.parametrize("name", ["one", "two", "up"])
def test_timed_convolutions_compute_what_those_of_the_model_do(name: str) -> None:
    module = Convolved().get_submodule(name)
    places = (9, 8)
    sizes: list[Any] = [module.kernel_size, module.stride, module.padding, module.dilation]
    geometry = Geometry(module.transposed, *sizes, places)
    assert Geometry.of_kind(str(geometry)) == geometry
    run = latency._build(timing.Sizes(str(geometry), 3, 1, module.in_channels, module.out_channels))
    assert run().shape == module(torch.randn(3, module.in_channels, *places)).shape
