"""Cross entropy with labels and a dense model's most likely classes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from reprune.core.answers.likely import CLASSES, FEW, KEPT, LOGS, packed
from reprune.torch.training.likely import Likely, likely, shared_cross_entropy

LABELS = torch.tensor([3, -100, 0, 299, 7])


def logits(classes: int, seed: int) -> Tensor:
    return 4 * torch.randn(5, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def read(dense: Tensor) -> Likely:
    """As it is after it was stored."""
    found = likely(dense)
    arrays = packed(found.classes.numpy(), found.logs.numpy(), dense.shape[-1])
    return Likely(torch.from_numpy(arrays[CLASSES].astype("int64")), torch.from_numpy(arrays[LOGS].astype("float32")))


@pytest.mark.parametrize("classes", [300, 70_000])
def test_of_many_classes_those_that_count_are_kept(classes: int) -> None:
    """The value is worked out over classes one by one, with the rest as one class."""
    own, dense, labels = logits(classes, 0), logits(classes, 1), LABELS
    found = shared_cross_entropy(own, labels, read(dense), 0.25)
    chances, answers, total = own.softmax(-1), dense.softmax(-1), 0.0
    for row in (0, 2, 3, 4):
        kept = answers[row].argsort(descending=True)[:KEPT]
        taught = -sum(answers[row, c] * chances[row, c].log() for c in kept)
        taught -= (1 - answers[row, kept].sum()) * (1 - chances[row, kept].sum()).log()
        total += 0.25 * taught - 0.75 * chances[row, labels[row]].log()
    assert found.item() == pytest.approx(float(total), rel=1e-3)  # answers are stored in 16 bits


def test_of_few_classes_all_are() -> None:
    own, dense, labels = logits(FEW, 0), logits(FEW, 1), LABELS % FEW
    found = shared_cross_entropy(own, labels, likely(dense), 0.3)
    text = functional.cross_entropy(own, labels, reduction="sum")
    taught = functional.cross_entropy(own, dense.softmax(-1), reduction="sum")
    assert found.item() == pytest.approx((0.7 * text + 0.3 * taught).item(), rel=1e-6)


def test_the_gradient_is_that_of_the_value() -> None:
    own, answers = logits(300, 0).requires_grad_(), read(logits(300, 1))
    assert torch.autograd.gradcheck(lambda x: shared_cross_entropy(x, LABELS, answers, 0.4), own)


def test_the_dense_model_itself_is_best() -> None:
    dense = logits(300, 1).requires_grad_()
    shared_cross_entropy(dense, LABELS, likely(dense.detach()), 1.0).backward()
    assert dense.grad is not None
    assert dense.grad.abs().max() < 1e-6


def test_a_row_without_label_has_no_gradient_and_certainty_no_infinite_one() -> None:
    own = 200 * logits(300, 0).float()
    own.requires_grad_()
    value = shared_cross_entropy(own, LABELS, likely(200 * logits(300, 1)), 0.5)
    value.backward()
    assert own.grad is not None
    assert value.isfinite()
    assert own.grad.isfinite().all()
    assert not own.grad[1].any()
