"""What applying a plan copies."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import reprune


def test_what_is_cut_is_not_copied_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the bias of the head stays as it is: of all else the model is made of there is one smaller copy."""
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    plan = reprune.plan(model, [torch.randn(4, 3)], 0.5, method="magnitude", scope="all")
    copied, plain = [], nn.Parameter.__deepcopy__
    monkeypatch.setattr(nn.Parameter, "__deepcopy__", lambda self, memo: copied.append(self) or plain(self, memo))
    small = reprune.apply(model, plan)
    assert len(copied) == 1
    assert copied[0] is model[2].bias
    assert small[0].weight.shape == (4, 3)
