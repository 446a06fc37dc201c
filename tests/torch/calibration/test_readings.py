"""What consumers read and what layers answer, from what is told of every product: against all rows side by side."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from reprune.core.evidence.readings import FeedBack, SplitMoments
from reprune.core.layers import Consumer, Layer, Slot, Span, Structure
from reprune.torch.calibration.answers import Answers, own_readers, watch_declared
from reprune.torch.calibration.readings import ReadingWatcher
from reprune.torch.calibration.watch import Seen

Axis = tuple[str, int]


def structure(layers: dict[str, str], slots: list[Slot]) -> Structure:
    """Layers of four units by their kinds, and what knows them; all that reads is a consumer."""
    return Structure(
        layers={name: Layer(name, kind, 4) for name, kind in layers.items()},
        slots=tuple(slots),
        shapes={slot.tensor: (8, 8) for slot in slots},
        index_coupled=tuple((name,) for name in layers),
        consumers=tuple(Consumer(slot.tensor, slot.axis) for slot in slots if slot.role == "reads"),
    )


def reads(tensor: str, layer: str, start: int = 0, each: int = 1, size: int = 4) -> Slot:
    return Slot(tensor, 1, size, "reads", (Span(start, layer, 0, 4, each),))


def owns(tensor: str, layer: str) -> Slot:
    return Slot(tensor, 0, 4, "own", (Span(0, layer, 0, 4),))


READERS = ("one", "two", "three")


@pytest.mark.parametrize("seed", range(8))
def test_moments_are_those_of_all_rows_that_a_consumer_has_read(seed: int) -> None:
    """Consumers read the same tensors or others, some passes through; rows without units are padding."""
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    slots = [reads(name, "lstm", start=1, size=6) for name in READERS]
    into: dict[Axis, SplitMoments] = {}
    found = structure({"lstm": "lstm"}, slots)
    watcher = ReadingWatcher(found, Answers(nn.Module(), found, pytest.fail), into, {}, None)
    assert watcher.axes == [(name, 1) for name in READERS]
    rows: dict[str, list[torch.Tensor]] = {name: [] for name in READERS}
    apart = False
    for _ in range(int(rng.integers(1, 5))):
        pool = [torch.randn(int(rng.integers(1, 4)), 3, 6, generator=generator, dtype=torch.float64) for _ in range(2)]
        for tensor in pool:
            if rng.random() < 0.5:
                tensor[torch.rand(tensor.shape[:2], generator=generator) < 0.4, 1:5] = 0
        common = [pool[0], pool[1]][: int(rng.integers(1, 3))]
        chosen = dict.fromkeys(READERS, common)
        for name in READERS:
            if rng.random() < 0.2:
                chosen[name] = [pool[int(place)] for place in rng.integers(0, 2, int(rng.integers(0, 4)))]
                apart |= [id(tensor) for tensor in chosen[name]] != [id(tensor) for tensor in common]
        for place in range(3):
            for name in READERS:
                for tensor in chosen[name][place : place + 1]:
                    watcher.read(Seen((name, 1), 0, tensor if rng.random() < 0.5 else tensor.clone()))
                    read = tensor.flatten(0, 1)
                    valid = (read[:, 1:5] != 0).any(1)
                    rows[name].append(read[valid] if valid.any() else read)
        watcher.end_pass()
    for name in READERS:
        if not rows[name]:
            assert (name, 1) not in into
            continue
        wanted, moments = torch.cat(rows[name]).numpy(), into[name, 1].merged()
        assert moments.count == len(wanted)
        np.testing.assert_allclose(moments.mean, wanted.mean(0), atol=1e-12)
        np.testing.assert_allclose(moments.covariance, np.cov(wanted.T, bias=True), atol=1e-12)
    assert apart or len({id(moments) for moments in into.values()}) == 1  # Then they are counted once.


def test_padding_is_what_has_no_unit_at_any_of_its_places() -> None:
    """Two places for each unit, after one that belongs to none; where all is zero, that is what the layer answers."""
    slot = Slot("w", 1, 10, "reads", (Span(1, "lstm", 0, 4, 2),))
    into: dict[Axis, SplitMoments] = {}
    found = structure({"lstm": "lstm"}, [slot])
    watcher = ReadingWatcher(found, Answers(nn.Module(), found, pytest.fail), into, {}, None)
    rows = torch.zeros(4, 10)
    rows[:, 0], rows[:, 9], rows[1, 1], rows[3, 8] = 1.0, 2.0, 3.0, 4.0
    watcher.read(Seen(("w", 1), 0, rows))
    assert into["w", 1].count == 2
    rows[:, 1:9] = 0
    watcher.read(Seen(("w", 1), 0, rows))
    assert into["w", 1].count == 6
    watcher.read(Seen(("other", 1), 0, rows))
    watcher.read(Seen(("w", 1), 0, rows[:, :9]))  # Not all positions at once.
    assert into["w", 1].count == 6
    assert list(into) == [("w", 1)]


@pytest.mark.parametrize("inference", [False, True])
def test_what_is_written_over_was_read_before(inference: bool) -> None:
    slots = [reads(name, "lstm") for name in READERS]
    into: dict[Axis, SplitMoments] = {}
    found = structure({"lstm": "lstm"}, slots)
    watcher = ReadingWatcher(found, Answers(nn.Module(), found, pytest.fail), into, {}, None)
    with torch.inference_mode(inference):
        x = torch.arange(1.0, 13.0).view(3, 4).double()
        watcher.read(Seen(("one", 1), 0, x))
        later = (x.clone() if inference else x).mul_(2)  # In inference mode nobody knows of what is written.
        watcher.read(Seen(("two", 1), 0, later))
        watcher.read(Seen(("three", 1), 0, later.clone()))
        watcher.end_pass()
    assert into["two", 1] is into["three", 1]
    for name, factor in (("one", 1), ("two", 2)):
        assert into[name, 1].count == 3
        np.testing.assert_allclose(into[name, 1].merged().mean, factor * np.arange(5.0, 9.0))


def test_states_that_are_fed_back_are_counted_by_weight() -> None:
    found = structure({"lstm": "lstm"}, [reads("w", "lstm")])
    fed: dict[Axis, FeedBack] = {}
    generator = torch.Generator().manual_seed(0)
    first, last = (torch.randn(5, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    watcher = ReadingWatcher(found, Answers(nn.Module(), found, pytest.fail), {}, {}, fed)
    for part in (slice(0, 2), slice(2, 5)):
        watcher.feed_back(("w", 1), first[part], last[part])
    watcher.feed_back(("other", 1), first, last)
    assert list(fed) == [("w", 1)]
    for moments, rows in ((fed["w", 1].first, first), (fed["w", 1].last, last)):
        assert moments.count == 5
        np.testing.assert_allclose(moments.mean, rows.mean(0))
        np.testing.assert_allclose(moments.covariance, np.cov(rows.numpy().T, bias=True))
    ReadingWatcher(found, Answers(nn.Module(), found, pytest.fail), {}, {}, None).feed_back(("w", 1), first, last)


def test_kernels_show_layers_by_their_answers_and_written_cells_by_what_they_read() -> None:
    found = structure(
        {"kernel": "lstm", "written": "custom", "round": "custom"},
        [
            owns("hh", "kernel"), reads("hh", "kernel"), reads("head", "kernel"),
            owns("u", "written"), owns("v", "written"),
            reads("before", "written"), reads("u", "written", start=2, size=6), reads("v", "written"),
            owns("enter", "round"), reads("back", "round"), reads("out", "round"),
        ],
    )  # fmt: skip
    assert [slot.tensor for name in found.layers for slot in own_readers(found, name)] == ["hh", "u", "back"]
    model = nn.ModuleDict({"written": nn.Identity(), "round": nn.Identity()})
    shown: list[tuple[str, torch.Tensor, Any]] = []
    answers = Answers(model, found, lambda *told: shown.append(told))
    assert answers.axes == [("hh", 1), ("u", 1), ("back", 1)]
    x, sizes = torch.arange(24.0).view(4, 6), torch.tensor([2, 2])
    for tensor, first, features, answering in (
        ("hh", 0, x[:, :4], True), ("hh", 0, x[:, :4], False), ("head", 0, x[:, :4], False),
        ("u", 0, x, False), ("u", 0, x, True), ("u", 2, x[:, :4], False), ("u", 1, x[:, :5], False),
        ("u", 3, x[:, :3], False), ("u", 0, x[:, :5], False), ("v", 0, x[:, :4], False), ("back", 0, x[:, :4], False),
    ):  # fmt: skip
        answers.read(Seen((tensor, 1), first, features, answering, sizes))
    expected = [
        ("kernel", x[:, :4]), ("written", x[:, 2:]), ("written", x[:, :4]), ("written", x[:, 1:5]), ("round", x[:, :4])
    ]  # fmt: skip
    for (name, features, batch_sizes), (wanted, values) in zip(shown, expected, strict=True):
        assert name == wanted
        assert torch.equal(features, values)
        assert batch_sizes is sizes


def test_every_place_of_a_unit_shows_it() -> None:
    found = structure({"written": "custom"}, [owns("u", "written"), reads("u", "written", start=1, each=2, size=10)])
    shown: list[torch.Tensor] = []
    answers = Answers(
        nn.ModuleDict({"written": nn.Identity()}), found, lambda _, features, sizes: shown.append(features)
    )
    x = torch.arange(20.0).view(2, 10)
    answers.read(Seen(("u", 1), 0, x))
    assert [features.tolist() for features in shown] == [x[:, 1:9:2].tolist(), x[:, 2:9:2].tolist()]


class Cell(nn.Module):
    """Returns what it is given."""

    def forward(self, *outputs: torch.Tensor) -> Any:
        return outputs


def test_declared_cells_show_the_first_states_that_they_return(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "reprune.torch.calibration.answers.declared", lambda module: module if type(module) is Cell else None
    )
    slots = [owns("u", "cell:l0"), reads("u", "cell:l0"), owns("v", "other"), reads("v", "other")]
    found = structure({"cell:l0": "custom", "other": "custom"}, slots)
    model, shown = nn.ModuleDict({"cell": Cell(), "other": nn.Identity()}), []
    states = torch.ones(2, 4, requires_grad=True)
    with watch_declared(model, found, lambda *told: shown.append(told)):
        model.cell(torch.ones(2, 3), torch.ones(4), states, torch.zeros(2, 4))
        model.cell(torch.ones(2, 3))
        model.other(states)
    model.cell(states)
    ((name, features, sizes),) = shown
    assert (name, sizes, features.requires_grad) == ("cell:l0", None, False)
    assert features.data_ptr() == states.data_ptr()
    assert Answers(model, found, pytest.fail).axes == [("v", 1)]  # It is seen there and nowhere else.
