"""The tracer's own bookkeeping: labels that meet, sizes that are met, axes that are tied, widths that begin."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reprune.core.layers import Site
from reprune.torch.tracing.labels import TAG, Ids
from reprune.torch.tracing.recording import State
from reprune.torch.tracing.sizes.sizes import Attribute, AxisSize, Comparison, Expression
from reprune.torch.tracing.structure.widths import ALL
from reprune.torch.tracing.tracer import Tracer, _renamed
from reprune.torch.tracing.weights import LAST

N, M = (Expression({Attribute("", (name,), size): Fraction(1)}) for name, size in (("n", 4), ("m", 3)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.one, self.two = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False), nn.Linear(4, 3)
        self.one.weight = self.table.weight  # Tied.
        self.attention = nn.MultiheadAttention(4, 2)
        self.lone, self.thin = nn.Parameter(torch.zeros(3, 4)), nn.Parameter(torch.zeros(1, 4))


def started(widths: Any = ()) -> tuple[Tracer, Ids, Ids]:
    """A tracer, and two lines of four units."""
    tracer = Tracer(Net(), widths)
    return tracer, tracer.recording.couplings.new(4), tracer.recording.couplings.new(4)


def held(tracer: Tracer, labels: Any) -> Tensor:
    """An activation with these labels."""
    labels = torch.as_tensor(labels)
    found = torch.zeros(labels.shape)
    tracer.memory.set(found, labels)
    return found


def test_units_that_meet_go_together_and_show_under_one_name() -> None:
    tracer, a, b = started()
    first, second = torch.from_numpy(a), torch.from_numpy(b)
    roots = tracer.recording.couplings.roots
    assert tracer.couple(first, first.expand(3, 4)).tolist() == [a.tolist()] * 3
    assert not tracer.recording.couplers
    # Where the first one has no units (padding), those of the second show under the first one's name.
    padded = torch.stack([first, torch.zeros(4, dtype=torch.int64), -first])
    assert tracer.couple(padded, second).tolist() == [a.tolist()] * 3
    assert np.array_equal(roots(b), a)
    assert len(np.unique(roots(a))) == 4
    ((one, two, site),) = tracer.recording.couplers
    assert (one.tolist(), two.tolist()) == (a.tolist(), b.tolist())
    assert __file__ in site.location
    # Units on one side alone are those of the result, whatever shape that has.
    assert tracer.couple(torch.zeros(2, 1, dtype=torch.int64), second).tolist() == [b.tolist()] * 2
    assert tracer.couple(second[:, None], torch.zeros(1, dtype=torch.int64)).tolist() == b[:, None].tolist()
    assert tracer.couple(second, torch.full((4,), -5)).tolist() == b.tolist()
    assert len(tracer.recording.couplers) == 1
    tracer.couple_lines(a[:2], a[2:])
    assert roots(a).tolist() == [a[0], a[1], a[0], a[1]]


def test_what_is_renamed() -> None:
    pairs = np.array([[5, 1], [5, 2], [6, TAG + 1], [0, 3], [TAG, 2], [8, 4]])
    labels = torch.tensor([[5, 6, 9, 0], [TAG, 8, 7, -5]])
    assert _renamed(labels, pairs).tolist() == [[1, 6, 9, 0], [TAG, 4, 7, -5]]
    assert _renamed(labels, pairs[2:5]) is labels


def test_units_that_fill_a_size_say_what_it_is_the_size_of() -> None:
    tracer, a, b = started()
    first, second = torch.from_numpy(a), torch.from_numpy(b)
    tags = [tracer.tag(size) for size in (N, M)]
    assert tags == [TAG, TAG + 1]
    assert tracer.couple(torch.full((2, 4), tags[0]), first).tolist() == [a.tolist()] * 2
    assert tracer.couple(first, torch.full((4,), tags[0])).tolist() == a.tolist()
    uses = tracer.recording.sizes
    assert [(use.expression, use.labels.tolist(), use.firm) for use in uses] == [(N, a.tolist(), True)] * 2
    # Not where a part is written, or fewer units than places.
    tracer.couple(torch.full((4,), tags[1]), first)
    tracer.couple(torch.full((4,), tags[0]), first.index_select(0, torch.tensor([0, 0, 1, 2])))
    tracer.couple(torch.full((4,), tags[0]), torch.tensor([0, *b[:3]]))
    assert len(uses) == 2
    assert tracer.couple(torch.full((4,), tags[0]), torch.zeros(4, dtype=torch.int64)).tolist() == [TAG] * 4
    tracer.meet_tags(None, second)
    tracer.meet_tags(second, first)
    assert not np.array_equal(tracer.recording.couplings.roots(b), a)
    tracer.meet_tags(torch.tensor([TAG, TAG, TAG, b[0]]), second)
    assert len(uses) == 2
    tracer.meet_tags(torch.full((4,), tags[0]), second)
    assert [use.labels.tolist() for use in uses[2:]] == [b.tolist()]
    tracer.constrain(N, np.zeros(4, dtype=np.int64))
    tracer.constrain(N, np.array([TAG, *b]), False)
    assert [(use.labels.tolist(), use.firm) for use in uses[3:]] == [(b.tolist(), False)]
    tracer.constrain(N, np.array([TAG, 0]))
    assert len(uses) == 4


def test_sizes_that_are_compared() -> None:
    tracer, a, _ = started()
    axis = Expression({AxisSize(a): Fraction(1)})
    longer = Expression(axis.terms, Fraction(1))
    both = Expression({**axis.terms, **M.terms})
    twice = Expression({AxisSize(a[:2]): Fraction(2)})
    tracer.compare_sizes([Comparison(N, axis), Comparison(axis, M), Comparison(N, M), Comparison(N, longer)])
    tracer.compare_sizes([Comparison(N, both), Comparison(N, M, steady=True)])
    assert [(use.expression, use.labels.tolist()) for use in tracer.recording.sizes] == [
        (N, a.tolist()),
        (M, a.tolist()),
    ]
    assert tracer.recording.steady == [(N, M)]
    tracer.compare_sizes([Comparison(axis, twice)])
    assert len(tracer.recording.sizes) == 4


def test_what_a_tensor_is_made_of() -> None:
    tracer, a, _ = started()
    net = tracer.tensors["lone"]
    labels = tracer.labels(net[1:])
    assert labels is not None
    assert labels.shape == (2, 4)
    assert bool((labels < 0).all())
    for content, weight, units in (
        (labels, True, None),
        (torch.cat([labels, torch.zeros(1, 4, dtype=torch.int64)]), True, None),
        (torch.zeros(2, 4, dtype=torch.int64), False, None),
        (torch.cat([labels, torch.full((1, 4), -LAST)]), False, None),
        (torch.cat([labels, torch.from_numpy(a)[None]]), False, [[0] * 4, [0] * 4, a.tolist()]),
        (torch.from_numpy(a), False, a.tolist()),
        (torch.from_numpy(a).expand(2, 3, 4), False, [[a.tolist()] * 3] * 2),
        (torch.full((3,), -LAST), False, None),
    ):
        tensor = held(tracer, content)
        assert tracer.is_weight(tensor) == weight
        found = tracer.units(tensor)
        assert (None if found is None else found.tolist()) == units
        known = tracer.labels(tensor)
        assert (None if known is None else known.tolist()) == (content.tolist() if content.any() else None)
    assert tracer.is_weight(net)
    assert tracer.units(net) is None
    assert not tracer.is_weight(torch.zeros(3))
    assert tracer.units(torch.zeros(0)) is None
    source = tracer.origins.add(("x",), torch.zeros(3, 4), held=False)
    assert torch.equal(tracer.origin(held(tracer, source)), source)
    tracer.memory.set(net, source)
    assert tracer.origin(net) is None  # What is written into a buffer does not come from outside of the model.


def test_units_that_must_stay() -> None:
    tracer, a, _ = started()
    tracer.pin(None, "op", "nothing")
    tracer.pin(torch.tensor([0, -3, TAG]), "op", "no units")
    tracer.pin(torch.tensor([a[1], 0, a[1], a[0]]), "op", "reason")
    ((labels, site, reason),) = tracer.recording.pins
    assert (labels.tolist(), reason, site.operation) == ([a[0], a[1]], "reason", "op")
    assert __file__ in site.location
    elsewhere = Site("other", "there.py:1")
    tracer.pin(torch.from_numpy(a), "op", "reason", elsewhere)
    assert tracer.recording.pins[1][1] is elsewhere
    tracer.suspect(torch.tensor([a[2], 0]), "view")
    ((labels, site),) = tracer.recording.suspects
    assert (labels.tolist(), site.operation) == ([a[2]], "view")


def test_axes_of_weights() -> None:
    tracer, a, b = started()
    line = tracer.axis("lone", -1, "reads")
    assert len(line) == 4
    assert np.array_equal(tracer.axis("lone", 1, "own"), line)
    assert tracer.recording.roles["lone", 1] == {"reads", "own"}
    assert tracer.axis("thin", 0, "own").tolist() == [0]  # A single position has no name.
    tracer.set_axis("lone", 1, a, "follows")
    assert np.array_equal(tracer.recording.couplings.roots(line), a)
    assert np.array_equal(tracer.axis("lone", 1, "own"), a)
    tracer.set_axis("two.weight", 1, b, "reads")
    assert tracer.recording.roles["two.weight", 1] == {"reads"}
    both = held(tracer, torch.cat([tracer.labels(tracer.tensors["lone"]), tracer.labels(tracer.tensors["two.weight"])]))
    first, second = tracer.weight_lines(both, 0, "own")
    assert (first[0], second[0]) == (("lone", 0), ("two.weight", 0))
    assert first[1].tolist() == [*tracer.axis("lone", 0, "own"), 0, 0, 0]
    assert second[1].tolist() == [0, 0, 0, *tracer.axis("two.weight", 0, "own")]


def test_weights_that_are_computed_are_tied_to_what_they_are_made_of() -> None:
    tracer, *_ = started()
    lone, thin = tracer.tensors["lone"], tracer.tensors["thin"]
    made = torch.zeros(3, 4)
    labels = tracer.derive(made, [[(lone, 0)], [(lone, 1), (thin, 1), (thin, 0)]], plain=True)
    name = next(name for name in tracer.tensors if name.startswith("computed:"))
    tracer.memory.set(made, labels)
    again = torch.zeros(4, 3)
    tracer.memory.set(again, tracer.derive(again, [[(made, 1)], [(made, 0)]], plain=False))
    (other,) = [key for key in tracer.tensors if key.startswith("computed:") and key != name]
    assert tracer.real_axes((other, 0)) == [("lone", 1), ("thin", 1)]
    assert tracer.real_axes((other, 1)) == [("lone", 0)]
    assert tracer.real_axes(("two.weight", 1)) == [("two.weight", 1)]
    assert tracer.opaque == {other}
    assert name not in tracer.parameters
    assert tracer.parameters.keys() == dict(Net().named_parameters()).keys()
    roots = tracer.recording.couplings.roots
    lines = [roots(tracer.axis(*axis, "reads")).tolist() for axis in ((name, 1), (other, 0), ("lone", 1), ("thin", 1))]
    assert lines == [lines[0]] * 4
    assert roots(tracer.axis(other, 1, "own")).tolist() == roots(tracer.axis("lone", 0, "follows")).tolist()
    assert tracer.recording.roles["thin", 1] == {"follows", "reads"}
    assert tracer.recording.roles["lone", 0] == {"follows", "own"}
    assert labels.unique().numel() == 12


def test_widths_begin_at_weights_of_the_kinds_that_count() -> None:
    for kinds, wanted in (
        ((), []),
        ({"embedding"}, ["table:columns"]),
        (ALL, ["table:columns", "one:features", "two:features", "attention:features", "lone:features"]),
    ):
        tracer, *_ = started(kinds)
        tracer.begin("embedding", tracer.tensors["table.weight"], 1)
        for name in ("table.weight", "two.weight", "attention.in_proj_weight", "lone", "thin"):
            tracer.begin("linear", tracer.tensors[name], 0)
        assert list(tracer.layers) == wanted


def test_joined_labels_do_not_vary() -> None:
    for kinds in ((), {"embedding"}):
        tracer, a, _ = started(kinds)
        assert not tracer.join(torch.from_numpy(a).view(2, 2), [1])
    tracer, a, b = started(ALL)
    grid = torch.cat([torch.from_numpy(a).view(1, 2, 2), torch.tensor([[[0, b[0]], [TAG, 0]]])])
    assert tracer.join(grid.expand(3, 2, 2, 2), [3])
    roots = tracer.recording.couplings.roots
    assert roots(a).tolist() == [a[0], a[0], a[2], a[2]]
    assert tracer.join(grid, [1, -1])
    assert roots(a).tolist() == [a[0]] * 4
    assert len(np.unique(roots(b))) == 4
    activation = held(tracer, torch.tensor([a[3], b[1], 0, -7]))
    shown = tracer.units(activation)
    assert shown is not None
    assert shown.tolist() == [a[3], b[1], 0, 0]
    tracer.widths.begin("linear", "lone", a)  # Among widths, what goes together looks the same.
    shown = tracer.units(activation)
    assert shown is not None
    assert shown.tolist() == [a[0], b[1], 0, 0]
    assert tracer.representatives(torch.tensor([[a[1], TAG]]).expand(2, 2)).tolist() == [[a[0], TAG]] * 2


def test_zero_states_of_recurrent_modules_and_stacked_ones() -> None:
    tracer, *_ = started()
    own, other, stacked, mixed = (torch.zeros(2, 3) for _ in range(4))
    tracer.note_own_zeros("zeros", (), own)
    tracer.note_own_zeros("stack", ([own, own],), stacked)
    tracer.note_own_zeros("stack", ([own, other],), mixed)
    assert [tracer.is_own_zeros(tensor) for tensor in (own, other, stacked, stacked[1], mixed)] == [
        True, False, True, True, False,
    ]  # fmt: skip
    state, single = torch.zeros(2, 3, 4), torch.zeros(1, 3, 4)
    tracer.states = {
        state.untyped_storage()._cdata: State(["a", "b"], 3), single.untyped_storage()._cdata: State(["a"], 3),
    }  # fmt: skip
    assert [tracer.is_stacked_state(tensor) for tensor in (state, state[1], state[None], own)] == [
        True,
        False,
        True,
        False,
    ]
    tracer.touch(own)
    tracer.touch(single)
    assert not tracer.recording.count_coupled
    tracer.touch(state[1])
    tracer.touch(state)
    assert tracer.recording.count_coupled == [["a", "b"]]
    assert not tracer.states
    ((names, site),) = tracer.recording.bonds.items()
    assert names == {"a", "b"}
    assert (site.operation, __file__ in site.location) == ("stacked state", True)
