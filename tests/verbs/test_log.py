"""The logger `reprune`: stages, pins and sizes for a program that asks, and nothing for one that does not."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
import torch
from torch import nn

import reprune

PROGRAM = """
import torch, reprune
from tests.verbs.test_log import Pinned, batches
reprune.prune(Pinned(), batches(), 0.5)
"""


class Pinned(nn.Module):
    """One layer that can be pruned; another one whose units are the model's output."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.GRU(3, 8), nn.GRU(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.high(self.low(x)[0])[0]
        return found


def batches() -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(5, 4, 3) for _ in range(4)]


def test_stages_pins_and_sizes_are_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="reprune"):
        result = reprune.prune(Pinned(), batches(), 0.5)
    lines = [record.getMessage() for record in caplog.records if record.name == "reprune"]
    stages = ["tracing", "rehearsing", "observing batches", "scoring units", "cutting"]
    assert [line for line in lines if line in stages] == stages
    (pin,) = (line for line in lines if line.startswith("pinned "))
    assert pin == f"pinned high:l0: {result.plan.structure.layers['high:l0'].pin}"
    assert lines[-1] == f"kept {{'low:l0': 4, 'high:l0': 4}}; {result.fidelity}"


def test_it_is_silent_by_default() -> None:
    found = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert found.stdout + found.stderr == ""


def test_warnings_are_seen_by_default() -> None:
    program = "import logging, reprune; logging.getLogger('reprune.records').warning('damaged')"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stderr == "damaged\n"
