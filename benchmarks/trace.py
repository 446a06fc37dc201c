"""Time of tracing, rehearsal, planning and surgery for a language model of 60 million parameters.

python benchmarks/trace.py [--tied] [--batch 20] [--steps 35] [--profile]
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import time

import torch
from torch import nn

from reprune.core.decide import free_blocks
from reprune.core.rehearsal import random_plan
from reprune.torch import apply, trace
from reprune.torch.surgery.verify import rehearse, verify
from reprune.torch.tracing.record import record


class LanguageModel(nn.Module):
    """Embedding, two LSTM layers of 1500 units, softmax over 10,000 words."""

    def __init__(self, words: int = 10_000, units: int = 1500, *, tied: bool = False) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Embedding(words, units), nn.Linear(units, words)
        self.rnn = nn.LSTM(units, units, 2, dropout=0.65)
        if tied:
            self.decoder.weight = self.encoder.weight

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        output, _ = self.rnn(self.encoder(words))
        return self.decoder(output).log_softmax(-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tied", action="store_true")
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--steps", type=int, default=35)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(0)
    model = LanguageModel(tied=options.tied).eval()
    words = torch.randint(0, 10_000, (options.steps, options.batch))
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {torch.get_num_threads()} threads")
    profile = cProfile.Profile()
    started = time.perf_counter()
    with torch.no_grad():
        model(words)
    print(f"one forward pass    {time.perf_counter() - started:6.2f} s")
    if options.profile:
        profile.enable()
    trace(model, words)
    times = [time.perf_counter()]
    found = record(model, words)
    times.append(time.perf_counter())
    structure = rehearse(found, model, words)
    times.append(time.perf_counter())
    blocks = [[name for group in entry for name in group] for entry in free_blocks(structure)]
    plan = random_plan(structure, blocks)
    small = apply(model, plan)
    times.append(time.perf_counter())
    verify(plan, found, model, small, words, None)
    times.append(time.perf_counter())
    profile.disable()
    for label, start, end in zip(("trace", "rehearsal", "surgery", "final check"), times, times[1:], strict=False):
        print(f"{label:<20}{end - start:6.2f} s")
    print(f"{'in all':<20}{times[-1] - times[0]:6.2f} s")
    if options.profile:
        pstats.Stats(profile).sort_stats("cumulative").print_stats(30)


if __name__ == "__main__":
    main()
