"""Cross entropy with labels and what is kept of a dense model's answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from reprune.core.answers.likely import CLASSES, DRAWN, FEW, KEPT, LOGS, packed
from reprune.torch.training.likely import Likely, likely, shared_cross_entropy

LABELS = torch.tensor([3, -100, 0, 299, 7])


def logits(classes: int, seed: int) -> Tensor:
    return 2 * torch.randn(5, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def read(dense: Tensor, seed: int = 0) -> Likely:
    """As it is after it was stored."""
    found = likely(dense, np.random.default_rng(seed))
    arrays = packed(found.classes.numpy(), found.logs.numpy(), dense.shape[-1])
    return Likely(torch.from_numpy(arrays[CLASSES].astype("int64")), torch.from_numpy(arrays[LOGS].astype("float32")))


@pytest.mark.parametrize("classes", [300, 70_000])
def test_likely_classes_are_kept_and_others_stand_for_the_rest(classes: int) -> None:
    dense = logits(classes, 1)
    answers, chances = read(dense), dense.softmax(-1)
    for row in range(5):
        best = chances[row].argsort(descending=True)[:KEPT]
        kept = dict(zip(answers.classes[row, :KEPT].tolist(), answers.logs[row].exp().tolist(), strict=False))
        assert kept.keys() == set(best.tolist())
        assert kept == pytest.approx({int(place): float(chances[row, place]) for place in best}, rel=2e-3)
        assert not kept.keys() & set(answers.classes[row, KEPT:].tolist())
        each = (1 - float(chances[row, best].sum())) / DRAWN
        assert answers.logs[row, KEPT:].exp().tolist() == pytest.approx([each] * DRAWN, rel=5e-3)


def test_over_draws_the_whole_answer_is_kept() -> None:
    dense, draws = logits(300, 1)[:1].expand(4000, 300), 4000
    answers = read(dense)
    mean = torch.zeros(draws, 300).scatter_add(-1, answers.classes, answers.logs.exp()).mean(0)
    torch.testing.assert_close(mean, dense[0].softmax(-1).float(), rtol=0.1, atol=2e-4)


def test_the_loss_is_shared() -> None:
    own, dense = logits(300, 0), logits(300, 1)
    answers = read(dense)
    found = shared_cross_entropy(own, LABELS, answers, 0.25)
    wanted = torch.zeros(5, 300).scatter_add(-1, answers.classes, answers.logs.softmax(-1)).double()
    text = functional.cross_entropy(own, LABELS, reduction="sum")
    taught = functional.cross_entropy(own, wanted, reduction="none")[LABELS >= 0].sum()
    assert found.item() == pytest.approx((0.75 * text + 0.25 * taught).item(), rel=1e-6)


def test_of_few_classes_all_are_kept() -> None:
    own, dense, labels = logits(FEW, 0), logits(FEW, 1), LABELS % FEW
    found = shared_cross_entropy(own, labels, likely(dense, np.random.default_rng(0)), 0.3)
    text = functional.cross_entropy(own, labels, reduction="sum")
    taught = functional.cross_entropy(own, dense.softmax(-1), reduction="sum")
    assert found.item() == pytest.approx((0.7 * text + 0.3 * taught).item(), rel=1e-6)


def test_the_gradient_is_that_of_the_value() -> None:
    own, answers = logits(300, 0).requires_grad_(), read(logits(300, 1))
    assert torch.autograd.gradcheck(lambda x: shared_cross_entropy(x, LABELS, answers, 0.4), own)


def test_a_row_without_label_has_no_gradient_and_certainty_no_infinite_one() -> None:
    own = 200 * logits(300, 0).float()
    own.requires_grad_()
    value = shared_cross_entropy(own, LABELS, read(200 * logits(300, 1)), 0.5)
    value.backward()
    assert own.grad is not None
    assert value.isfinite()
    assert own.grad.isfinite().all()
    assert not own.grad[1].any()
