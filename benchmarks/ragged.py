"""Speed of the ragged modules beside PyTorch's own, measured alternately in one run; medians.

    python benchmarks/ragged.py [--rounds 15] [--threads 2] [--batch 16]

Three pairs: equal sizes in one fused call; the same with every layer and direction run by itself, as under
observation (what uneven sizes cost at most); and an uneven stack beside the equal one with as many multiplications.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import nn

from reprune.torch.ragged.modules import RaggedLSTM, unroll

FEATURES = 64


def macs(features: int, sizes: list[list[int]]) -> int:
    """Multiplications of an LSTM stack per time step and sequence."""
    total = 0
    for layer in sizes:
        total += sum(4 * units * (features + units) for units in layer)
        features = sum(layer)
    return total


def equal_twin(sizes: list[list[int]]) -> nn.LSTM:
    """The equal-size `nn.LSTM` of the same depth whose multiplications come nearest."""
    layers, directions = len(sizes), len(sizes[0])
    wanted = macs(FEATURES, sizes)
    units = min(range(1, 1024), key=lambda n: abs(macs(FEATURES, [[n] * directions] * layers) - wanted))
    return nn.LSTM(FEATURES, units, layers, bidirectional=directions == 2)


def call(module: nn.Module, x: torch.Tensor, training: bool, observed: bool = False) -> Callable[[], None]:

    def run() -> None:
        with torch.set_grad_enabled(training), module.observe(ignore) if observed else nullcontext():
            output, _ = module(x)
            if training:
                output.sum().backward()

    return run


def medians(calls: list[Callable[[], None]], rounds: int) -> list[float]:
    """Milliseconds per call. The calls take turns, so that whatever else runs slows all of them."""
    times: list[list[float]] = [[] for _ in calls]
    for number in range(rounds + 2):
        for entry, run in zip(times, calls, strict=True):
            start = time.perf_counter()
            run()
            if number >= 2:
                entry.append(1000 * (time.perf_counter() - start))
    return [statistics.median(entry) for entry in times]


def ignore(*_: object) -> None:
    """An observer that wants nothing."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    threads, batch, rounds = options.threads, options.batch, options.rounds
    print(f"torch {torch.__version__}, {threads} threads, batch {batch}, medians of {rounds} in ms")
    print(f"{'':44}{'steps':>6}{'mode':>7}{'nn.LSTM':>10}{'ragged':>10}{'ratio':>8}")
    for name, sizes in {
        "2 x 256": [[256], [256]],
        "2 x 128, both directions": [[128, 128], [128, 128]],
        "320 + 192": [[320], [192]],
        "(160, 96) + (128, 128)": [[160, 96], [128, 128]],
        "(160, 96) + (80, 150)": [[160, 96], [80, 150]],
        "(72, 56) + (66, 60)": [[72, 56], [66, 60]],
        "(36, 28) + (33, 30)": [[36, 28], [33, 30]],
        "(17, 15) + (16, 14)": [[17, 15], [16, 14]],
    }.items():
        even = len({size for layer in sizes for size in layer}) == 1
        twin = equal_twin(sizes)
        module = unroll(twin) if even else RaggedLSTM(FEATURES, sizes)
        for steps, training in ((1, False), (100, False), (100, True)):
            x = torch.randn(steps, options.batch, FEATURES)
            pairs = [call(twin, x, training), call(module, x, training)]
            modes = ["fused" if even else f"uneven beside {twin.num_layers} x {twin.hidden_size}"]
            if even:
                pairs.append(call(module, x, training, observed=True))
                modes.append("piece by piece")
            base, *others = medians(pairs, options.rounds * (10 if steps == 1 else 1))
            for mode, other in zip(modes, others, strict=True):
                kind = "train" if training else "infer"
                print(f"{name + ', ' + mode:44}{steps:6}{kind:>7}{base:10.2f}{other:10.2f}{other / base:8.2f}")


if __name__ == "__main__":
    main()
