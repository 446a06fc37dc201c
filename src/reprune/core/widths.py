"""Which widths of a model are layers of their own, once it is known which positions go together."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence


def settled(widths: Mapping[str, Sequence[int]], taken: Collection[int]) -> dict[str, tuple[int, ...]]:
    """The widths that are layers, each with the classes that are its units.

    Args:
        widths: By address, in the order in which the model runs them: the class of each position, classes being
            positions that go together. What repeats itself counts once.
        taken: Classes that are units already, those of recurrent layers.

    Returns:
        In the same order. A width whose classes all belong to smaller ones (a sum of a concatenation) or are taken goes
        with those and is no layer; widths of the very same classes, in one order, are layers of one group.

    Example:
        >>> settled({"sum": [1, 2, 3, 4], "one": [1, 2], "other": [3, 4], "state": [7, 8]}, {7, 8})
        {'one': (1, 2), 'other': (3, 4)}
    """
    classes = {address: tuple(dict.fromkeys(held)) for address, held in widths.items()}
    known, groups = set(taken), set[tuple[int, ...]]()
    found: dict[str, tuple[int, ...]] = {}
    for address in sorted(classes, key=lambda address: len(classes[address])):
        together = classes[address]
        if together not in groups:
            together = tuple(held for held in together if held not in known)
            if not together:
                continue
            groups.add(together)
            known.update(together)
        found[address] = together
    return {address: found[address] for address in classes if address in found}
