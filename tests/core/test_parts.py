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


def test_a_part_goes_from_a_seam_or_an_end_to_the_next() -> None:
    layer, seams = np.arange(3, 9), {(4, 5)}
    parts = [
        (start, stop) for start in range(2, 10) for stop in range(start + 1, 11)
        if is_part(seams, layer, np.arange(start, stop))
    ]  # fmt: skip
    assert parts == [(3, 5), (3, 9), (5, 9)]
    assert not is_part(seams, layer, np.array([3, 5]))
