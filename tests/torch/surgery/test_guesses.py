"""Attributes that may be sizes of layers, in the order in which they are tried."""

from __future__ import annotations

from torch import nn

from reprune.core.layers import Extent, Layer, SizeAttribute, Slot, Span, Structure
from reprune.torch.surgery.guesses import guesses


class Numbers(nn.Module):
    """Numbers by attribute."""

    def __init__(self, **numbers: int) -> None:
        super().__init__()
        for name, number in numbers.items():
            setattr(self, name, number)


def structure(each: int = 1, known: tuple[str, ...] = ()) -> Structure:
    """Two layers of six units; what reads the first has so many places for each, in one span, and one in another."""
    slots = (
        Slot("w", 1, 6 * each, "reads", (Span(0, "a", 0, 6, each),)),
        Slot("v", 1, 60, "reads", (Span(0, "a", 0, 3, 11), Span(33, "b", 0, 6, 13), Span(111, "a", 3, 3, 11))),
    )
    sizes = tuple(SizeAttribute("", (name,), Extent(6)) for name in known)
    return Structure({name: Layer(name, "custom", 6) for name in ("a", "b")}, slots, {}, (("a",), ("b",)), sizes=sizes)


def tried(model: nn.Module, found: Structure, block: tuple[str, ...] = ("a",)) -> list[list[tuple[str, int]]]:
    groups = list(guesses(model, found, block))
    for size in (size for group in groups for size in group):
        assert (size.owner, size.times, size.divisor, size.extent.fixed) == ("", 1, 1, 0)
        assert [layer for layer, _ in size.extent.layers] == ["a"]
    return [[(str(size.path[0]), size.extent.layers[0][1]) for size in group] for group in groups]


def test_small_multiples_are_tried_alone_then_together() -> None:
    numbers = Numbers(b=12, a=6, no=7, most=48, more=54, zero=0, c=6, known=6, heads=60)
    one = [[("a", 1)], [("c", 1)], [("b", 2)], [("most", 8)]]
    assert tried(numbers, structure(known=("known",))) == [
        *one,
        [("a", 1), ("c", 1)],
        [*one[0], *one[1], *one[2], *one[3]],
    ]
    # What takes up as many places as an axis has for the units is a size, too, however many they are.
    singles = [*one, [("heads", 10)]]
    every = [single[0] for single in singles]
    assert tried(numbers, structure(each=10, known=("known",))) == [*singles, every[:2], every]
    assert tried(Numbers(a=6, odd=66, other=78), structure()) == [[("a", 1)]]
    assert tried(Numbers(b=12, c=18), structure()) == [[("b", 2)], [("c", 3)], [("b", 2), ("c", 3)]]


def test_not_too_many_are_tried() -> None:
    """Eight alone; sixteen together, and no more."""
    for count, together in ((16, 2), (17, 0)):
        groups = tried(Numbers(**{f"n{number}": 6 for number in range(count)}), structure())
        assert [len(group) for group in groups] == [1] * 8 + [count] * together
