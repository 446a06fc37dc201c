"""What the gates of Keras's recurrent layers do in a dense model and in a pruned one. See `core.answers.gates`."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from numpy.typing import NDArray

from reprune.core.answers.answers import Answers
from reprune.core.answers.gate_targets import Steps
from reprune.core.answers.gates import JUDGED, PASSES, Aims, affordable, spread
from reprune.core.answers.gauss_newton import Tensors
from reprune.core.plan import Plan
from reprune.keras.calibration.pupil import answering
from reprune.keras.calibration.recurrences import Piece, Recurrences, entered, is_recurrent
from reprune.keras.surgery.cloning import named_cells
from reprune.keras.tracing.compiled import Runner
from reprune.keras.tracing.graph import array, flat_inputs, graph_of, run, widened
from reprune.keras.tracing.record import Forward, captured
from reprune.keras.tracing.rules.recurrent import cell_kind

Array = NDArray[Any]


class Gates:
    """A dense model and a pruned one, whose gates are refitted. See `core.answers.gates.Learner`.

    Layers that run LSTM, GRU and SimpleRNN cells with their usual activations over whole sequences.

    Args:
        dense: The dense model.
        small: The pruned one.
        plan: What was removed.
        answers: The dense model's.
        forward: Replaces `model(batch)` of the dense model.
        narrowed: Replaces that of the pruned one.
    """

    def __init__(
        self,
        dense: Any,
        small: Any,
        plan: Plan,
        answers: Answers,
        forward: Forward | None,
        narrowed: Forward | None,
    ) -> None:
        self._answers = answers
        self.places, self._some = (spread(answers.places, most) for most in (JUDGED, PASSES))
        self._aims = Aims(len(self._some))
        self._run = answering(small, narrowed)
        whole, cut = _Shown(dense, forward, answers.batches[0]), _Shown(small, narrowed, answers.batches[0])
        self._variables, self._small = cut.graph.weights(), cut
        self._cells = {name: cell for name, cell in cut.cells.items() if _worth_it(cell, whole.cells.get(name))}
        self._observe(whole, plan)
        self.layers = self._aims.layers

    def _observe(self, whole: _Shown, plan: Plan) -> None:
        """What the dense model's gates do."""
        weights = {name: whole.cells[name].rows() for name in self._cells}
        for place in self._some if self._cells else ():
            for name, steps in whole.steps(self._answers.batches[place], self._cells):
                cell = whole.cells[name]
                _, kept = plan.stays(name, cell.variables[0].shape)
                stay = np.flatnonzero(np.isin(cell.order(), kept))
                self._aims.add(name, cell.kind, weights[name], steps, stay)

    def step(self, layer: str) -> Tensors:
        """See `Learner.step`."""
        cell = self._cells[layer]
        seen = [steps for place in self._some for _, steps in self._small.steps(self._answers.batches[place], [layer])]
        found = self._aims.steps(layer, cell.rows(), seen)
        return dict(zip(cell.names, cell.as_held(found), strict=True)) if found else {}

    def run(self, place: int) -> Sequence[Array]:
        """The output tensors of the pruned model."""
        return self._run(self._answers.batches[place])

    def read(self, names: Sequence[str]) -> Tensors:
        """Weights by name."""
        return {name: widened(array(self._variables[name])) for name in names}

    def write(self, tensors: Tensors) -> None:
        """Set weights."""
        for name, values in tensors.items():
            self._variables[name].assign(values.astype(self._variables[name].dtype))


class _Cell(NamedTuple):
    """A cell whose gates are known.

    Attributes:
        kind: Its name for `core.answers.gate_targets`.
        names: Of its weights: kernel, recurrent kernel and the bias if any.
        variables: These.
    """

    kind: str
    names: list[str]
    variables: list[Any]

    def order(self) -> NDArray[np.int64]:
        """The places of the gates' columns as PyTorch has them: its GRU's reset gates come before the update gates."""
        places = np.arange(self.variables[0].shape[-1])
        if not self.kind.startswith("gru"):
            return places
        update, reset, new = np.split(places, 3)
        return np.concatenate([reset, update, new])

    def rows(self) -> list[Array]:
        """The weights as PyTorch has them, where every cell but `gru_before` has two biases."""
        kernel, recurrent, *bias = (widened(array(variable))[..., self.order()] for variable in self.variables)
        if not bias:
            return [kernel.T, recurrent.T]
        if self.kind == "gru_before":
            return [kernel.T, recurrent.T, bias[0]]
        return [kernel.T, recurrent.T, *(bias[0] if bias[0].ndim == 2 else (bias[0], np.zeros_like(bias[0])))]

    def as_held(self, rows: Sequence[Array]) -> list[Array]:
        """The weights from such rows; one bias is the sum of two."""
        kernel, recurrent, *biases = rows
        parts = [kernel.T, recurrent.T]
        if biases:
            parts.append(np.stack(biases) if len(self.variables[2].shape) == 2 else np.sum(biases, axis=0))
        back = np.argsort(self.order())
        return [part[..., back] for part in parts]


