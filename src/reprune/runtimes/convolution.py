"""Convolutions as kinds of layers that are timed: all that they are but their channels, in words that a table holds."""

from __future__ import annotations

import re
from dataclasses import dataclass

_SIZES = r"(\d+(?:x\d+)*)"
_KIND = re.compile(
    rf"(transposed )?convolution {_SIZES} stride {_SIZES} padding {_SIZES} dilation {_SIZES} over {_SIZES}$"
)


@dataclass(frozen=True)
class Geometry:
    """A convolution without its channels.

    Attributes:
        transposed: Whether it is transposed.
        kernel: Size of its kernel along every axis of places; so are the others.
        stride: Its stride.
        padding: Its padding at either end.
        dilation: Its dilation.
        places: Places that it reads.

    Example:
        >>> str(Geometry(False, (3,), (1,), (1,), (1,), (40,)))
        'convolution 3 stride 1 padding 1 dilation 1 over 40'
    """

    transposed: bool
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    places: tuple[int, ...]

    def __str__(self) -> str:
        words = ("", " stride ", " padding ", " dilation ", " over ")
        sizes = (self.kernel, self.stride, self.padding, self.dilation, self.places)
        text = "".join(word + "x".join(map(str, held)) for word, held in zip(words, sizes, strict=True))
        return f"{'transposed ' * self.transposed}convolution {text}"

    @staticmethod
    def of_kind(kind: str) -> Geometry | None:
        """The geometry that the kind of a timed layer names; None for other kinds."""
        found = _KIND.match(kind)
        if found is None:
            return None
        return Geometry(bool(found[1]), *(tuple(map(int, found[index].split("x"))) for index in range(2, 7)))
