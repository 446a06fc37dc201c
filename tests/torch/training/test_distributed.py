"""Two processes that train one model prune it alike, and as one process does that sees what both see."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from reprune.core.errors import RecipeError
from reprune.core.evidence.moments import Moments
from reprune.torch import Pruner
from reprune.torch.training.distributed import all_reduced
from tests.helpers.processes import in_two_processes, meet

STEPS = 8
METHODS = ["iss-gm", "reconstruct", "iss-group-lasso", "neuron-selection"]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 6, num_layers=2, batch_first=True)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.lstm(x)[0])
        return out


def batch(step: int) -> Tensor:
    return torch.randn(8, 6, 3, generator=torch.Generator().manual_seed(step), dtype=torch.float64)


def train(rank: int, ranks: int, method: str, seed: int = 0) -> Pruner:
    torch.manual_seed(seed)
    model: nn.Module = Net().double()
    pruner = Pruner(model, ratio=0.5, method=method, schedule="soft:3")
    wrapped = DistributedDataParallel(model) if ranks > 1 else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(STEPS):
        mine = batch(step).chunk(ranks)[rank]
        optimizer.zero_grad()
        ((wrapped(mine) - mine[..., :2]).square().mean() + pruner.loss()).backward()
        optimizer.step()
        pruner.step()
    pruner.finish()
    return pruner


def work(rank: int, folder: str) -> None:
    meet(rank, folder)
    found: dict[str, Any] = {}
    for method in METHODS:
        pruner = train(rank, 2, method)
        assert pruner.plan is not None
        found[method] = dict(pruner.plan.kept)
        found[f"{method} weight"] = float(sum(p.double().sum() for p in pruner.model.parameters()))
    rows = batch(0).reshape(-1, 3)
    moments = Moments("rows", 3)
    if rank == 0:  # The other process has seen nothing.
        moments.update(rows)
    state = all_reduced(moments, torch.device("cpu"))
    found["alone"] = [state["count"], state["mean"].tolist(), state["scatter"].tolist()]
    moments = Moments("rows", 3)
    moments.update(rows[rank * 20 :] if rank else rows[:20])
    state = all_reduced(moments, torch.device("cpu"))
    found["shared"] = [state["count"], state["mean"].tolist(), state["scatter"].tolist()]
    for name, act in {"differ": differ, "gradual": gradual}.items():
        with pytest.raises(RecipeError) as caught:
            act(rank)
        found[name] = str(caught.value)
    Path(folder, f"{rank}.json").write_text(json.dumps(found))


def differ(rank: int) -> None:
    torch.manual_seed(rank)
    model = Net().double()
    pruner = Pruner(model, method="magnitude", schedule="soft:1")
    model(batch(0))
    pruner.step()


def gradual(rank: int) -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Pruner(model, schedule="gradual:1", total_steps=2, optimizer=optimizer).step()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("two")
    in_two_processes(work, str(folder))
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.skipif(sys.platform == "win32", reason="gloo meets in a file")
@pytest.mark.filterwarnings("ignore::reprune.core.errors.CalibrationWarning")
@pytest.mark.parametrize("method", METHODS)
def test_same_plan_on_both_and_in_one_process(method: str, both: list[dict[str, Any]]) -> None:
    assert both[0][method] == both[1][method]
    assert both[0][f"{method} weight"] == pytest.approx(both[1][f"{method} weight"], rel=1e-12)
    if method != "neuron-selection":  # Gates draw one sample per pass, so two halves are not one whole.
        pruner = train(0, 1, method)
        assert pruner.plan is not None
        assert both[0][method] == dict(pruner.plan.kept)


def test_moments_of_both(both: list[dict[str, Any]]) -> None:
    rows = batch(0).reshape(-1, 3)
    mean = rows.mean(0)
    centred = rows - mean
    for found in both:
        for name in ("alone", "shared"):
            count, means, scatter = found[name]
            assert count == 48
            torch.testing.assert_close(torch.tensor(means, dtype=torch.float64), mean)
            torch.testing.assert_close(torch.tensor(scatter, dtype=torch.float64), centred.T @ centred)


def test_what_cannot_work_says_so(both: list[dict[str, Any]]) -> None:
    for found in both:
        assert "Processes [1] would remove other units than process 0" in found["differ"]
        assert "DistributedDataParallel" in found["gradual"]
