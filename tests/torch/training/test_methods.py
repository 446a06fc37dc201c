"""Every method with every schedule ends in a smaller model that equals the masked last state of the one trained."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from reprune.core import methods as core
from reprune.core.errors import UnsupportedModelError
from reprune.core.methods import TRAINING_METHODS
from reprune.torch import Pruner, mask
from reprune.torch.surgery.expand import expand
from reprune.torch.tracing.recording import tensors_in
from reprune.torch.tracing.running.calling import call
from tests.helpers.torch_oracle import assert_close, converted, outputs, prepared
from tests.helpers.torch_zoo import CASES
from tests.helpers.torch_zoo.case import Case

sys.path.append(str(Path(__file__).parents[3] / "examples"))
from recurrent_highway import RecurrentHighway

# All but those that look at the gradient of the loss, which prune after training.
METHODS = [*(name for name in core.METHODS if not core.get_method(name).needs_loss), *TRAINING_METHODS]
SCHEDULES = ["after", "soft:4", "fractional:4", "gradual:4"]
STEPS = 13


class Tagger(nn.Module):
    """A bidirectional layer under a stack of two others, read by a head."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.LSTM(3, 6, bidirectional=True, batch_first=True)
        self.stack = nn.GRU(12, 8, num_layers=2, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.stack(self.both(x)[0])[0])
        return out


def train(model: nn.Module, method: str, schedule: str, x: Tensor, y: Tensor, *, ratio: float = 0.5) -> Pruner:
    """The loop of the documentation."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    pruner = Pruner(
        model, ratio=ratio, method=method, schedule=schedule, optimizer=optimizer, total_steps=STEPS, seed=3
    )
    for _ in range(STEPS):
        optimizer.zero_grad()
        pruner.label(torch.arange(len(x)) % 2)
        loss = (model(x) - y).square().mean() + pruner.loss()
        loss.backward()
        optimizer.step()
        pruner.step()
    return pruner


@pytest.mark.filterwarnings("ignore::reprune.core.errors.CalibrationWarning")
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("method", METHODS)
def test_equals_the_masked_last_state(method: str, schedule: str) -> None:
    torch.manual_seed(0)
    model = Tagger().double()
    dense, units = Tagger().double(), {"both:l0": 6, "both:l0_reverse": 6, "stack:l0": 8, "stack:l1": 8}
    x, y = torch.randn(4, 7, 3, dtype=torch.float64), torch.randn(4, 7, 2, dtype=torch.float64)
    pruner = train(model, method, schedule, x, y)
    small = pruner.finish().eval()
    model.eval()
    plan = pruner.plan
    assert plan is not None
    assert plan.structure.counts() == units
    assert sum(plan.counts().values()) == 14
    assert small.both.weight_ih_l0_reverse.shape[0] == 4 * len(plan.kept["both:l0_reverse"])  # type: ignore[union-attr]
    test = torch.randn(3, 9, 3, dtype=torch.float64)
    masked = model if schedule.startswith("gradual") else mask(model, plan)
    torch.testing.assert_close(small(test), masked(test), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(small(test), expand(dense, small, plan).eval()(test), rtol=1e-10, atol=1e-12)


@pytest.mark.filterwarnings("ignore::reprune.core.errors.CalibrationWarning")
@pytest.mark.parametrize("schedule", ["after", "gradual:4"])
@pytest.mark.parametrize("method", ["iss-gm", "reconstruct", *TRAINING_METHODS])
def test_a_cell_written_by_hand(method: str, schedule: str) -> None:
    torch.manual_seed(0)
    model = RecurrentHighway(words=11, embedding=4, units=8, depth=2)
    words = torch.randint(0, 11, (6, 3))
    pruner = train(model, method, schedule, words, torch.randn(6, 3, 11))
    small = pruner.finish().eval()
    assert pruner.plan is not None
    assert [len(kept) for kept in pruner.plan.kept.values()] == [4]
    masked = model if schedule.startswith("gradual") else mask(model, pruner.plan)
    torch.testing.assert_close(small(words), masked.eval()(words), rtol=1e-5, atol=1e-6)


# In training, weight drop leaves a module without weights that could be looked at, and computed weights are to be made
# plain first; both is said.
REFUSED = ("AwdLanguageModel", "StackedWeightDrop", "WeightNorm", "WeightNormRows")
FREE = [c for c in CASES.values() if not (c.approximate or c.pins or c.states or c.name in REFUSED)]


def test_computed_weights_are_to_be_made_plain_first() -> None:
    model = CASES["WeightNorm"].build()
    with pytest.raises(UnsupportedModelError, match=r"out \(Linear\).*remove_weight_norm\(module, 'weight'\)"):
        Pruner(model)
    torch.nn.utils.remove_weight_norm(model.get_submodule("out"))
    Pruner(model)


@pytest.mark.filterwarnings("ignore::reprune.core.errors.CalibrationWarning")
@pytest.mark.parametrize("case", FREE, ids=str)
def test_every_wiring_is_observed_while_it_trains(case: Case) -> None:
    torch.manual_seed(0)
    model = prepared(case.build().double(), train=True)
    batches = [converted(case.batch(6, 6), torch.float64) for _ in range(3)]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    pruner = Pruner(model, ratio=0.5, method="reconstruct", schedule="soft:2", optimizer=optimizer)
    for step in range(4):
        optimizer.zero_grad()
        found = [t for t in tensors_in(call(model, batches[step % 3])) if t.is_floating_point()]
        torch.stack([t.square().mean() for t in found]).sum().backward()
        optimizer.step()
        pruner.step()
    small = pruner.finish().eval()
    assert pruner.plan is not None
    masked = mask(model, pruner.plan).eval()
    for one, two in zip(outputs(small, batches[0]), outputs(masked, batches[0]), strict=True):
        assert_close(one, two, "output")
