"""The contract of all adapters, on PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from tests.contract.trust import TrustContract

T, F = 5, 3


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.both = nn.LSTM(F, 6, batch_first=True, bidirectional=True)
        self.top = nn.LSTM(12, 8, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.top(self.both(x)[0])[0][:, -1])


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.LSTM(F, 6, batch_first=True)
        self.second = nn.LSTM(6, 6, batch_first=True)
        self.head = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, _ = self.first(x)
        return self.head(first + self.second(first)[0])


class OpenEnd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.LSTM(F, 6, batch_first=True)
        self.second = nn.LSTM(6, 5, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x)[0])[0]


def random_weights(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    return model.eval()


class TestTorch(TrustContract):
    def chain(self) -> Any:
        return random_weights(Chain())

    def residual(self) -> Any:
        return random_weights(Residual())

    def open_end(self) -> Any:
        return random_weights(OpenEnd())

    def batches(self) -> list[Any]:
        generator = torch.Generator().manual_seed(5)
        return [torch.randn(16, T, F, generator=generator) for _ in range(3)]

    def outputs(self, model: Any, batch: Any) -> list[Any]:
        with torch.no_grad():
            return [model(batch).numpy()]

    def weights(self, model: Any) -> list[Any]:
        return [parameter.detach().numpy().copy() for parameter in model.parameters()]

    def set_weights(self, model: Any, values: Sequence[Any]) -> None:
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), values, strict=True):
                parameter.copy_(torch.from_numpy(value))
