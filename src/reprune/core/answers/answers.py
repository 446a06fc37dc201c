"""The dense model's answers to a sample of the calibration batches, and how near a pruned model's come to them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from array_api_compat import array_namespace, device
from numpy.typing import NDArray

from reprune.core.answers.divergence import RULED_OUT, Divergence, aligned, divergence_of
from reprune.core.evidence.moments import widest

Array = Any
Run = Callable[[Any], Sequence[Array]]
"""From a batch to the output tensors of a model; on probabilities that a sigmoid made see `Outputs`."""

Told = Callable[[Sequence[Array]], None]
"""Takes the output tensors of a batch."""

MOST = 64
"""Batches that are held at most."""
BYTES = 1 << 28
"""Size of the batches that are held, at most: 256 MB."""
NUMBERS = 1 << 23
"""Answers that are held of each batch, at most."""
HELD = 1 << 24
"""Answers that consumers are fitted to and judged by, about: as many batches as make them up."""
ROWS = 1024
"""Rows that tell one split from another; from so many batches as make them up, but from two to `FEW`."""
FEW = 4
ONCE = (
    "Consumers keep the least-squares fit, as the batches came only once: give a list or a data loader, and they are "
    "refitted to the dense model's answers."
)
POOR = (
    "The answers are far from the dense model's. Train the small model before use (fine-tuning, reprune.distill), "
    "remove less, or say how far they may be: tolerance=."
)
JUDGED = 1 / 6
"""Share of the rows that nothing is fitted to the answers of."""
EQUAL = 1e-6
"""Answers that vary by no more than this share of their size are all the same, to rounding."""


class Meaning(NamedTuple):
    """What is known of a model's output tensors, by their places.

    Attributes:
        chances: Those that hold numbers which a sigmoid made.
        states: Final states that the caller carries; they are no answers.
    """

    chances: Collection[int] = ()
    states: Collection[int] = ()


class Sample:
    """Batches spread evenly over a pass of unknown length: when there are too many, every second one goes.

    Attributes:
        batches: The batches.
        answers: For each of them the dense model's output tensors, if these are known.

    Example:
        >>> sample = Sample(most=2)
        >>> for batch in range(7):
        ...     sample.add(batch)
        >>> sample.batches
        [0, 4]
    """

    def __init__(self, most: int = MOST, size: int = BYTES) -> None:
        self.batches: list[Any] = []
        self.answers: list[Sequence[Array] | None] = []
        self._most, self._size = most, size
        self._held: list[int] = []
        self._every, self._seen = 1, 0

    def add(self, batch: Any) -> None:
        """Take a batch, or leave it."""
        if self._seen % self._every == 0:
            self.batches.append(batch)
            self.answers.append(None)
            self._held.append(_bytes(batch))
            while len(self.batches) > 1 and (len(self.batches) > self._most or sum(self._held) > self._size):
                self.batches, self.answers, self._held = self.batches[::2], self.answers[::2], self._held[::2]
                self._every *= 2
        self._seen += 1

    def watch(self, batches: Iterable[Any]) -> Iterator[Any]:
        """All batches, some of which are kept on the way."""
        for batch in batches:
            self.add(batch)
            yield batch

    def answered(self, outputs: Sequence[Array]) -> None:
        """Take the answers to the last batch that came, if it is held and they are not too many."""
        last = self._seen - 1
        known = [output for held in self.answers for output in held or ()]
        if last == (len(self.batches) - 1) * self._every and sum(map(_count, [*known, *outputs])) <= HELD:
            self.answers[-1] = [output + 0 for output in outputs]  # Copies: a model may write into what it returned.


def _count(output: Array) -> int:
    return math.prod(output.shape)


def _bytes(batch: Any) -> int:
    if isinstance(batch, Mapping):
        return sum(map(_bytes, batch.values()))
    if isinstance(batch, (list, tuple)):
        return sum(map(_bytes, batch))
    return int(getattr(batch, "nbytes", 0))


@dataclass(frozen=True)
class Fidelity:
    """How near a pruned model's answers are to the dense one's, on calibration rows that it was not fitted to.

    Attributes:
        divergence: Mean divergence of its answers (`core.answers.divergence`), in nats where they are probabilities.
        agreement: Share of the rows whose largest output is the same one; None where there is but one output.
        error: Root of the mean squared difference over the variance of the dense answers: 0 is equal, 1 is no better
            than their mean.
        note: What else there is to say of them; empty if nothing.
    """

    divergence: float
    agreement: float | None
    error: float
    note: str = ""

    @property
    def poor(self) -> bool:
        """Whether one should look twice before using the model."""
        return self.error > 0.5 and (self.agreement is None or self.agreement < 0.8)

    def __str__(self) -> str:
        agreement = "" if self.agreement is None else f"the same largest output in {self.agreement:.1%} of rows, "
        return f"{agreement}relative error {self.error:.1%}, divergence {self.divergence:.3g}"


Rows = Literal["fit", "judged", "all"]


@dataclass(frozen=True)
class Output:
    """One of the dense model's outputs to a batch: the rows of which answers are held.

    Attributes:
        place: Which of the output tensors.
        rows: How many rows it has.
        fit: Rows to fit to.
        judged: Rows to judge by.
        answers: Answers to `fit`, then to `judged` (rows × features).
    """

    place: int
    rows: int
    fit: NDArray[np.int64]
    judged: NDArray[np.int64]
    answers: Array


@dataclass(frozen=True)
class Compared:
    """Rows of one output, beside the dense model's.

    Attributes:
        place: Which of the output tensors.
        kind: What to compare by.
        found: Rows of the pruned model.
        wanted: Those of the dense one.
        rows: Which rows of the output they are.
    """

    place: int
    kind: Divergence
    found: Array
    wanted: Array
    rows: NDArray[np.int64]


class Answers:
    """A dense model's answers to some batches; it is run when they are first asked for.

    Args:
        batches: The batches.
        run: Runs the dense model.
        divergence: What to compare by (see `divergence_of`).
        meaning: What is known of the output tensors.
        known: For each of the batches what the model answers, if that is known already.
        seed: Of the choice of rows.
    """

    def __init__(
        self,
        batches: Sequence[Any],
        run: Run,
        divergence: str | None = None,
        meaning: Meaning | None = None,
        known: Sequence[Sequence[Array] | None] = (),
        seed: int = 0,
    ) -> None:
        self.batches = batches
        self._known = {place: outputs for place, outputs in enumerate(known) if outputs is not None}
        self._run, self._divergence, self._seed = run, divergence, seed
        self._meaning = meaning or Meaning()
        self._outputs: dict[int, list[Output]] = {}
        self._kinds: dict[int, Divergence] = {}

    @property
    def places(self) -> list[int]:
        """Places of the batches to fit to and to judge by."""
        return self._spread(HELD / self._first(lambda output: output.rows * output.answers.shape[1]))

    @property
    def some(self) -> list[int]:
        """Places of a few batches, which tell one split from another."""
        return self._spread(min(max(ROWS / self._first(lambda output: output.rows), 2), FEW))

    def _first(self, number: Callable[[Output], int]) -> int:
        """The largest of the numbers of the first batch's outputs."""
        return max(map(number, self._of(0)), default=1)

    def _spread(self, count: float) -> list[int]:
        """Places of so many batches, spread over all of them."""
        total = len(self.batches)
        count = min(math.ceil(count), total)
        return [number * total // count for number in range(count)]

    def compared(self, batch: int, found: Sequence[Array], rows: Rows) -> Iterator[Compared]:
        """Every output of a batch that can be compared: those of the same shape, which carried states have not."""
        for output in self._of(batch):
            whole = as_rows(found[output.place])
            if whole is None or tuple(whole.shape) != (output.rows, output.answers.shape[1]):
                continue
            part = {
                "fit": slice(0, len(output.fit)),
                "judged": slice(len(output.fit), None),
                "all": slice(None),
            }[rows]
            chosen = np.concatenate([output.fit, output.judged])[part]
            pair = aligned(_take(whole, chosen), output.answers[part])
            yield Compared(output.place, self._kinds[output.place], *pair, chosen)

    def divergence(self, run: Callable[[int], Sequence[Array]], places: Iterable[int], rows: Rows) -> float:
        """Mean divergence of a model on rows of some batches, given the place of each, added up over outputs.

        Infinite where the models have no outputs in common.
        """
        total: dict[int, float] = {}
        count: dict[int, int] = {}
        for batch in places:
            for pair in self.compared(batch, run(batch), rows):
                value = float(array_namespace(pair.found).sum(pair.kind.values(pair.found, pair.wanted)))
                total[pair.place] = total.get(pair.place, 0.0) + value
                count[pair.place] = count.get(pair.place, 0) + len(pair.rows)
        mean = sum(total[place] / count[place] for place in total)
        return mean if total and not math.isnan(mean) else math.inf

    def fidelity(self, run: Callable[[int], Sequence[Array]], places: Iterable[int], rows: Rows) -> Fidelity | None:
        """How near the answers of a model are, on rows of some batches, given the place of each.

        None where the models have no outputs in common.
        """
        tallies: dict[int, _Tally] = {}
        for batch in places:
            for pair in self.compared(batch, run(batch), rows):
                tallies.setdefault(pair.place, _Tally()).add(pair)
        if not tallies:
            return None
        divergence = sum(tally.divergence / tally.rows for tally in tallies.values())
        agreements = [tally.agreed / tally.rows for tally in tallies.values() if tally.width > 1]
        errors = [tally.error for tally in tallies.values()]
        return Fidelity(
            divergence, sum(agreements) / len(agreements) if agreements else None, sum(errors) / len(errors)
        )

    def cotangents(
        self, batch: int, found: Sequence[Array], rng: np.random.Generator
    ) -> Iterator[tuple[int, Array, Array]]:
        """What to pull back from outputs of a batch: their places, the gradient of the mean divergence of all rows to
        fit, and a random projection of its curvature, each of the output's own shape."""
        for pair in self.compared(batch, found, "fit"):
            # Batches are taken to be as large as the first one: what matters is that all rows of an output count alike.
            first = next((held for held in self._of(0) if held.place == pair.place), None)
            rows = len(self.places) * len(pair.rows if first is None else first.fit)
            gradient = pair.kind.gradient(pair.found, pair.wanted) / rows
            projection = pair.kind.projection(pair.found, pair.wanted, rng) / rows**0.5
            yield pair.place, *(_spread(part, pair.rows, found[pair.place]) for part in (gradient, projection))

    def _of(self, batch: int) -> list[Output]:
        """What is held of a batch."""
        if batch not in self._outputs:
            rng = np.random.default_rng([self._seed, batch])
            self._outputs[batch] = []
            known = self._known.pop(batch, None)
            for place, found in enumerate(self._run(self.batches[batch]) if known is None else known):
                rows = as_rows(found)
                if rows is not None and place not in self._meaning.states:
                    held = _draw(rng, *rows.shape)
                    output = Output(place, rows.shape[0], *held, _take(rows, np.concatenate(held)))
                    self._outputs[batch].append(output)
                    if place not in self._kinds:
                        chances = place in self._meaning.chances
                        self._kinds[place] = divergence_of(output.answers, self._divergence, chances=chances)
        return self._outputs[batch]


class _Tally:
    """What is added up over batches of one output."""

    def __init__(self) -> None:
        self.rows = self.width = self._count = 0
        self.divergence = self.agreed = self._square = self._sum = self._squares = 0.0

    def add(self, pair: Compared) -> None:
        xp = array_namespace(pair.found)
        self.rows += len(pair.rows)
        self.width = pair.found.shape[1]
        self.divergence += float(xp.sum(pair.kind.values(pair.found, pair.wanted)))
        same = xp.argmax(pair.found, axis=-1) == xp.argmax(pair.wanted, axis=-1)
        self.agreed += float(xp.sum(xp.astype(same, xp.float32)))
        counts = pair.wanted > RULED_OUT
        # Of a large mean single precision keeps no digits of the variance.
        wanted, found = (xp.astype(part, widest(xp, part)) for part in (pair.wanted, pair.found))
        wanted, found = (xp.where(counts, part, xp.zeros_like(part)) for part in (wanted, found))
        self._count += int(xp.sum(xp.astype(counts, xp.int64)))
        self._square += float(xp.sum((found - wanted) ** 2))
        self._sum += float(xp.sum(wanted))
        self._squares += float(xp.sum(wanted**2))

    @property
    def error(self) -> float:
        spread, squares = self._count * self._squares - self._sum**2, EQUAL**2 * self._count * self._squares
        return math.sqrt(self._count * self._square / spread) if spread > squares else float(self._square > 0)


def _spread(rows: Array, places: NDArray[np.int64], like: Array) -> Array:
    """Rows at their places in a tensor of zeros of the shape of another one."""
    xp = array_namespace(rows)
    whole = xp.zeros((math.prod(like.shape) // rows.shape[1], rows.shape[1]), dtype=rows.dtype, device=device(rows))
    whole[xp.asarray(places, device=device(rows))] = rows
    return xp.reshape(whole, tuple(like.shape))


def _draw(rng: np.random.Generator, rows: int, features: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows to fit to and rows to judge by: all of them if they are not too many; a single one serves both."""
    order = rng.permutation(rows)[: max(NUMBERS // features, 1)]
    judged = max(round(len(order) * JUDGED), 1)
    fit = order[judged:] if len(order) > 1 else order
    return np.sort(fit), np.sort(order[:judged])


def as_rows(found: Array) -> Array | None:
    """A tensor of outputs as rows of features; one without a feature axis as one feature; None if it is no numbers."""
    xp = array_namespace(found)
    if not xp.isdtype(found.dtype, "real floating") or found.ndim == 0 or 0 in found.shape:
        return None
    return xp.reshape(found, (-1, found.shape[-1] if found.ndim > 1 else 1))


def _take(rows: Array, places: NDArray[np.int64]) -> Array:
    xp = array_namespace(rows)
    return xp.take(rows, xp.asarray(places, device=device(rows)), axis=0)
