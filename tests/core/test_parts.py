"""Layers whose units are those of several others side by side are taken in parts."""

from __future__ import annotations

import numpy as np

from reprune.core.parts import Part, in_parts, is_part, parts_of


def test_a_layer_beside_two_others_is_cut_where_the_partners_change() -> None:
    layers = {"one": np.arange(1, 4), "other": np.arange(4, 6), "wide": np.arange(6, 11)}
    partner = dict(zip(range(6, 11), range(1, 6), strict=True))

    def classes(labels: np.ndarray) -> np.ndarray:
        return np.array([partner.get(label, label) for label in labels.tolist()])

    # Widths are no layers here; those of equal number cut none.
    found = in_parts(layers, classes, [("conv:channels", "dense:features")])
    assert found == {
        "one": Part("one", 0, 3),
        "other": Part("other", 0, 2),
        "wide:0-2": Part("wide", 0, 3),
        "wide:3-4": Part("wide", 3, 5),
    }
    layers["twin"] = np.arange(11, 16)
    bound = in_parts(layers, classes, [("wide", "twin")])
    wholes = {name: part.layer for name, part in bound.items()}
    assert parts_of(wholes, ("wide", "twin")) == [("wide:0-2", "twin:0-2"), ("wide:3-4", "twin:3-4")]


def test_cuts_spread_over_what_is_bound_and_over_equal_units() -> None:
    """The partners of `pair` change at 3; `bound` has as many units as it, `same` and `beside` the units of `bound`."""
    numbers = np.arange(100)
    layers = {
        "bound": numbers[0:5], "same": numbers[10:15], "beside": numbers[20:27],
        "one": numbers[40:43], "other": numbers[50:52], "pair": numbers[60:65], "last": numbers[70:75],
        "free": numbers[80:84],
    }  # fmt: skip
    root = np.arange(100)
    root[10:15] = root[22:27] = root[0:5]
    root[60:63], root[63:65] = root[40:43], root[50:52]
    # Bound by numbers of units, which differ in the third bond, and of widths, which are no layers, in the last.
    bonds = [("bound", "pair"), ("same", "last"), ("one", "other"), ("free", "conv:channels")]
    found = in_parts(layers, lambda labels: root[labels], bonds, [(81, 82)])
    cuts = {name: [part.stop for part in found.values() if part.layer == name] for name in layers}
    assert cuts == {
        "bound": [3, 5], "same": [3, 5], "beside": [2, 5, 7], "one": [3], "other": [2],
        "pair": [3, 5], "last": [3, 5], "free": [2, 4],
    }  # fmt: skip
    assert found["beside:2-4"] == Part("beside", 2, 5)
    assert found["free:0-1"] == Part("free", 0, 2)


def test_cuts_go_from_bond_to_bond() -> None:
    """In whatever order the bonds are given, and where no layers have the same units."""
    layers = {"first": np.arange(20, 25), "second": np.arange(10, 15), "pair": np.arange(5), "one": np.arange(30, 33)}
    root = np.arange(40)
    root[:3] = root[30:33]
    for bonds in ([("first", "second"), ("second", "pair")], [("second", "pair"), ("first", "second")]):
        found = in_parts(layers, lambda labels: root[labels], bonds)
        cut = [f"{name}:{ends}" for name in ("first", "second", "pair") for ends in ("0-2", "3-4")]
        assert sorted(found) == sorted([*cut, "one"])


def test_parts_of_few_units() -> None:
    """Two partners of two units each; one of two and two of one; a bond of all layers that there are."""
    layers = {
        name: np.arange(start, stop)
        for name, start, stop in [
            ("one", 0, 2),
            ("p", 2, 3),
            ("q", 3, 4),
            ("wide", 4, 8),
            ("two", 8, 10),
            ("three", 10, 12),
            ("broad", 12, 16),
        ]
    }
    root = np.arange(16)
    root[4:8], root[12:16] = root[:4], root[8:12]
    found = in_parts(layers, lambda labels: root[labels], [])
    assert [name for name in found if ":" in name] == ["wide:0-1", "wide:2-2", "wide:3-3", "broad:0-1", "broad:2-3"]
    found = in_parts({"a": root[:4], "b": root[8:12]}, lambda labels: labels, [("a", "b")], [(1, 2)])
    assert list(found) == ["a:0-1", "a:2-3", "b:0-1", "b:2-3"]


def test_units_that_are_coupled_out_of_order_stay_together() -> None:
    layers = {"a": np.arange(4), "b": np.arange(4, 8), "twice": np.arange(8, 12)}
    root = np.array([0, 1, 2, 3, 1, 0, 3, 2, 8, 9, 8, 9])
    assert in_parts(layers, lambda labels: root[labels], []) == {name: Part(name, 0, 4) for name in layers}


def test_bonds_of_parts() -> None:
    wholes = {"a:0-1": "a", "a:2-3": "a", "b:0-1": "b", "b:2-3": "b", "c": "c"}
    assert parts_of(wholes, ("a", "b")) == [("a:0-1", "b:0-1"), ("a:2-3", "b:2-3")]
    assert parts_of(wholes, ("a", "c")) == [("a:0-1", "a:2-3", "c")]
    assert parts_of(wholes, ("c", "gone")) == []
    assert parts_of(wholes, ("a", "gone")) == []


def test_a_part_goes_from_a_seam_or_an_end_to_the_next() -> None:
    layer, seams = np.arange(3, 9), {(4, 5)}
    parts = [
        (start, stop) for start in range(2, 10) for stop in range(start + 1, 11)
        if is_part(seams, layer, np.arange(start, stop))
    ]  # fmt: skip
    assert parts == [(3, 5), (3, 9), (5, 9)]
    assert not is_part(seams, layer, np.array([3, 5]))
