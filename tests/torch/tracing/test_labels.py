"""Labels beside storages, and classes of them, against the plainest ways to work them out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from reprune.torch.tracing.labels import (
    NONE,
    TAG,
    Couplings,
    ShadowMemory,
    compact,
    has_storage,
    lines,
    squeeze_constant,
    storage_id,
    unit_ids,
    varies,
)

T, B, H = 3, 2, 4
LINE = torch.arange(1, H + 1)
View = Callable[[torch.Tensor], torch.Tensor]
VIEWS: list[View] = [
    lambda x: x,
    lambda x: x.view(T * B, H),
    lambda x: x.view(T, B * H),
    lambda x: x.view(1, T, 1, B, H),
    lambda x: x.view(4, 6),
    lambda x: x.transpose(0, 1),
    lambda x: x.transpose(1, 2),
    lambda x: x.view(-1),
    lambda x: x[1:],
    lambda x: x[:, 1],
    lambda x: x[..., 1:],
    lambda x: x[..., :1],
    lambda x: x.view(-1)[3 : 3 + H],
    lambda x: x.view(-1)[3 : 3 + 2 * H].view(2, H),
    lambda x: x.view(-1)[5],
    lambda x: x.view(-1)[:0],
    lambda x: x.as_strided((B, T, H), (1, 2, 3), 2),
    lambda x: x.diagonal(dim1=0, dim2=2),
    lambda x: x[:1].expand(5, B, H),
    lambda x: x[1, 0].expand(2, 2, H),
]
WRITES: dict[str, list[tuple[View, torch.Tensor | None]]] = {
    "a line for all": [(lambda x: x, LINE)],
    "a line for each step": [(lambda x: x, torch.arange(1, T * H + 1).view(T, 1, H))],
    "a line of one": [(lambda x: x, torch.full((1,), 7))],
    "one for each step": [(lambda x: x, torch.arange(1, T + 1).view(T, 1, 1))],
    "an arrangement that is not that of the memory": [(lambda x: x.transpose(1, 2), LINE.view(H, 1))],
    "as wide as long": [(lambda x: x.view(6, 4).t(), torch.arange(1, 7))],
    "a part": [(lambda x: x[:, 1:], LINE)],
    "one": [(lambda x: x[1, 1, 2], torch.tensor(9))],
    "a part of what has some": [(lambda x: x, LINE), (lambda x: x[1:, :, 2:], torch.tensor([8, 9]))],
    "a part that loses them": [(lambda x: x, LINE), (lambda x: x[1:, :, 2:], None)],
    "all, after a part": [(lambda x: x[1:], LINE), (lambda x: x, LINE + 9)],
    "all, lost after a part": [(lambda x: x[1:], LINE), (lambda x: x, None)],
    "all, lost": [(lambda x: x, LINE), (lambda x: x, None)],
    "a repeated part": [(lambda x: x[1].expand(3, B, H), LINE)],
    "nothing": [(lambda x: x[:0], torch.zeros(0, B, H, dtype=torch.int64))],
}


@pytest.mark.parametrize("writes", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.int16])
def test_labels_are_found_where_they_were_written(
    writes: list[tuple[View, torch.Tensor | None]], dtype: torch.dtype
) -> None:
    """The tensor itself holds its labels as values: in any view the two are the same."""
    for view in VIEWS:
        memory, values = ShadowMemory(), torch.zeros(T, B, H, dtype=dtype)
        assert memory.get(values) is None
        memory.set(values, None)
        for part, labels in writes:
            memory.set(part(values), labels)
            # Of memory that is repeated, one entry is written and all of them show it.
            target = part(values)
            target = target[:1] if target.numel() and 0 in target.stride() else target
            target.copy_(torch.zeros(1) if labels is None else labels.expand(target.shape))
        found = memory.get(view(values))
        assert torch.equal(torch.zeros_like(view(values)) if found is None else found.to(dtype), view(values))


def test_labels_of_rows_stay_one_line() -> None:
    """Scores of a language model: neither rows in another arrangement, nor what is kept, is written out."""
    memory, scores = ShadowMemory(), torch.zeros(T, B, H)
    memory.set(scores, LINE.expand(T, B, H))
    for view in (scores, scores.view(T * B, H), scores.view(1, T, B, H), scores.view(T, 1, B, H)):
        found = memory.get(view)
        assert found is not None
        assert found.shape == view.shape
        assert compact(found).shape == (*[1] * (view.ndim - 1), H)
    memory.set(scores, torch.arange(1, T * H + 1).view(T, 1, H))
    found = memory.get(scores)
    assert found is not None
    assert compact(found).shape == (T, 1, H)
    single = torch.zeros(1, H)
    memory.set(single.as_strided((1, H), (99, 1)), LINE)
    found = memory.get(single.view(1, 1, H))
    assert found is not None
    assert torch.equal(found, LINE.view(1, 1, H))


def test_labels_are_copies() -> None:
    memory, one, labels = ShadowMemory(), torch.zeros(2, H), LINE.clone()
    memory.set(one, labels)
    labels.zero_()
    found = memory.get(one)
    assert found is not None
    assert torch.equal(found, LINE.expand(2, H))


def test_memory_is_not_given_to_another_tensor_while_its_labels_are_known() -> None:
    memory, one = ShadowMemory(), torch.zeros(1000)
    memory.set(one, torch.arange(1, 1001))
    address = one.data_ptr()
    del one
    others = [torch.zeros(1000) for _ in range(20)]
    assert address not in {other.data_ptr() for other in others}
    assert all(memory.get(other) is None for other in others)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_tensors_without_a_memory_of_their_own_have_no_labels() -> None:
    memory = ShadowMemory()
    nested = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])
    for tensor in (torch.eye(3).to_sparse(), nested):
        memory.set(tensor, LINE)
        memory.hold(tensor)
        assert memory.get(tensor) is None
        assert not has_storage(tensor)
        assert storage_id(tensor) == 0
    dense = torch.eye(3)
    assert has_storage(dense)
    assert storage_id(dense) == storage_id(dense[1:]) != storage_id(dense.clone())


SEVERAL = {
    "all different": torch.arange(1, 25).view(2, 3, 4),
    "a line": LINE.expand(2, 3, 4),
    "a line for each of two": torch.tensor([[[1, 2, 3, 4]], [[5, 6, 7, 8]]]).expand(2, 3, 4),
    "written out": LINE.repeat(2, 3, 1),
    "with holes": torch.tensor([[0, 2, 0, 4], [1, 2, 0, 4], [1, 0, 0, 4]]).expand(2, 3, 4),
    "two rows, one empty": torch.tensor([[0, 0, 0, 0], [3, 3, 3, 3], [0, 3, 0, 3]]).expand(2, 3, 4),
    "weights, units, sizes": torch.tensor([[-3, 0, 5, TAG], [-3, 7, 5, TAG + 1], [-3, 7, 0, TAG]]).expand(2, 3, 4),
    "none": torch.zeros(2, 3, 4, dtype=torch.int64),
    "one": torch.full((1, 1, 1), 6),
}


@pytest.mark.parametrize("labels", SEVERAL.values(), ids=SEVERAL)
def test_what_labels_hold(labels: torch.Tensor) -> None:
    values = labels.numpy()
    assert unit_ids(labels).tolist() == sorted({v for v in values.ravel().tolist() if NONE < v < TAG})
    for dim in range(-3, 3):
        along = np.moveaxis(values, dim, -1).reshape(-1, values.shape[dim]).tolist()
        assert varies(labels, dim) == any(len({v for v in line if v != NONE}) > 1 for line in along)
        wanted = sorted(line for line in map(list, {*map(tuple, along)}) if any(line))
        found = lines(labels, dim).tolist()
        if (values != NONE).all():
            assert found == wanted
        # Lines that differ in their holes alone may be one.
        assert len(found) <= len(wanted)
        assert all(any(all(w in (v, NONE) for v, w in zip(f, line, strict=True)) for f in found) for line in wanted)
        assert [{*column} - {NONE} for column in zip(*found, strict=True)] == [
            {*column} - {NONE} for column in zip(*wanted, strict=True)
        ]
    small = squeeze_constant(labels)
    for dim in range(3):
        assert small.size(dim) == (labels.size(dim) if varies(labels, dim) else 1)
    # What was left out occurs on every line, but for elements without a label.
    wide = small.expand(labels.shape)
    assert bool(((labels == wide) | (labels == NONE)).all())
    assert set(small.unique().tolist()) - {NONE} == set(values.ravel().tolist()) - {NONE}
    assert squeeze_constant(labels, [1]).shape == (labels.size(0), small.size(1), labels.size(2))


def test_compact_labels_have_each_repeated_axis_once() -> None:
    labels = LINE.view(1, H, 1).expand(3, H, 5)
    assert torch.equal(compact(labels), LINE.view(1, H, 1))
    assert compact(LINE.repeat(3, 1)).shape == (3, H)


def test_classes_are_those_of_a_graph() -> None:
    """Unions in random order against the connected components of the graph that they make."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        couplings = Couplings()
        spaces = [couplings.new(size) for size in rng.integers(1, 6, size=4).tolist()]
        classes = {label: {label} for space in spaces for label in space.tolist()}
        assert np.array_equal(couplings.all(), np.arange(1 + sum(map(len, spaces))))
        for number, space in enumerate(spaces, 1):
            assert couplings.space(space).tolist() == [number] * len(space)
        assert couplings.space(np.zeros(1, dtype=np.int64)).tolist() == [0]
        for _ in range(4):
            version = couplings.version
            more = couplings.new(2)
            assert couplings.version > version
            version = couplings.version
            assert couplings.roots(more).tolist() == more.tolist()
            classes.update({label: {label} for label in more.tolist()})
            pairs = rng.choice([NONE, -2, TAG, *classes], size=(2, 3))
            before = {*map(frozenset, classes.values())}
            merged = couplings.union(*pairs)
            for one, two in pairs.T.tolist():
                if one in classes and two in classes:
                    together = classes[one] | classes[two]
                    classes.update(dict.fromkeys(together, together))
            assert merged == (len({*map(frozenset, classes.values())}) < len(before))
            assert (couplings.version > version) == merged
            every = np.array([*classes, NONE, -2, TAG, TAG + 3])
            found = couplings.roots(every).tolist()
            assert found == [*(min(classes[label]) for label in classes), 0, 0, 0, 0]
