"""Responses of every recurrent layer on calibration batches, gathered into mean and covariance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import keras
import numpy as np

from reprune.core.answers.answers import Told
from reprune.core.errors import StatisticsError
from reprune.core.evidence.readings import WIDEST, Axis, FeedBack, SplitMoments, Statistics
from reprune.core.evidence.widths import Reader, readers_of_width, responses_in
from reprune.core.layers import WIDTHS, Layer, Structure
from reprune.keras.calibration.readers import INSIDE, argument, makers, own_readers, readers
from reprune.keras.calibration.recurrences import Piece, Recurrences, entered, is_recurrent
from reprune.keras.surgery.cloning import named_cells
from reprune.keras.tracing.compiled import Runner
from reprune.keras.tracing.configuration import is_cell
from reprune.keras.tracing.graph import ModelGraph, flat_inputs, graph_of, run, widened
from reprune.keras.tracing.record import Forward, captured
from reprune.keras.tracing.rules.cells import cell_name, state_name
from reprune.keras.tracing.rules.recurrent import CELLS, cell_kind, cells_of

Array = Any
Key = str | Axis


class Response(NamedTuple):
    """What one layer responds to one batch, or what one consumer reads of it.

    Attributes:
        key: The layer's name, or the consumer's tensor and axis.
        rows: One row for each valid time step of each sequence (rows × units).
        sequences: Which sequence of the batch each row belongs to (rows).
        batch: Number of sequences.
        ends: For the weight through which a layer reads its own units, the states before the first steps, which it
            reads, and those after the last, which it does not (sequences × units each).
        like: Whose rows these are, too: statistics of the one serve both.
    """

    key: Key
    rows: Array
    sequences: Array
    batch: int
    ends: tuple[Array, Array] | None = None
    like: Axis | None = None


class Seen(NamedTuple):
    """Sequences that came by while a graph ran.

    Attributes:
        key: As of a `Response`.
        sequence: The sequences (sequences × time × … × units).
        mask: Valid steps, or None for all (sequences × time).
        start: State before the first steps, or None for zeros (sequences × … × units).
        backwards: Whether the last step is the first one in time; None where nothing is known of the ends.
        first: As of `Reads`.
    """

    key: Key
    sequence: Any
    mask: Any = None
    start: Any = None
    backwards: bool | None = None
    first: bool = True


def observe(
    model: Any,
    structure: Structure,
    batches: Iterable[Any],
    forward: Forward | None = None,
    *,
    readings: bool = False,
    told: Told | None = None,
) -> Statistics:
    """Mean and covariance of the responses of every layer; padding never counts.

    Args:
        model: The model; it is left as it was.
        structure: What `trace` found.
        batches: Inputs as the model takes them, one held at a time.
        forward: Replaces `model(batch)`.
        readings: Gather what consumers read, too.
        told: Called with what the model returns for each batch.
    """
    examples = (captured(model, batch, forward) for batch in batches)
    first = next(examples, None)
    if first is None:
        raise StatisticsError("batches is empty: give at least one input.")
    probe = Probe(graph_of(model, first), structure, readings=readings, told=told)
    return gather(probe, structure, chain([first], examples))


def gather(probe: Probe, structure: Structure, examples: Iterable[Any]) -> Statistics:
    """Mean and covariance of what a probe yields on examples, as the graph takes them."""
    statistics, likes = Statistics(structure), dict[Key, Axis]()
    for example in examples:
        for key, rows, _, _, ends, like in probe.responses(example):
            if like is not None:
                likes[key] = like
            elif isinstance(key, tuple):
                statistics.readings.setdefault(key, SplitMoments(key[0], rows.shape[1])).update(rows)
                if ends is not None:
                    statistics.fed.setdefault(key, FeedBack(key[0], rows.shape[1])).update(*ends)
            else:
                statistics[key].update(rows)
    _add_shown(statistics, likes, probe.shown)
    return statistics


def _add_shown(statistics: Statistics, likes: Mapping[Key, Axis], shown: Mapping[str, Reader]) -> None:
    """Add what readings say: of layers and other readings whose rows they share, and of widths."""
    for key, like in likes.items():
        if isinstance(key, tuple):
            statistics.readings[key] = statistics.readings[like]
        else:
            for half in statistics.readings[like].halves:
                statistics[key].merge(half)
    for name, reader in shown.items():
        read = statistics.readings.get((reader.slot.tensor, reader.slot.axis))
        if read is not None:
            statistics[name] = responses_in(read.merged(), name, reader)


class Probe:
    """Runs a model's graph and yields what its recurrent layers respond at every valid time step.

    Args:
        graph: The graph; its layers are run as they are, without being changed.
        structure: What a trace of it found.
        readings: Whether inputs of consumers are yielded, too, where they can be had; responses of widths are among
            them, and do not come by themselves.
        told: Told what the model answers to every batch.

    Attributes:
        shown: For each width, a weight that shows its responses.
    """

    def __init__(
        self, graph: ModelGraph, structure: Structure, *, readings: bool = False, told: Told | None = None
    ) -> None:
        self._graph, self._told = graph, told
        self._names = {id(cell): name for cell, name in named_cells(graph)}
        wide = {(slot.tensor, slot.axis) for slot in structure.slots if slot.size > WIDEST}
        consumers = [(consumer.tensor, consumer.axis) for consumer in structure.consumers]
        seen = {read.axis for found in readers(graph, consumers).values() for read in found}
        self.shown = _shown(structure, seen)
        kept = seen - wide if readings else set()
        self._apart: dict[Axis, list[str]] = {}
        for name, reader in self.shown.items():
            if (reader.slot.tensor, reader.slot.axis) not in kept:
                self._apart.setdefault((reader.slot.tensor, reader.slot.axis), []).append(name)
        self._kept = kept
        self._makers = makers(graph, structure, self.shown)
        self._made = {name: reader for found in self._makers.values() for name, reader in found}
        self._readers = readers(graph, kept | self._apart.keys())
        self._own = own_readers(graph, consumers if readings else ())
        self._parts: dict[str, list[Layer]] = {}
        # A cell of the user's own that could not be followed may do anything.
        for name in (name for name in structure.layers if name in structure.prunable or _is_kerass(structure, name)):
            layer = structure.layers[name]
            self._parts.setdefault(layer.whole, []).append(layer)
        cells = set(map(cell_name, self._parts))
        written = {key for key, name in self._names.items() if name in cells}
        self._recurrences = Recurrences(self._piece, written)
        self._run = Runner(graph, self.walk)
        self._seen: list[Seen] = []
        self._order: list[tuple[Key, bool, bool, bool | None, bool]] = []
        self._likes: dict[Key, Axis] = {}

    def responses(self, batch: Any) -> Iterator[Response]:
        """Responses of every layer to one batch; a layer that runs twice comes twice.

        Inputs of consumers come under their tensor and axis.
        """
        parts = iter(self._run.arrays(flat_inputs(self._graph.root, batch)))
        for key, masked, started, backwards, first in self._order:
            sequence = next(parts)
            valid = next(parts).astype(bool) if masked else None
            start = next(parts) if started else None
            found = _rows(key, sequence, valid, first=first)
            for layer in self._parts.get(key, ()) if isinstance(key, str) else ():
                if layer.part is None:
                    yield found._replace(like=self._likes.get(key))
                else:
                    yield found._replace(key=layer.name, rows=found.rows[:, layer.part[1] :][:, : layer.units])
            if key in self._kept:
                yield found._replace(like=self._likes.get(key))
            yield from self._of_widths(found)
            if key in self._own:
                ends = None if backwards is None else _ends(sequence, valid, start, backwards=backwards)
                yield found._replace(key=self._own[key], ends=ends)
        if self._told is not None:
            self._told(list(map(widened, parts)))

    def _of_widths(self, found: Response) -> Iterator[Response]:
        """Responses of the widths that show in what a weight reads, or a layer makes."""
        names = [found.key] if isinstance(found.key, str) else self._apart.get(found.key, ())
        for name, reader in {**self.shown, **self._made}.items():
            for places in reader.places.T if name in names else ():
                yield found._replace(key=name, rows=found.rows[:, places])

    def walk(self, inputs: list[Any]) -> list[Any]:
        """Sequences, each followed by its mask and its start if it has them, in the order in which they were seen; then
        the outputs, if somebody is told."""
        self._seen = []
        outputs = run(self._graph.root, inputs, self._call)
        seen, self._seen = self._seen, []
        self._order = [(s.key, s.mask is not None, s.start is not None, s.backwards, s.first) for s in seen]
        self._likes = self._alike(seen)
        parts = [part for s in seen for part in (s.sequence, s.mask, s.start) if part is not None]
        return parts if self._told is None else [*parts, *keras.tree.flatten(outputs)]

    def _alike(self, seen: Sequence[Seen]) -> dict[Key, Axis]:
        """Keys whose rows are, one by one, those that a layer's recurrent weight reads."""
        times = Counter(s.key for s in seen)
        once = [s for s in seen if times[s.key] == 1 and s.first and s.key not in self._apart]
        own = {(id(s.sequence), id(s.mask)): self._own[s.key] for s in once if s.key in self._own}
        alike = {s.key: own[id(s.sequence), id(s.mask)] for s in once if (id(s.sequence), id(s.mask)) in own}
        # A layer that runs several times responds what its recurrent weight reads, all in all.
        return {**{key: self._own[key] for key in times if key in self._own}, **alike}

    def _call(self, operation: Any, *args: Any, **kwargs: Any) -> Any:
        self._note_inputs(operation, args, kwargs)
        found = entered(self._graph, operation, args, kwargs, self._call)
        if found is not None:
            return found
        if is_recurrent(operation):
            return self._recurrences.call(operation, args, kwargs)
        output = self._looked_into(operation)(*args, **kwargs)
        target = operation.layer if isinstance(operation, keras.layers.TimeDistributed) else operation
        for name, _ in self._makers.get(id(target), ()):
            made = keras.tree.flatten(output)[0]
            first = getattr(target, "data_format", None) == "channels_first"
            self._seen.append(Seen(name, keras.ops.moveaxis(made, 1, -1) if first else made))
        if is_cell(operation):
            self._cells(operation, output)
        return output

    def _looked_into(self, operation: Any) -> Any:
        """The operation, or a twin of attention that shows what its heads hand to the weight that merges them."""
        reads = [read for read in self._readers.get(id(operation), ()) if read.place == INSIDE]
        if not reads:
            return operation
        merging = operation._output_dense

        def show(found: Any) -> Any:
            self._seen += [Seen(read.axis, read.features(found), first=read.first) for read in reads]
            return merging(found)

        twin = object.__new__(type(operation))
        twin.__dict__.update({**vars(operation), "_output_dense": show})
        return twin

    def _cells(self, operation: Any, output: Any) -> None:
        cells = cells_of(operation)
        if len(cells) == 1:
            first, *kept = keras.tree.flatten(output)
            for place, state in enumerate([first] if cell_kind(operation) is not None else kept):
                self._note(operation, state, place=place)
            return
        for (_, cell), state in zip(cells, output[1], strict=True):
            self._note(cell, keras.tree.flatten(state)[0])

    def _note_inputs(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        target = operation.layer if isinstance(operation, keras.layers.TimeDistributed) else operation
        for read in (read for read in self._readers.get(id(target), ()) if read.place != INSIDE):
            tensor = argument(read.place, args, kwargs)
            mask = getattr(tensor, "_keras_mask", None)
            features = read.features(tensor)
            same = mask is not None and tuple(features.shape[:-1])[: len(mask.shape)] == tuple(mask.shape)
            self._seen.append(Seen(read.axis, features, mask if same else None, first=read.first))

    def _piece(self, piece: Piece) -> None:
        """Note what a cell responds over a sequence."""
        start = next((state for state in keras.tree.flatten(piece.states) if state is not None), None)
        self._note(piece.cell, piece.response, piece.mask, start, backwards=piece.backward, place=piece.state)

    def _note(
        self,
        cell: Any,
        sequence: Any,
        mask: Any = None,
        start: Any = None,
        *,
        backwards: bool | None = None,
        place: int = 0,
    ) -> None:
        name = state_name(self._names.get(id(cell), ""), place)
        if name in self._parts:
            if getattr(cell, "data_format", None) == "channels_first":
                # Nobody asks what such a layer starts from: `_ends` are of layers that read their units by a matrix.
                sequence = keras.ops.moveaxis(sequence, 2, -1)
            self._seen.append(Seen(name, sequence, mask, start, backwards))


def _is_kerass(structure: Structure, name: str) -> bool:
    return structure.layers[name].cell in [word for word, _, _ in CELLS.values()]


def _shown(structure: Structure, seen: Collection[Axis]) -> dict[str, Reader]:
    """For each width the first weight that shows its responses, of those that can be seen."""
    found = {}
    for name in (name for name, layer in structure.layers.items() if layer.cell in WIDTHS):
        shown = [r for r in readers_of_width(structure, name) if (r.slot.tensor, r.slot.axis) in seen]
        found.update({name: shown[0]} if shown else {})
    return found


def _rows(key: Key, sequence: Array, valid: Array | None, *, first: bool) -> Response:
    """The valid steps of sequences (sequences × time × … × units) one below the other."""
    count = len(sequence)
    owners = np.broadcast_to(np.arange(count).reshape(-1, *[1] * (sequence.ndim - 2)), sequence.shape[:-1])
    if valid is not None:
        valid = np.broadcast_to(valid.reshape(*valid.shape, *[1] * (owners.ndim - valid.ndim)), owners.shape)
    if first:
        last = owners.ndim - 1
        sequence, owners = np.moveaxis(sequence, 0, last), np.moveaxis(owners, 0, last)
        valid = valid if valid is None else np.moveaxis(valid, 0, last)
    rows, owners = sequence.reshape(-1, sequence.shape[-1]), owners.ravel()
    if valid is not None:
        rows, owners = rows[valid.ravel()], owners[valid.ravel()]
    return Response(key, rows, owners, count)


def _ends(sequence: Array, valid: Array | None, start: Array | None, *, backwards: bool) -> tuple[Array, Array]:
    """States before the first and after the last valid step of each sequence that has one (… × units each)."""
    valid = np.ones(sequence.shape[:2], dtype=bool) if valid is None else valid
    place = valid.argmax(1) if backwards else valid.shape[1] - 1 - valid[:, ::-1].argmax(1)
    some = valid.any(1)
    last = sequence[np.arange(len(sequence)), place][some]
    first = np.zeros_like(last) if start is None else start[some]
    return first.reshape(-1, last.shape[-1]), last.reshape(-1, last.shape[-1])