def _worth_it(small: _Cell, dense: _Cell | None) -> bool:
    """Whether a cell has become smaller, and is small enough."""
    if dense is None:
        return False
    (inputs, rows), (units, _) = (variable.shape for variable in small.variables[:2])
    before = [variable.shape for variable in dense.variables[:2]]
    return before != [(inputs, rows), (units, rows)] and affordable(rows, inputs + units + 2)


def _kind(cell: Any) -> str | None:
    """The name of a cell for `core.answers.gate_targets`; None where its activations are others."""
    kind, tanh = cell_kind(cell), keras.activations.tanh
    if kind is None or kind[0] == "rnn":
        return None if kind is None else {tanh: "rnn_tanh", keras.activations.relu: "rnn_relu"}.get(cell.activation)
    if kind[0] not in ("lstm", "gru") or (cell.activation, cell.recurrent_activation) != (
        tanh,
        keras.activations.sigmoid,
    ):
        return None
    return kind[0] if getattr(cell, "reset_after", True) else "gru_before"


class _Shown:
    """A model whose cells show what they read and respond.

    Args:
        model: The model.
        forward: Replaces `model(batch)`.
        example: A batch.

    Attributes:
        graph: Its graph.
        cells: Cells whose gates are known, by the name of their kernel.
    """

    def __init__(self, model: Any, forward: Forward | None, example: Any) -> None:
        self._model, self._forward = model, forward
        self.graph = graph_of(model, captured(model, example, forward))
        names = self.graph.weight_names()
        self.cells: dict[str, _Cell] = {}
        self._kernels: dict[int, str] = {}
        for cell, _ in named_cells(self.graph):
            kind = _kind(cell)
            if kind is not None:
                variables = [cell.kernel, cell.recurrent_kernel, *([cell.bias] if cell.use_bias else [])]
                held = [names[id(variable)] for variable in variables]
                self.cells[held[0]] = _Cell(kind, held, variables)
                self._kernels[id(cell)] = held[0]
        self._recurrences = Recurrences(lambda piece: self._pieces.append(piece))
        self._pieces: list[Piece] = []
        self._run = Runner(self.graph, self._walk)
        self._order: list[tuple[str, bool, int, bool]] = []

    def steps(self, batch: Any, wanted: Collection[str]) -> Iterator[tuple[str, Steps]]:
        """What some cells do with a batch, in the order in which they run."""
        found = map(
            widened, self._run.arrays(flat_inputs(self.graph.root, captured(self._model, batch, self._forward)))
        )
        for name, masked, states, backward in self._order:
            read, response = next(found), next(found)
            valid = next(found).astype(bool) if masked else np.ones(read.shape[:2], dtype=bool)
            starts = [next(found) for _ in range(states)]
            if name in wanted and valid.any():
                yield name, _packed(read.astype(response.dtype), response, valid, starts, backward)

    def _walk(self, inputs: list[Any]) -> list[Any]:
        """What cells read and respond, each followed by its mask and its first states if it has them."""
        self._pieces = []
        run(self.graph.root, inputs, self._call)
        shown: list[Any] = []
        self._order = []
        for piece in (piece for piece in self._pieces if id(piece.cell) in self._kernels):
            states = [] if piece.states is None else keras.tree.flatten(piece.states)
            self._order.append((self._kernels[id(piece.cell)], piece.mask is not None, len(states), piece.backward))
            shown += [piece.read, piece.response, *([] if piece.mask is None else [piece.mask]), *states]
        return shown

    def _call(self, operation: Any, *args: Any, **kwargs: Any) -> Any:
        found = entered(self.graph, operation, args, kwargs, self._call)
        if found is not None:
            return found
        return (
            self._recurrences.call(operation, args, kwargs) if is_recurrent(operation) else operation(*args, **kwargs)
        )


def _packed(read: Array, response: Array, valid: Array, starts: Sequence[Array], backward: bool) -> Steps:
    """The valid steps of sequences (sequences × time × …), the longest sequence first."""
    if backward:
        read, response, valid = (part[:, ::-1] for part in (read, response, valid))
    lengths = valid.sum(1)
    longest = np.argsort(-lengths, kind="stable")
    sizes = [int((lengths > step).sum()) for step in range(lengths.max())]
    times = np.argsort(~valid, axis=1, kind="stable")
    sequences = np.concatenate([longest[:size] for size in sizes])
    steps = times[sequences, np.repeat(np.arange(len(sizes)), sizes)]
    first, memory = (*(start[longest] for start in starts), *[np.zeros_like(response[:, 0])] * 2)[:2]
    return Steps.of(read[sequences, steps], response[sequences, steps], sizes, first, memory)
