"""From the uses of sizes that a trace recorded to attributes to change, and to layers that must keep equal numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from itertools import groupby, permutations
from typing import NamedTuple

from reprune.core.layers import Extent, SizeAttribute
from reprune.torch.tracing.labels import Ids
from reprune.torch.tracing.sizes.sizes import Attribute, Expression, SizeUse, Term

Place = tuple[str, int] | None
"""Layer and unit of one position on an axis, or None where it holds no unit."""


class _Claim(NamedTuple):
    """An attribute times a factor is the length of an axis."""

    extent: Extent
    factor: Fraction

    @property
    def shares(self) -> frozenset[tuple[str, Fraction]]:
        """What each layer contributes to the attribute."""
        return frozenset((name, times / self.factor) for name, times in self.extent.layers)


class Sizes:
    """Attributes and bonds, from all uses together.

    Args:
        places: The layer and unit of each label.
        units: Units of every layer.
    """

    def __init__(self, places: Callable[[Ids], Sequence[Place]], units: Mapping[str, int]) -> None:
        self._places, self._units = places, units
        self._claims: dict[Attribute, list[_Claim]] = {}
        self._bonds: list[tuple[str, ...]] = []
        self.shared: dict[frozenset[str], Attribute] = {}
        """Layers that are bound to each other because one attribute is the size of each."""

    def solve(
        self,
        uses: Iterable[SizeUse],
        assumed: Iterable[SizeAttribute] = (),
        steady: Iterable[tuple[Expression, Expression]] = (),
        level: Iterable[tuple[Expression, Expression]] = (),
    ) -> tuple[tuple[SizeAttribute, ...], list[tuple[str, ...]]]:
        """Attributes to change, and sets of layers that must keep equal numbers of units.

        Args:
            uses: What the trace saw.
            assumed: Attributes that are taken as sizes without having been seen.
            steady: Sizes that stay equal to multiples of others.
            level: Sizes of tensors that are stacked, and so must stay equal.
        """
        uses = list(uses)
        for size in assumed:
            self._claims.setdefault(Attribute(size.owner, size.path, 0), []).append(_Claim(size.extent, Fraction(1)))
        firm = [(use.expression, self._places(use.labels)) for use in uses if use.firm]
        for expression, places in sorted(firm, key=lambda one: len(one[0].otherwise)):
            for term, claim in self._claims_of(self._reading(expression, places), places):
                self._claim(term, claim)
        for use in uses:
            if not use.firm:
                self._loose(use)
        for one, other in steady:
            self._follow(one, other)
        for one, other in level:
            known = [claim for term in (*one.terms, *other.terms) for claim in self._known(term)[:1]]
            if len({claim.shares for claim in known}) > 1:
                self._bond(known)
        attributes = tuple(self._attribute(term, claims) for term, claims in self._claims.items())
        return attributes, self._bonds

    def _reading(self, expression: Expression, places: Sequence[Place]) -> Expression:
        """Of a product: the reading that agrees with what is known of its sizes already, else the likeliest."""
        for reading in expression.readings if expression.otherwise else ():
            found = self._claims_of(reading, places)
            if found and all(
                known and known[0].shares == claim.shares for term, claim in found for known in [self._known(term)]
            ):
                return reading
        return expression

    def _claims_of(self, expression: Expression, places: Sequence[Place]) -> list[tuple[Term, _Claim]]:
        """What follows for each size from an expression that is the length of an axis with these places."""
        terms, constant = list(expression.terms.items()), expression.constant
        if len(terms) == 1:
            parts = [(terms[0], places, int(constant) if constant.denominator == 1 else 0)]
        else:
            parts = [(term, part, 0) for term, part in _shared_out(terms, int(constant), places)]
        found = []
        for (term, factor), part, added in parts:
            length = extent(part, self._units)
            if length.layers and factor > 0:
                found.append((term, _Claim(Extent(length.fixed - added, length.layers), factor)))
        return found

    def _known(self, term: Term) -> list[_Claim]:
        """What is claimed of a size; of the length of an axis, what is on it."""
        if isinstance(term, Attribute):
            return self._claims.get(term, [])
        length = extent(self._places(term.labels), self._units)
        return [_Claim(length, Fraction(1))] if length.layers else []

    def _claim(self, term: Term, claim: _Claim) -> None:
        if isinstance(term, Attribute):
            self._claims.setdefault(term, []).append(claim)
            return
        for read in self._known(term):
            if read.shares != claim.shares:
                self._bond([read, claim])

    def _follow(self, one: Expression, other: Expression) -> None:
        """An attribute that is a multiple of another one changes with it."""
        if len(one.terms) != 1 or len(other.terms) != 1 or one.constant or other.constant:
            return
        (term, factor), (leading, times) = *one.terms.items(), *other.terms.items()
        if isinstance(term, Attribute) and term not in self._claims:
            for length, per in self._known(leading)[:1]:
                self._claim(term, _Claim(length, per * factor / times))

    def _loose(self, use: SizeUse) -> None:
        """Layers that take states of an attribute's width share its number only if something else needs it."""
        names = {place[0] for place in self._places(use.labels) if place is not None}
        for term in use.expression.terms:
            held = self._claims.get(term, []) if isinstance(term, Attribute) else []
            every = tuple(sorted({name for claim in held for name, _ in claim.extent.layers} | names))
            if held and len(every) > 1:
                self._bonds.append(every)

    def _attribute(self, term: Attribute, claims: Sequence[_Claim]) -> SizeAttribute:
        whole = all((times / claims[0].factor).denominator == 1 for _, times in claims[0].extent.layers)
        if not whole or len({claim.shares for claim in claims}) > 1:
            self._bond(claims)
            self.shared[frozenset(name for claim in claims for name, _ in claim.extent.layers)] = term
        length, factor = claims[0]
        return SizeAttribute(term.owner, term.path, length, times=factor.denominator, divisor=factor.numerator)

    def _bond(self, claims: Sequence[_Claim]) -> None:
        names = tuple(sorted({name for claim in claims for name, _ in claim.extent.layers}))
        if len(names) > 1:
            self._bonds.append(names)


def extent(places: Sequence[Place], units: Mapping[str, int]) -> Extent:
    """Length of an axis with these places, as a function of the units kept."""
    held = Counter(place[0] for place in places if place is not None)
    times = {name: count // units[name] for name, count in held.items()}
    fixed = len(places) - sum(times[name] * units[name] for name in times)
    return Extent(fixed, tuple((name, factor) for name, factor in times.items() if factor))


def _shared_out(
    terms: Sequence[tuple[Term, Fraction]], constant: int, places: Sequence[Place]
) -> list[tuple[tuple[Term, Fraction], Sequence[Place]]]:
    """A sum of sizes along an axis: which term is the length of which part, in the order written or another one."""
    seams = {0, len(places)}
    at = 0
    for _, run in groupby(places, key=lambda place: place and place[0]):
        at += len(list(run))
        seams.add(at)
    parts: list[tuple[tuple[Term, Fraction] | None, int]] = [(term, int(term[1] * term[0].value)) for term in terms]
    parts += [(None, constant)] if constant else []
    for order in permutations(parts) if len(parts) <= 4 and all(length > 0 for _, length in parts) else ():
        ends = [sum(length for _, length in order[: k + 1]) for k in range(len(order))]
        if ends[-1] == len(places) and seams.issuperset(ends):
            starts = [0, *ends]
            return [
                (term, places[start:end])
                for (term, _), start, end in zip(order, starts, ends, strict=False)
                if term is not None
            ]
    return []
