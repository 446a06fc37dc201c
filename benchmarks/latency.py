"""Latency as a budget: what is predicted from single layers beside what the pruned model then takes, on a CPU.

    python benchmarks/latency.py            # the paper's model in PyTorch and ONNX Runtime, about five minutes
    python benchmarks/latency.py --quick    # a tenth of the frames

Weights are random: times do not depend on them. All times are the shortest of several, dense and pruned in turn, by the
clock of the one thread that computes, so that other programs do not lengthen them.
"""

from __future__ import annotations

import argparse
import time
import warnings
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from deployment import VideoClassifier
from torch import Tensor, nn

import reprune
from reprune.runtimes import open_file
from reprune.runtimes.timing import Call, shortest_ms

RATIOS = (0.25, 0.5, 0.75, 0.9)


def call_of(model: nn.Module, example: Tensor, runtime: str, path: Path) -> Call:
    if runtime == "torch":
        return partial(torch.inference_mode()(model), example)
    reprune.export(model, example, path, int8=runtime.endswith("int8"))
    return partial(open_file(path, threads=1), example.numpy())


def in_turn(first: Call, second: Call, rounds: int = 5) -> tuple[float, float]:
    times = [[shortest_ms(call, clock=time.thread_time) for call in (first, second)] for _ in range(rounds)]
    return min(one for one, _ in times), min(other for _, other in times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--runtimes", default="torch,onnxruntime")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model, example = VideoClassifier().eval(), torch.randn(1, 30 if arguments.quick else 300, 1152)
    calibration = reprune.calibrate(model, [example], methods=["magnitude"], verify=False)
    print(f"{VideoClassifier.__doc__} Input {tuple(example.shape)}, one thread\n")
    with TemporaryDirectory() as folder:
        for runtime in arguments.runtimes.split(","):
            started = time.perf_counter()
            table = reprune.measure_latency(model, example, runtime=runtime)
            took = time.perf_counter() - started
            sizes = ", ".join(f"{multiple}: {times:.2f}" for multiple, times in table.rounding)
            print(f"{table.runtime}: table measured in {took:.0f} s, dense {table.dense_ms:.2f} ms")
            print(f"round_to='auto' is {table.multiple}; time of multiples beside those of the largest: {sizes}\n")
            print(
                "| asked for | round_to | units | predicted ms | measured ms | predicted / measured | dense now, ms |"
            )
            print("|---:|---:|---:|---:|---:|---:|---:|")
            dense = call_of(model, example, runtime, Path(folder) / "dense.onnx")
            for ratio in RATIOS:
                options: dict[str, Any] = {"of": "latency", "method": "magnitude", "latency": table}
                for rounding in (1, "auto"):
                    result = calibration.prune(ratio, round_to=rounding, **options)
                    pruned = call_of(result.model, example, runtime, Path(folder) / "pruned.onnx")
                    before, measured = in_turn(dense, pruned)
                    counts = result.plan.counts()
                    predicted = table(counts)
                    print(
                        f"| {ratio:.0%} | {rounding} | {' + '.join(map(str, counts.values()))} | {predicted:.2f} | "
                        f"{measured:.2f} | {predicted / measured:.2f} | {before:.2f} |",
                        flush=True,
                    )
            print()


if __name__ == "__main__":
    main()
