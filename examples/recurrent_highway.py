"""Prune a recurrent highway network, a cell written by hand out of layers and gates.

    python examples/recurrent_highway.py

The state is found by following it: weights that are applied again and again to what they helped to produce read it, and
what is added to it or gates it goes with its units. Nothing has to be declared.
"""

from __future__ import annotations

import torch
from torch import nn

import reprune


class RecurrentHighway(nn.Module):
    """A language model whose state passes several highway layers in each step (Zilly et al., 2017)."""

    def __init__(self, words: int, embedding: int, units: int, depth: int) -> None:
        super().__init__()
        self.units = units
        self.embedding = nn.Embedding(words, embedding)
        self.read = nn.Linear(embedding, 2 * units, bias=False)
        self.layers = nn.ModuleList([nn.Linear(units, 2 * units) for _ in range(depth)])
        self.decoder = nn.Linear(units, words)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        state = torch.zeros(words.size(1), self.units)
        states = []
        for step in self.read(self.embedding(words)):
            for depth, layer in enumerate(self.layers):
                candidate, transform = (layer(state) + (step if depth == 0 else 0)).chunk(2, dim=-1)
                gate = torch.sigmoid(transform)
                state = gate * torch.tanh(candidate) + (1 - gate) * state
            states.append(state)
        return self.decoder(torch.stack(states))


def main() -> None:
    torch.manual_seed(0)
    model = RecurrentHighway(words=200, embedding=32, units=64, depth=4).eval()
    batches = [torch.randint(0, 200, (20, 8)) for _ in range(4)]
    print(reprune.inspect(model, batches))
    result = reprune.prune(model, batches, ratio=0.5, method="iss-gm")
    print(result)
    words = torch.randint(0, 200, (30, 2))
    masked = reprune.mask(model, result.plan)
    with torch.no_grad():
        difference = (result.model(words) - masked(words)).abs().max()
    print(f"largest difference from the masked model: {difference:.1e}")


if __name__ == "__main__":
    main()
