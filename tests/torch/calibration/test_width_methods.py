"""Every kind of method on every kind of width: the plan is met exactly, whatever decided."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

import reprune
from tests.helpers.torch_oracle import check_oracle, converted, prepared
from tests.helpers.width_zoo import WIDTH_CASES, WidthCase

SOME = [WIDTH_CASES[name] for name in ("Crnn", "Grouped", "GatedConvolutions", "HeadsByView", "SelectiveScan")]


@pytest.mark.filterwarnings("ignore::reprune.core.errors.CalibrationWarning")
@pytest.mark.parametrize("method", ["reconstruct", "iss-gm", "pfa-kl", "iss-gm-structure+mean", "taylor", "fsdp"])
@pytest.mark.parametrize("case", SOME, ids=str)
def test_pruned_equals_masked(case: WidthCase, method: str) -> None:
    torch.manual_seed(0)
    model = prepared(case.build().double(), train=False)
    batches = [converted(case.batch(3, 6), torch.float64) for _ in range(3)]
    calibration = reprune.calibrate(
        model,
        batches,
        methods=[method],
        labels=lambda batch: torch.arange(3) % 2,
        loss=lambda network, batch: network(batch).square().mean(),
        scope="all",
    )
    result = calibration.prune(None if method == "pfa-kl" else 0.4, method=method)
    assert sum(result.plan.counts().values()) < sum(calibration.structure.counts().values())
    check_oracle(model, result.plan, batches[0])
    assert all(name in str(result) for name in case.free)


class Attending(nn.Module):
    """`nn.MultiheadAttention` from one sequence to a shorter one; inside, all rows of a product lie side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.other = nn.Linear(5, 8), nn.Linear(5, 8)
        self.attention, self.out = nn.MultiheadAttention(8, 4, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        memory = self.other(x[:, :4])
        return self.out(self.attention(self.enter(x), memory, memory)[0])


def test_rows_of_attention_belong_to_the_classes_of_their_sequences() -> None:
    torch.manual_seed(0)
    model, batch, classes = Attending().eval().double(), torch.randn(10, 7, 5).double(), torch.arange(10) % 3
    with torch.no_grad():
        memory = model.other(batch[:, :4])
        weights, biases = (part.chunk(3) for part in (model.attention.in_proj_weight, model.attention.in_proj_bias))
        query, key, value = (
            F.linear(x, weight, bias).unflatten(-1, (4, 2)).transpose(1, 2)
            for x, weight, bias in zip((model.enter(batch), memory, memory), weights, biases, strict=True)
        )
        heads = F.scaled_dot_product_attention(query, key, value).permute(1, 0, 2, 3).flatten(2)  # Heads × B × (T · 2)
    between = sum(
        (heads[:, classes == c].mean((1, 2)) - heads.mean((1, 2))) ** 2 * (classes == c).sum() for c in range(3)
    )
    within = sum(heads[:, classes == c].var((1, 2), correction=0) * (classes == c).sum() for c in range(3))
    plan = reprune.plan(model, [batch], 0.4, method="class-separability", labels=lambda _: classes, scope="all")
    scores = torch.tensor(plan.diagnostics.scores["attention:heads"]).double()
    expected = between / within
    torch.testing.assert_close(scores / scores.mean(), expected / expected.mean())
