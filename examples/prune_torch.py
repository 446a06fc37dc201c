"""Train a small PyTorch classifier, remove half of its hidden units, fine-tune what is left.

    pip install '.[torch]'
    python examples/prune_torch.py

The class of a sequence is the sign that it carried at the one step that was marked: something to remember.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import reprune


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.both = nn.LSTM(4, 32, batch_first=True, bidirectional=True)
        self.top = nn.LSTM(64, 48, batch_first=True)
        self.head = nn.Linear(48, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.top(self.both(x)[0])[0][:, -1])


def sequences(count: int, seed: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 20, 4, generator=random)
    marked = torch.randint(0, 20, (count,), generator=random)
    x[..., 0] = torch.arange(20) == marked[:, None]
    return x, (x[torch.arange(count), marked, 1] > 0).long()


def fit(model: nn.Module, x: Tensor, y: Tensor, epochs: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return (model(x).argmax(1) == y).float().mean().item()


def main(count: int = 4096, epochs: int = 6) -> None:
    torch.manual_seed(0)
    x, y = sequences(count, seed=0)
    test = sequences(1024, seed=1)
    model = Classifier()
    fit(model, x, y, epochs)

    batches = x[:1024].split(64)
    print(reprune.inspect(model, batches))
    result = reprune.prune(model, batches, ratio=0.5)
    print(result)

    print("dense", accuracy(model, *test))
    print("pruned", accuracy(result.model, *test))
    fit(result.model, x, y, epochs=2)
    print("fine-tuned", accuracy(result.model, *test))
    result.save("small")


if __name__ == "__main__":
    main()
