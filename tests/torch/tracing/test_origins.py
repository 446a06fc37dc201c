"""What tensors from outside of a call met, and through which weights tensors went round: element by element."""

from __future__ import annotations

import numpy as np
import torch

from reprune.torch.tracing.labels import TAG
from reprune.torch.tracing.origins import Origins, Source
from reprune.torch.tracing.provenance import Provenance

FIRST = 1000


def sources() -> tuple[Origins, torch.Tensor, torch.Tensor]:
    origins = Origins(FIRST)
    return (
        origins,
        origins.add(("h",), torch.zeros(2, 3), held=False),
        origins.add(("", "kept"), torch.zeros(4), held=True),
    )


def test_every_element_has_a_number_of_its_own() -> None:
    origins, h, kept = sources()
    assert h.tolist() == [[-1000, -1001, -1002], [-1003, -1004, -1005]]
    assert kept.tolist() == [-1006, -1007, -1008, -1009]
    assert [(one.path, one.held, one.first) for one in origins.sources] == [
        (("h",), False, 1000), (("", "kept"), True, 1006),
    ]  # fmt: skip
    mixed = torch.tensor([5, 0, -999, -1000, -1004])
    found = origins.of(mixed)
    assert found is not None
    assert found.tolist() == [0, 0, 0, -1000, -1004]
    wide = origins.of(torch.tensor([-1000]).expand(2, 3))
    assert wide is not None
    assert wide.shape == (2, 3)
    assert origins.of(mixed[:3]) is None
    assert origins.of(None) is None
    assert Origins(FIRST).of(mixed) is None


def test_what_elements_meet_first_is_noted() -> None:
    origins, h, kept = sources()
    source, other = origins.sources
    assert source.labels("state").tolist() == [0] * 6
    origins.meet("state", h, np.array([5, 6, 7]))
    origins.meet("state", h, np.array([8, 9, 0]))
    assert source.labels("state").tolist() == [5, 6, 7, 5, 6, 7]
    assert not other.met
    # Both sources at one time, in the tensor in which they lie; what names sizes is no unit.
    both = torch.cat([h[1], kept])
    origins.meet("beside", both, np.array([1, 2, TAG, 4, TAG + 1, 0, 3]))
    assert source.labels("beside").tolist() == [0, 0, 0, 1, 2, 0]
    assert other.labels("beside").tolist() == [4, 0, 0, 3]
    assert __file__ in source.sites["beside"].location
    assert source.sites["beside"].operation == "beside"
    origins.meet("state", None, np.array([5]))
    origins.meet("read", kept, np.array([0, 0, 0, 0]))
    assert set(other.met) == {"beside"}


def test_elements_meet_labels_that_are_repeated_or_vary() -> None:
    origins, h, kept = sources()
    source, other = origins.sources
    # Repeated elements lie along an axis only if the labels do not vary on it.
    origins.meet("state", h[:1].expand(4, 3), torch.arange(1, 13).view(4, 3))
    assert not source.met
    origins.meet("state", h[:1].expand(4, 3), torch.tensor([[1, 2, 3]]).repeat(4, 1))
    assert source.labels("state")[:3].tolist() == [1, 2, 3]
    assert source.met["state"][3:].tolist() == [0, 0, 0]
    # Fewer axes than the labels have, and labels with fewer.
    origins.meet("read", kept, torch.tensor([[7, 8, 9, 6], [7, 8, 9, 6]]), "w")
    assert other.labels("read").tolist() == [7, 8, 9, 6]
    origins.meet("read", kept[:, None].expand(4, 5), torch.tensor([[3]]), "v")
    assert {name: other.read(name).tolist() for name in other.read_by} == {"w": [7, 8, 9, 6], "v": [3] * 4}


def test_elements_that_were_overwritten_are_taken_for_what_their_line_met() -> None:
    source = Source(("h",), torch.Size((2, 3)), FIRST, False)
    source.met["state"] = np.array([5, 6, 7, 0, 0, 7])
    assert source.labels("state").tolist() == [5, 6, 7, 5, 6, 7]
    # What met something else was not overwritten.
    source.met["beside"] = np.array([0, 0, 0, 9, 0, 0])
    assert source.labels("state").tolist() == [5, 6, 7, 0, 6, 7]
    # Lines on which the others met several things say nothing.
    across = Source(("h",), torch.Size((3, 2)), FIRST, False, {"state": np.array([1, 2, 3, 4, 0, 0])})
    assert across.labels("state").tolist() == [1, 2, 3, 4, 0, 0]
    units = Source(("h",), torch.Size((3, 2)), FIRST, False, {"state": np.array([1, 1, 2, 0, 3, 3])})
    assert units.labels("state").tolist() == [1, 1, 2, 2, 3, 3]


def test_everything_that_elements_are_combined_with_is_kept() -> None:
    origins = Origins(FIRST)
    h = origins.add(("h",), torch.zeros(3), held=False)
    (source,) = origins.sources
    for labels in ([1, 2, 3], [4, 5, 6], [0, 8, 0], [1, 2, 3]):
        origins.meet("beside", h, np.array(labels))
    assert [table.tolist() for table in source.besides] == [[1, 2, 3], [4, 5, 6], [0, 8, 0]]

    def roots(labels: np.ndarray) -> np.ndarray:
        return np.where(labels == 4, 40, labels)

    for wanted, met in (([1, 2, 3], [1, 1, 1]), ([40, 8, 9], [1, 1, 0]), ([4, 1, 6], [0, 0, 1])):
        assert source.met_beside(np.array(wanted), roots).tolist() == met
    for label in range(10, 30):
        origins.meet("beside", h, np.array([label, label, label]))
    assert len(source.besides) == 8


def test_a_weight_goes_round_when_it_is_applied_to_what_it_made() -> None:
    seen = Provenance()
    made: list[torch.Tensor] = []  # A tensor that is gone would give its place in memory away.

    def follow(inputs: list[torch.Tensor], *weights: tuple[str, int]) -> torch.Tensor:
        made.append(torch.zeros(2))
        seen.follow(inputs, made[-1:], weights)
        return made[-1]

    x, y, z = (torch.zeros(2) for _ in range(3))
    assert seen.is_data(x)
    # Shared by two inputs: neither made the other.
    assert seen.is_data(follow([follow([x], ("shared", 0)), follow([y], ("shared", 0))]))
    assert not seen.recurrent
    # Pieces of one parameter are weights of their own.
    follow([follow([x], ("pieces", 0))], ("pieces", 8))
    assert not seen.recurrent
    # Tied over depth: it goes round, but nothing joins.
    tied = follow([follow([follow([x], ("tied", 0))], ("tied", 0))], ("tied", 0))
    assert (seen.recurrent, seen.driven) == ({"tied"}, set())
    assert not seen.driven
    # What has been through the same weight as often brings nothing new.
    follow([tied, tied])
    assert not seen.driven
    follow([tied, z])
    assert seen.driven == {"tied"}
    # Once round is not twice.
    follow([follow([x], ("once", 0)), z])
    assert "once" not in seen.driven
    # Computed from weights alone, it is no data, and counts as the weights that it is made of.
    weight = follow([], ("left", 0), ("right", 0))
    assert not seen.is_data(weight)
    assert not seen.is_data(follow([weight]))
    h = follow([weight, x])
    assert seen.is_data(h)
    follow([weight, h])
    assert seen.recurrent == {"tied", "left", "right"}
    assert seen.driven == {"tied"}
    follow([follow([weight, follow([weight, h])]), z])
    assert seen.driven == {"tied", "left", "right"}
