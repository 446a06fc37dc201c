"""What a GPU does with everything: the zoo against the oracle, ragged modules, training, planning, records, recipes.

    python benchmarks/gpu.py                  # on the GPU if there is one, else smaller on the CPU; under four minutes
    python benchmarks/gpu.py --only zoo,ragged --device cuda:0

Every part prints lines as it goes, and a table of all stands at the end. The zoo is that of the tests, in
`tests/helpers`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

sys.path.insert(0, str(Path(__file__).parents[1]))

import itertools

import reprune
from reprune.recipes.video.generated import FEATURES, write_shards
from reprune.torch import Pruner, RaggedLSTM
from reprune.youtube8m.model import VideoClassifier
from reprune.youtube8m.torch_loader import RecordDataset, RecordLoader

Line = tuple[str, str]


@dataclass(frozen=True)
class Scale:
    """Sizes of one run: those of a GPU, or smaller ones."""

    device: torch.device
    units: tuple[int, ...]
    batch: int
    frames: int
    classes: int
    steps: int
    videos: int

    @classmethod
    def of(cls, device: torch.device) -> Scale:
        if device.type == "cuda":
            return cls(device, (1024, 1500), 64, 300, 3862, 20, 4000)
        return cls(device, (64,), 4, 20, 50, 4, 200)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def milliseconds(calls: dict[str, Callable[[], object]], device: torch.device, rounds: int = 7) -> dict[str, float]:
    """Medians of calls that take turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 2):
        for name, call in calls.items():
            wait(device)
            start = time.perf_counter()
            call()
            wait(device)
            if turn >= 2:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: median(entry) for name, entry in times.items()}


def zoo(scale: Scale) -> Iterator[Line]:
    """Every wiring of the tests: the pruned model against the masked one, in double precision."""
    from tests.helpers import torch_oracle
    from tests.helpers.torch_zoo import CASES

    torch_oracle.DEVICE = str(scale.device)
    right, wrong = 0, []
    for name, case in CASES.items():
        torch.manual_seed(0)
        try:
            model = torch_oracle.prepared(case.build().double(), train=False)
            batch = torch_oracle.converted(case.batch(2, 4), torch.float64)
            structure = reprune.inspect(model, [batch]).structure
            (plan,) = torch_oracle.random_plans(structure, 1)
            small, masked = reprune.apply(model, plan), reprune.mask(model, plan)
            if not case.approximate and not case.states:
                pairs = zip(torch_oracle.outputs(small, batch), torch_oracle.outputs(masked, batch), strict=True)
                for index, (one, other) in enumerate(pairs):
                    torch_oracle.assert_close(one, other, f"{name}, output {index}")
            right += 1
        except Exception as error:  # A wiring that fails is counted, and the others are tried.
            wrong.append(f"{name}: {type(error).__name__}: {str(error).splitlines()[0][:90] if str(error) else ''}")
    yield "zoo: wirings that are right", f"{right} of {len(CASES)}"
    for line in wrong:
        yield "zoo: not right", line


