"""From labels to layers, piece by piece: which labels go together, and what is a layer of its own."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch

from reprune.torch.tracing.labels import TAG, Couplings, Ids
from reprune.torch.tracing.recording import Recording, RecurrentLayer
from reprune.torch.tracing.sizes.sizes import Attribute, AxisSize, Expression, SizeUse
from reprune.torch.tracing.structure.interleaved import couple_interleaved
from reprune.torch.tracing.structure.sized import couple_sized
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
    lengths = {"same": 4, "off axis": 4, "half": 2, "plus": 5, "joint": 4, "apart": 4}
    made = {name: recording.couplings.new(length) for name, length in lengths.items()}
    recording.couplings.union(made["joint"][:1], made["joint"][1:2])
    n, m = Attribute("", ("n",), 4), Attribute("", ("m",), 4)
    own = AxisSize(a)
    use(n, a)
    use(n, np.concatenate([NONE, made["same"], [TAG]]))
    use(n, made["half"], factor=2)
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
    for name in ("half", "plus", "joint", "apart"):
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
    other = couplings.new(8).reshape(2, 4)
    widths.splits = [(torch.from_numpy(labels), [0, 1, 2]), (torch.from_numpy(other), [1])]
    widths.settle(couplings)
    roots = couplings.roots(labels.ravel()).reshape(labels.shape)
    assert np.array_equal(roots, np.broadcast_to(labels[:1, :, :1], labels.shape))
    assert np.array_equal(couplings.roots(other.ravel()), other.ravel())  # One axis is open: nothing is left to do.
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
