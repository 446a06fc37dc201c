"""From labels to layers, piece by piece: which labels go together, and what is a layer of its own."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from reprune.core.layers import (
    Consumer,
    Contraction,
    Extent,
    Layer,
    Pin,
    Site,
    SizeAttribute,
    Span,
)
from reprune.torch.tracing.labels import Couplings, Ids
from reprune.torch.tracing.record import Trace
from reprune.torch.tracing.recording import Loss, Product, Recording, RecurrentLayer
from reprune.torch.tracing.sizes.sizes import Attribute, AxisSize, Expression, SizeUse
from reprune.torch.tracing.structure.interleaved import couple_interleaved
from reprune.torch.tracing.structure.sized import couple_sized
from reprune.torch.tracing.structure.structure import Builder
from reprune.torch.tracing.structure.unused import couple_unused
from reprune.torch.tracing.structure.widths import ALL, Widths
from reprune.torch.tracing.structure.written import written_cells

NONE = np.zeros(1, dtype=np.int64)


def recorded(*sizes: int) -> tuple[Recording, list[Ids], dict[str, RecurrentLayer]]:
    """A recording with layers `a`, `b`, … of these sizes."""
    recording = Recording()
    labels = [recording.couplings.new(size) for size in sizes]
    layers = {name: RecurrentLayer(name, "gru", name, held) for name, held in zip("abcd", labels, strict=False)}
    return recording, labels, layers


def together(couplings: Couplings, *lines: Ids) -> bool:
    """Whether these labels are of the same classes, one by one."""
    first, *others = (couplings.roots(line).tolist() for line in lines)
    return all(other == first for other in others)


@pytest.mark.parametrize(
    ("sizes", "line", "coupled"),
    [
        ((3, 3), lambda a, b: np.stack([a, b], 1).reshape(-1), True),
        ((3, 3), lambda a, b: np.concatenate([a, b]), False),
        ((3, 3), lambda a, b: np.concatenate([a, b, a, b]), False),  # All of each, twice.
        ((3, 3), lambda a, b: np.concatenate([a[:2], b[:2], a[2:], b[2:]]), True),
        ((3, 3), lambda a, b: np.concatenate([a[:2], b[:2]]), False),
        ((3, 3), lambda a, b: np.zeros(4, dtype=np.int64), False),
        ((3, 3), lambda a, b: np.concatenate([a[:1], NONE, a[1:], b]), False),
        ((3, 3), lambda a, b: np.concatenate([b[:1], NONE, b[1:2], a[:1], NONE, a[1:2]]), True),
        ((3, 4), lambda a, b: np.concatenate([a[:2], b[:2], a[2:], b[2:]]), False),
    ],
)
def test_layers_whose_units_alternate(sizes: tuple[int, int], line: Callable[[Ids, Ids], Ids], coupled: bool) -> None:
    recording, (a, b), layers = recorded(*sizes)
    recording.axes["w", 1] = line(a, b)
    couple_interleaved(recording, layers)
    assert not recording.couplings.roots(NONE).any()
    assert together(recording.couplings, a[:3], b[:3]) == coupled
    assert len(np.unique(recording.couplings.roots(a))) == len(a)


def test_three_layers_alternate_in_any_order() -> None:
    recording, (a, b, c, d), layers = recorded(2, 2, 2, 2)
    recording.axes["w", 1] = np.array([c[0], b[0], a[0], 0, c[1], b[1], a[1], *d])
    couple_interleaved(recording, layers)
    assert together(recording.couplings, a, b, c)
    assert not together(recording.couplings, a, d)


def test_pieces_that_nothing_uses_lose_the_rows_of_the_others() -> None:
    recording, (a,), layers = recorded(3)
    pieces = {name: recording.couplings.new(3) for name in ("unused", "read", "pinned", "summed", "own", "holed")}
    pieces["holed"][1] = 0
    recording.axes |= {("w", 1): pieces["read"], ("v", 0): pieces["own"]}
    recording.roles |= {("w", 1): {"reads"}, ("v", 0): {"own"}}
    recording.pins.append((pieces["pinned"][:1], None, ""))  # type: ignore[arg-type]
    recording.direct.append(pieces["summed"][2:])
    unit_of_another = recording.couplings.new(3)
    unit_of_another[2] = a[0]
    recording.aligned = [
        np.stack([pieces["unused"], pieces["read"], pieces["pinned"], a, unit_of_another]),
        np.stack([pieces["summed"], pieces["holed"], pieces["own"], a[::-1]]),
        np.stack([recording.couplings.new(3), recording.couplings.new(3)]),
    ]
    couple_unused(recording, layers)
    coupled = {name for name, piece in pieces.items() if np.isin(recording.couplings.roots(piece), a).any()}
    assert coupled == {"unused", "own"}
    assert together(recording.couplings, pieces["unused"], a)
    assert together(recording.couplings, pieces["own"], a[::-1])
    assert not together(recording.couplings, *recording.aligned[2])


def test_features_as_many_as_the_units_by_the_models_code_go_with_them() -> None:
    def use(term: Attribute | AxisSize, labels: Ids, factor: int = 1, constant: int = 0, firm: bool = True) -> None:
        recording.sizes.append(SizeUse(Expression({term: Fraction(factor)}, Fraction(constant)), labels, firm))

    recording, (a, b), layers = recorded(4, 6)
    lengths = {"twice": 4, "same": 4, "off axis": 4, "half": 2, "plus": 5, "joint": 4, "apart": 4}
    made = {name: recording.couplings.new(length) for name, length in lengths.items()}
    recording.couplings.union(made["joint"][:1], made["joint"][1:2])
    n, m = Attribute("", ("n",), 4), Attribute("", ("m",), 4)
    own = AxisSize(a)
    use(n, a)
    use(n, np.concatenate([NONE, made["same"]]))
    use(n, made["half"], factor=2)
    use(n, made["twice"], factor=2)
    use(n, made["plus"], constant=1)
    use(n, made["joint"])
    use(n, np.concatenate([made["apart"][:2], a[2:]]))  # Units and others on one line.
    use(own, made["off axis"])
    use(m, made["apart"])  # Of this size no layer is known.
    recording.sizes.append(
        SizeUse(Expression({n: Fraction(1), m: Fraction(1)}), np.concatenate([a, made["apart"]]), True)
    )
    couple_sized(recording, layers)
    roots = recording.couplings.roots
    assert together(recording.couplings, a, made["same"], made["off axis"])
    for name in ("half", "twice", "plus", "joint", "apart"):
        assert not np.isin(roots(made[name]), a).any(), name
    assert len(np.unique(roots(np.concatenate([a, b])))) == 10


def test_where_a_width_is_cut() -> None:
    couplings, widths = Couplings(), Widths(ALL)
    a, b, single = couplings.new(6), couplings.new(4), couplings.new(1)
    widths.begin("linear", "one", a)
    widths.begin("convolution", "two", b)
    widths.begin("linear", "single", single)
    widths.begin("linear", "one", b)  # It has begun.
    assert {name: layer.labels.tolist() for name, layer in widths.layers.items()} == {
        "one:features": a.tolist(), "two:channels": b.tolist(),
    }  # fmt: skip
    assert widths.everywhere
    assert not Widths({"linear"}).everywhere
    assert not widths.cut("one:features", b)
    assert not widths.cut("one:features", a[[0, 2]])
    assert widths.cuts == {}
    assert widths.cut("one:features", a[[2, 1]])
    assert widths.cut("one:features", a[5:])
    assert widths.cuts == {"one:features": {1, 3, 5, 6}}
    assert widths.sizes(couplings) == {"one:features": 6, "two:channels": 4}
    found = widths.holding(np.array([a[0], a[4], b[1], 99]), couplings)
    assert {name: held.tolist() for name, held in found.items()} == {
        "one:features": [a[0], a[4]], "two:channels": [b[1]],
    }  # fmt: skip
    couplings.union(a[:4], b)
    assert widths.sizes(couplings) == {"one:features": 6, "two:channels": 4}
    found = widths.holding(couplings.roots(b[2:3]), couplings)
    assert {name: held.tolist() for name, held in found.items()} == {"one:features": [a[2]], "two:channels": [a[2]]}
    widths.begin("embedding", "three", couplings.new(2))
    assert list(widths.holding(widths.layers["three:columns"].labels[1:], couplings)) == ["three:columns"]
    assert widths.holding(NONE, couplings) == {}


def test_widths_that_are_layers_of_their_own() -> None:
    couplings, widths = Couplings(), Widths(ALL)
    a, b, c, d = (couplings.new(size) for size in (6, 4, 3, 4))
    for name, kind, labels in (("a", "linear", a), ("b", "linear", b), ("c", "embedding", c), ("d", "convolution", d)):
        widths.begin(kind, name, labels)
    widths.cut("a:features", a[:2])
    couplings.union(b[[0, 2]], b[[1, 3]])  # Pairs of features go together.
    widths.heads.append(b)
    widths.cut("d:channels", d[:2])
    couplings.union(d[:2], d[2:])  # Both halves are the same units: no cut.
    found = widths.resolved(couplings, {int(c[0]), int(c[1]), int(c[2])})
    assert {name: (layer.cell, layer.module, layer.labels.tolist()) for name, layer in found.items()} == {
        "a:features[0:2]": ("linear", "a", a[:2].tolist()),
        "a:features[2:6]": ("linear", "a", a[2:].tolist()),
        "b:heads": ("attention", "b", [b[0], b[2]]),
        "d:channels": ("convolution", "d", d[:2].tolist()),
    }


def test_a_width_spread_over_axes_shrinks_along_the_longest() -> None:
    couplings, widths = Couplings(), Widths(ALL)
    labels = couplings.new(24).reshape(2, 4, 3)
    other, same = couplings.new(8).reshape(2, 4), np.tile(couplings.new(3), (5, 1))
    widths.splits = [
        (torch.from_numpy(labels), [0, 1, 2]), (torch.from_numpy(other), [1]), (torch.from_numpy(same), [0, 1]),
    ]  # fmt: skip
    widths.settle(couplings)
    roots = couplings.roots(labels.ravel()).reshape(labels.shape)
    assert np.array_equal(roots, np.broadcast_to(labels[:1, :, :1], labels.shape))
    assert np.array_equal(couplings.roots(other.ravel()), other.ravel())  # One axis is open: nothing is left to do.
    assert np.array_equal(couplings.roots(same[0]), same[0])
    assert not widths.splits


def cells(maps: list[tuple[str, str]], recurrent: set[str], **axes: Ids) -> dict[str, list[int]]:
    """Cells among weights that read and make these classes; `w1` and `w0` are the axes of the weight `w`."""
    recording = Recording()
    recording.couplings.new(19)
    recording.couplings.new(21)
    for name, labels in axes.items():
        axis = (f"{name[:-1]}.weight", int(name[-1]))
        recording.axes[axis], recording.roles[axis] = labels, {"own" if axis[1] == 0 else "reads"}
    recording.maps = [((f"{one}.weight", 1), (f"{two}.weight", 0)) for one, two in maps]
    recording.rows = {f"{one}.weight": 5 + k for k, (one, _) in enumerate(maps)}
    found = written_cells(recording, {39}, lambda name, _: name.removesuffix(".weight") in recurrent)
    assert all(layer.cell == "custom" for layer in found.values())
    assert list(recording.steps) == list(found)
    assert set(recording.steps.values()) <= set(recording.rows.values())
    return {name: layer.labels.tolist() for name, layer in found.items()}


U, V = np.arange(1, 4), np.arange(4, 8)
OTHER = np.arange(20, 24)


def test_a_state_that_goes_round_through_one_weight_or_several() -> None:
    one = {"w1": U, "w0": np.concatenate([U, OTHER])}
    assert cells([("w", "w")], {"w"}, **one) == {":l0": [1, 2, 3]}
    assert cells([("w", "w")], set(), **one) == {}
    # Read beside other things, twice, and where a class belongs to a layer already.
    assert cells([("w", "w")], {"w"}, w1=np.array([39, 3, 1, 3, 0, 21]), w0=np.array([1, 3, 39])) == {":l0": [3, 1]}
    # A single unit is no layer.
    assert cells([("w", "w")], {"w"}, w1=U[:1], w0=U[:1]) == {}
    # Through two weights: what each of them reads is a state.
    round_two = {"w1": U, "w0": V, "v1": V, "v0": U}
    assert cells([("w", "w"), ("v", "v")], {"w", "v"}, **round_two) == {":l0": [1, 2, 3], ":l1": [4, 5, 6, 7]}
    # On the way out nothing comes back.
    assert cells([("w", "w"), ("v", "v")], {"w", "v"}, w1=U, w0=V, v1=V, v0=OTHER) == {}


def test_states_that_one_weight_reads_are_apart_by_what_makes_them() -> None:
    maps, both = [("w", "w"), ("v", "v")], np.concatenate([U, OTHER])
    assert cells(maps, {"w", "v"}, w1=both, w0=U, v1=U, v0=OTHER) == {":l0": [1, 2, 3], ":l1": [20, 21, 22, 23]}
    assert cells(maps, {"w", "v"}, w1=both, w0=both, v1=U, v0=OTHER) == {":l0": both.tolist()}
    assert cells(maps, {"w"}, w1=both, w0=U, v1=U, v0=OTHER) == {":l0": [1, 2, 3]}


def test_cells_go_by_the_module_of_their_weight() -> None:
    deep = cells([("net.cell.w", "net.cell.w"), ("net.cell.v", "net.cell.v")], {"net.cell.w", "net.cell.v"},
                 **{"net.cell.w1": U, "net.cell.w0": U, "net.cell.v1": V, "net.cell.v0": V})  # fmt: skip
    assert deep == {"net.cell:l0": [1, 2, 3], "net.cell:l1": [4, 5, 6, 7]}
    assert list(cells([("cell.w", "cell.w")], {"cell.w"}, **{"cell.w1": U, "cell.w0": U})) == ["cell:l0"]


SITE, OTHER_SITE = Site("here", "file.py:3"), Site("there", "file.py:8")


def built(recording: Recording, layers: dict[str, RecurrentLayer], **tensors: torch.Tensor) -> Builder:
    recording.layers.update(layers)
    for axis in recording.axes:
        recording.roles.setdefault(axis, {"follows"})
    return Builder(recording, Widths(), tensors, 200)


def test_a_structure_from_a_recording() -> None:
    recording, (a, b, c), layers = recorded(3, 3, 4)
    x, (unnamed,) = recording.couplings.new(5), recording.couplings.new(1)
    recording.couplings.union(a, b)
    recording.axes |= {
        ("wa", 0): np.tile(a, 4), ("wa", 1): x, ("wb", 0): np.tile(b, 3), ("wb", 1): a, ("mean", 0): b,
        ("wc", 1): np.array([*b, unnamed, *c]), ("wc", 0): np.zeros(1, dtype=np.int64), ("computed:0", 1): a,
    }  # fmt: skip
    recording.roles |= {
        ("wa", 0): {"own", "follows"},
        ("wb", 0): {"own"},
        ("wb", 1): {"reads", "own"},
        ("wc", 1): {"reads"},
    }
    recording.biases |= {("wb", 1): None, ("wc", 1): "bias", ("wa", 1): "other", ("computed:0", 1): None}
    recording.products = [Product(4, (np.tile(a, 4), x)), Product(1, (c, c)), Product(6, (np.tile(a, 4), x.copy()))]
    recording.steps = {"a": 7, "b": 3}
    recording.outside_states = {"b"}
    recording.lone, recording.direct = [b[1:2]], [c[:2]]
    recording.approximate = [(c, SITE), (c, OTHER_SITE)]
    recording.count_coupled = [["b", "a"], ["a"], ["a", "b"]]
    recording.written = ("mean",)
    tensors = {
        "wa": nn.Parameter(torch.zeros(12, 5)), "wb": nn.Parameter(torch.zeros(9, 3)), "mean": torch.zeros(3),
        "wc": nn.Parameter(torch.zeros(1, 8)), "unknown": nn.Parameter(torch.zeros(2)),
    }  # fmt: skip
    builder = built(recording, layers, **tensors)
    structure = builder.structure()
    assert structure.layers == {
        "a": Layer("a", "gru", 3, least=2), "b": Layer("b", "gru", 3, least=2),
        "c": Layer("c", "gru", 4, approximate=OTHER_SITE, direct=True),
    }  # fmt: skip
    assert {(slot.tensor, slot.axis): (slot.size, slot.role, slot.spans) for slot in structure.slots} == {
        ("wa", 0): (12, "own", tuple(Span(3 * k, "a", 0, 3) for k in range(4))),
        ("wb", 0): (9, "own", tuple(Span(3 * k, "b", 0, 3) for k in range(3))),
        ("wb", 1): (3, "reads", (Span(0, "a", 0, 3),)), ("mean", 0): (3, "follows", (Span(0, "b", 0, 3),)),
        ("wc", 1): (8, "reads", (Span(0, "b", 0, 3), Span(4, "c", 0, 4))),
    }  # fmt: skip
    assert structure.shapes == {"wa": (12, 5), "wb": (9, 3), "mean": (3,), "wc": (1, 8)}
    assert structure.index_coupled == (("a", "b"), ("c",))
    assert structure.count_coupled == (("a", "b"),)
    assert set(structure.consumers) == {Consumer("wb", 1, None), Consumer("wc", 1, "bias")}
    assert set(structure.contractions) == {
        Contraction(10.0, (Extent(0, (("a", 4),)), Extent(5))),
        Contraction(1.0, (Extent(0, (("c", 1),)), Extent(0, (("c", 1),)))),
    }
    assert (structure.steps, structure.other_parameters) == (7.0, 200 - 60 - 27 - 8)
    assert (structure.buffers, structure.outside_states, structure.written) == (("mean",), ("b",), ("mean",))
    assert not structure.states
    assert builder.has_layers
    assert builder.layers_of(np.array([0, b[2], x[0]])) == ["a", "b"]
    assert builder.recurrent_layers_of(c[:1]) == ["c"]
    assert [builder.part_of("a", labels) for labels in (a[:2], a, np.concatenate([b, c]), c)] == [2, 0, 0, 0]
    assert builder.extent(np.array([*a, *a[:1], 0])) == Extent(2, (("a", 1),))
    assert not built(Recording(), {}).has_layers
    assert built(Recording(), {}).structure().steps == 1.0


def pins(recording: Recording, layers: dict[str, RecurrentLayer], more: dict[str, Pin] | None = None) -> dict[str, str]:
    found = built(recording, layers).structure(more).layers
    return {name: f"{layer.pin.reason} ({layer.pin.site})" for name, layer in found.items() if layer.pin is not None}


def test_pins_and_what_goes_with_them() -> None:
    recording, (a, b, c, _), layers = recorded(3, 3, 3, 4)
    recording.couplings.union(a, b)
    recording.count_coupled = [["b", "c"]]
    recording.pins = [(c[1:2], SITE, "first"), (c, OTHER_SITE, "second")]
    found = pins(recording, layers)
    assert found == {
        "c": f"first ({SITE})", "b": f"coupled with a layer that stays: first ({SITE})",
        "a": f"coupled with a layer that stays: coupled with a layer that stays: first ({SITE})",
    }  # fmt: skip
    assert pins(recording, layers, {"d": Pin(OTHER_SITE, "found later")})["d"] == f"found later ({OTHER_SITE})"


def test_units_that_are_coupled_out_of_order_stay() -> None:
    recording, (a, b, c, _), layers = recorded(3, 3, 3, 3)
    recording.couplings.union(a, b[[1, 0, 2]])
    recording.couplers = [(a, b[[1, 0, 2]], SITE)]
    assert pins(recording, layers) == dict.fromkeys(
        "ab", f"its units are coupled with those of a in a different order ({SITE})"
    )
    recording, (a, b, c, _), layers = recorded(3, 3, 3, 3)
    recording.couplings.union(a[:1], a[1:2])
    recording.couplers = [(a[:1], a[1:2], SITE)]
    assert pins(recording, layers) == {"a": f"its own units are coupled with each other ({SITE})"}
    recording, (a, b, c, _), layers = recorded(4, 4, 4, 4)
    in_turn = np.array([a[0], b[1], a[2], b[3]])
    recording.couplings.union(in_turn, c)
    recording.couplers = [(in_turn, c, SITE)]
    reason = f"its units are coupled with those of several layers (a, b) ({SITE})"
    found = pins(recording, layers)
    assert found["c"] == reason
    assert found["a"] == found["b"] == reason
    assert "d" not in found


def test_layers_of_other_sizes_cannot_stay_in_step() -> None:
    recording, (a, b, c, _), layers = recorded(3, 4, 3, 3)
    recording.keep_equal(["a", "b"], SITE)
    recording.keep_equal(["c", "d"], OTHER_SITE)
    assert pins(recording, layers) == dict.fromkeys(
        "ab", f"must stay in step with layers of other sizes (a, b) ({SITE})"
    )
    assert built(recording, layers).structure().count_coupled == (("c", "d"),)
    # Lines side by side, of layers that were not known when they were cut.
    recording, (a, b, c, d), layers = recorded(3, 3, 3, 3)
    recording.axes["w", 1] = used = recording.couplings.new(3)  # Of no layer, and read by a weight.
    recording.roles["w", 1] = {"reads"}
    recording.aligned = [np.stack([a, b]), np.stack([c, c]), np.stack([c, d, used])]
    assert built(recording, layers).structure().count_coupled == (("a", "b"),)


def test_where_to_look_when_a_rehearsal_fails() -> None:
    recording, (a, b, c), layers = recorded(4, 3, 3)
    recording.views = [(np.array([[*a[:2], 0], [*a[2:], 0]]), SITE), (np.array([[b[0], *[0] * 2]]), OTHER_SITE)]
    recording.losses = [(a, SITE, Loss(OTHER_SITE, "made of a")), (b, OTHER_SITE, Loss(SITE, "made of b"))]
    recording.suspects = [(a, SITE), (np.concatenate([a, b]), OTHER_SITE)]
    one, n = AxisSize(b), Attribute("part", ("n",), 3)
    recording.values = [
        (Expression({one: Fraction(1)}), SITE), (Expression({n: Fraction(1)}), OTHER_SITE),
    ]  # fmt: skip
    found = Trace(built(recording, layers), None, frozenset(), ["a", "m"], None)  # type: ignore[arg-type]
    assert found.split(["a"]) == Pin(SITE, "its units are split into parts of 2")
    assert found.split(["b"]) is None
    assert found.split(["c"]) is None
    assert found.lost(["a"], str(SITE.location)) == Pin(
        OTHER_SITE, f"made of a, and what comes of it meets these units at {SITE.location}"
    )
    assert found.lost(["b"], SITE.location) is None
    assert found.lost(["b"], OTHER_SITE.location) == Pin(
        SITE, f"made of b, and what comes of it meets these units at {OTHER_SITE.location}"
    )
    assert found.lost(["a"], OTHER_SITE.location) is None
    assert [found.suspect([name]) for name in "abc"] == [OTHER_SITE, OTHER_SITE, None]
    attribute = SizeAttribute("part", ("n",), Extent(0, (("c", 1),)))
    assert [found.counted([name], [attribute]) for name in "abc"] == [None, SITE, OTHER_SITE]
    assert found.counted(["c"], []) is None
    # What belongs to one unit is spread over an axis of its own.
    line = recording.couplings.new(4)
    recording.couplings.union(line[1:2], c[:1])
    recording.views.append((line[None], OTHER_SITE))
    found = Trace(built(recording, layers), None, frozenset(), ["a", "m"], None)  # type: ignore[arg-type]
    pin = found.split(["c"])
    assert pin is not None
    assert (pin.site, "of length 4" in pin.reason) == (OTHER_SITE, True)
    # Layers of one module are kept equal once; its projections apart from them.
    recording.layers |= {
        name: RecurrentLayer(name, cell, "m", recording.couplings.new(3))
        for name, cell in (("m:l0", "lstm"), ("m:l1", "lstm"), ("m:p0", "projection"), ("m:p1", "projection"))
    }
    assert found.tighten()
    assert recording.count_coupled == [["m:l0", "m:l1"], ["m:p0", "m:p1"]]
    assert not found.tighten()
    found.assume([attribute, attribute])
    found.withdraw([attribute])
    assert found._builder.assumed == [attribute]