def ragged(scale: Scale) -> Iterator[Line]:
    """Ragged modules beside `nn.LSTM` of as many units: equal and unequal, packed and not."""
    units, features = scale.units[0], 64
    for name, sizes in {"equal": [[units], [units]], "unequal": [[units * 5 // 4], [units * 3 // 4]]}.items():
        modules = {
            "plain": nn.LSTM(features, units, 2).to(scale.device),
            "ragged": RaggedLSTM(features, sizes).to(scale.device),
        }
        x = torch.randn(scale.frames, scale.batch, features, device=scale.device)
        packed = pack_padded_sequence(x, torch.linspace(scale.frames, 1, scale.batch).long())
        for form, data in (("padded", x), ("packed", packed)):
            calls = {kind: lambda module=module, data=data: module(data) for kind, module in modules.items()}
            with torch.no_grad():
                found = milliseconds(calls, scale.device)
            times = f"{found['plain']:.2f} → {found['ragged']:.2f} ms ({found['ragged'] / found['plain']:.2f} times)"
            yield f"ragged beside nn.LSTM, {name}, {form}", times


def training(scale: Scale) -> Iterator[Line]:
    """A step of the paper's model: by itself, with statistics, and softly pruned."""
    features = 1152 if scale.device.type == "cuda" else 48
    x = torch.randint(0, 256, (scale.batch, scale.frames, features), device=scale.device).byte()
    lengths = torch.full((scale.batch,), scale.frames, device=scale.device)
    labels = (torch.rand(scale.batch, scale.classes, device=scale.device) < 0.01).float()

    def step(schedule: str | None) -> Callable[[], None]:
        torch.manual_seed(0)
        model = VideoClassifier(features, scale.classes, scale.units[0]).to(scale.device)
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-4)
        options: dict[str, Any] = {"ratio": 0.5, "method": "iss-gm"}
        pruner = None if schedule is None else Pruner(model, schedule=schedule, **options)

        def run() -> None:
            optimizer.zero_grad()
            nn.functional.binary_cross_entropy_with_logits(model(x, lengths), labels).backward()
            optimizer.step()
            if pruner is not None:
                pruner.step()

        return run

    calls = {"alone": step(None), "with statistics": step("soft:1000"), "softly pruned": step(f"soft:{scale.steps}")}
    found = milliseconds(calls, scale.device, rounds=2 * scale.steps)
    for name, value in found.items():
        yield f"training step, {name}", f"{value:.1f} ms ({value / found['alone']:.2f} times)"
    yield "training consumes", f"{1e3 * scale.batch / found['alone']:.0f} records/s"


class Words(nn.Module):
    def __init__(self, units: int) -> None:
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(1000, units), nn.LSTM(units, units, 2)
        self.out = nn.Linear(units, 1000)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.out(self.lstm(self.embedding(ids))[0])


def planning(scale: Scale) -> Iterator[Line]:
    """Calibration, plan and surgery of a word model with the default method."""
    for units in scale.units:
        model = Words(units).to(scale.device).eval()
        batches = [torch.randint(0, 1000, (35, 20), device=scale.device) for _ in range(4)]
        marks = [time.perf_counter()]
        calibration = reprune.calibrate(model, batches, verify=False)
        marks.append(time.perf_counter())
        plan = calibration.plan(0.5)
        marks.append(time.perf_counter())
        reprune.apply(model, plan)
        wait(scale.device)
        marks.append(time.perf_counter())
        parts = [later - earlier for earlier, later in itertools.pairwise(marks)]
        yield f"2 × {units} units", "observed {:.1f} s, planned {:.1f} s, cut {:.2f} s".format(*parts)


def records(scale: Scale) -> Iterator[Line]:
    """What the reader delivers, of generated videos."""
    with TemporaryDirectory() as folder:
        write_shards(Path(folder), train=scale.videos, validate=8)
        pattern = f"{folder}/train*.tfrecord"
        dataset = RecordDataset(pattern, classes=6, batch_size=scale.batch, features=dict(FEATURES), shuffle=False)
        loader = RecordLoader(dataset, workers=2)
        rates = []
        for _ in range(3):
            start = time.perf_counter()
            count = sum(len(batch.frames) for batch in loader)
            rates.append(count / (time.perf_counter() - start))
    yield "the reader delivers (two workers, small videos)", f"{median(rates):.0f} records/s"


def recipes(scale: Scale) -> Iterator[Line]:
    """Both recipes with mixed precision, on data that is made up."""
    precision = "16-mixed" if scale.device.type == "cuda" else "bf16-mixed"
    accelerator = "gpu" if scale.device.type == "cuda" else "cpu"
    common = ["--precision", precision, "--accelerator", accelerator, "--epochs", "1", "--finetune-epochs", "1"]
    from tests.helpers.made_text import write_text

    with TemporaryDirectory() as name:
        folder = Path(name)
        write_shards(folder / "videos", train=200, validate=40)
        for part, lines in (("train", 400), ("valid", 60), ("test", 60)):
            write_text(folder / f"{part}.txt", lines)
        text = [f"--{part}={folder / part}.txt" for part in ("train", "valid", "test")]
        videos = [f"--train={folder}/videos/train*.tfrecord", f"--validate={folder}/videos/validate*.tfrecord"]
        sizes = ["--features", "rgb:32,audio:16", "--classes", "6", "--hidden", "32", "--batch-size", "20"]
        for kind, arguments in {
            "youtube8m": [*videos, *sizes],
            "language-model": [*text, "--preset", "small", "--hidden", "32", "--vocabulary", "30"],
        }.items():
            command = [sys.executable, "-m", "reprune", "train", kind, *arguments, *common, f"--out={folder / kind}"]
            start = time.perf_counter()
            done = subprocess.run(command, capture_output=True, text=True)
            said = (done.stderr or done.stdout).strip().splitlines()
            outcome = f"{time.perf_counter() - start:.0f} s" if done.returncode == 0 else f"failed: {said[-1:]}"
            yield f"recipe {kind}, {precision}", outcome


PARTS = {part.__name__: part for part in (zoo, ragged, training, planning, records, recipes)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", default=",".join(PARTS), help="some of the parts, separated by commas")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    scale = Scale.of(torch.device(options.device))
    name = torch.cuda.get_device_name(scale.device) if scale.device.type == "cuda" else "CPU"
    lines: list[Line] = []
    for part in options.only.split(","):
        start = time.perf_counter()
        for line in PARTS[part](scale):
            print(f"{line[0]}: {line[1]}", flush=True)
            lines.append(line)
        print(f"  ({part}: {time.perf_counter() - start:.0f} s)", flush=True)
    print(f"\n{name}, torch {torch.__version__}\n\n| what | measured |\n|---|---|")
    for what, value in lines:
        print(f"| {what} | {value} |")


if __name__ == "__main__":
    main()
