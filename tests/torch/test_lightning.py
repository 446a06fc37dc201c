"""`PruningCallback` does in Lightning what a plain loop does."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from reprune.core.answers.divergence import apart
from reprune.recipes.run.quiet import quiet
from reprune.torch import Pruner
from reprune.torch.lightning import PruningCallback, TeachingCallback


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 6, num_layers=2, batch_first=True)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.lstm(x)[0][:, -1])
        return out


class Module(pl.LightningModule):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        x, y = batch
        return (self.model(x) - y).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def data(batch_size: int) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(*shape, generator=generator) for shape in ((24, 5, 3), (24, 2)))
    return DataLoader(TensorDataset(x, y), batch_size=batch_size)


def start() -> tuple[Net, Pruner]:
    torch.manual_seed(0)
    model = Net()
    return model, Pruner(model, torch.randn(2, 5, 3), ratio=0.5, schedule="soft:2")


def fit(model: nn.Module, pruner: Pruner, folder: Path, *, batch_size: int = 4, accumulate: int = 1) -> None:
    with quiet():
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=1,
            callbacks=[PruningCallback(pruner)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            accumulate_grad_batches=accumulate,
            default_root_dir=folder,
        )
        trainer.fit(Module(model), data(batch_size))


def test_equals_a_plain_loop(tmp_path: Path) -> None:
    model, pruner = start()
    fit(model, pruner, tmp_path)
    plain, other = start()
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-2)
    for x, y in data(4):
        optimizer.zero_grad()
        loss = (plain(x) - y).square().mean() + other.loss()
        loss.backward()
        optimizer.step()
        other.step()
    assert pruner.steps == other.steps == 6
    expected = other.finish().state_dict()
    for name, tensor in pruner.finish().state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)


def test_accumulated_batches_are_one_step(tmp_path: Path) -> None:
    model, pruner = start()
    fit(model, pruner, tmp_path, accumulate=3)
    assert pruner.steps == 2


def test_teaching_is_a_share_of_the_loss() -> None:
    torch.manual_seed(0)
    dense, small = Net(), Net()
    twin, data = deepcopy(small), TensorDataset(torch.randn(24, 5, 3), torch.randn(24, 2))
    optimizer = torch.optim.Adam(twin.parameters(), lr=1e-2)
    for start in range(0, 24, 8):
        x, y = data[start : start + 8]
        found = twin(x)
        with torch.no_grad():
            wanted = dense.eval()(x)
        loss = 0.75 * (found - y).square().mean() + 0.25 * 2.0 * apart(found, wanted, "kl")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    callback = TeachingCallback(small, dense, 0.25, divergence="kl", scale=2.0)
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    with quiet():
        trainer = pl.Trainer(max_epochs=1, accelerator="cpu", callbacks=[callback], **options)
        trainer.fit(Module(small), DataLoader(data, batch_size=8))
    for one, other in zip(small.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert all(weight.grad is None for weight in dense.parameters())
