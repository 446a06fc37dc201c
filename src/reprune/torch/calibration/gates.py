"""What the gates of PyTorch's recurrent kernels do in a dense model and in a pruned one. See `core.answers.gates`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import BuiltinFunctionType
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from reprune.core.answers.answers import Answers
from reprune.core.answers.gate_targets import Steps
from reprune.core.answers.gates import JUDGED, PASSES, Aims, affordable, spread
from reprune.core.answers.gauss_newton import Tensors
from reprune.core.evidence.passes import Forward
from reprune.core.plan import Plan
from reprune.torch.calibration.kernels import SEQUENCES, Piece, run_sequence
from reprune.torch.calibration.pupil import answering, read_weights, widened, write_weights
from reprune.torch.ragged.kernels import reversal, reverse

See = Callable[[str, Piece], None]


def _steps(piece: Piece) -> Steps:
    data, emitted, first = (
        widened(part.detach()) for part in (piece.read, piece.response, piece.first) if part is not None
    )
    if piece.batch_sizes is None:
        sizes, order = [data.shape[1]] * data.shape[0], None
    else:
        sizes, order = piece.batch_sizes.tolist(), reversal(piece.batch_sizes).to(data.device)
    if piece.backward:
        data, emitted = reverse(data, order), reverse(emitted, order)
    memory = None if piece.memory is None else widened(piece.memory.detach())
    return Steps.of(data.reshape(-1, data.shape[-1]), emitted.reshape(-1, emitted.shape[-1]), sizes, first, memory)


class Gates:
    """A dense model and a pruned one, whose gates are refitted. See `core.answers.gates.Learner`.

    Layers that a kernel runs over whole sequences with parameters as they are, without a projection.

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
        dense: nn.Module,
        small: nn.Module,
        plan: Plan,
        answers: Answers,
        forward: Forward | None,
        narrowed: Forward | None,
    ) -> None:
        self._answers, self._plan = answers, plan
        self._run_dense, self._run_small = answering(dense, forward), answering(small, narrowed)
        self._parameters = dict(small.named_parameters())
        self._small_names = _names(self._parameters)
        self.places, self._some = (spread(answers.places, most) for most in (JUDGED, PASSES))
        self._weights: dict[str, list[str]] = {}
        self._aims = Aims(len(self._some))
        whole = dict(dense.named_parameters())
        if self._worth_a_look(whole):
            self._observe(_names(whole))
        self.layers = self._aims.layers

    def _worth_a_look(self, dense: Mapping[str, nn.Parameter]) -> bool:
        """Whether a layer has become smaller, and is small enough."""
        own: dict[str, set[str]] = {}
        for slot in self._plan.structure.slots:
            name = slot.tensor
            if slot.role == "own" and name in dense and name in self._parameters and dense[name].ndim == 2:
                for span in slot.spans:
                    own.setdefault(span.layer, set()).add(name)
        for names in own.values():
            shapes = [self._parameters[name].shape for name in names]
            changed = shapes != [dense[name].shape for name in names]
            if changed and affordable(shapes[0][0], sum(shape[1] + 1 for shape in shapes)):
                return True
        return False

    def _observe(self, names: Mapping[tuple[int, torch.Size], str]) -> None:
        """What the dense model's gates do."""

        def see(cell: str, piece: Piece) -> None:
            known = [names.get(_key(weight), "") for weight in piece.weights]
            if piece.inner is not None or not all(name in self._parameters for name in known):
                return
            weights = [self._parameters[name] for name in known]
            shapes = [weight.shape for weight in weights]
            if shapes == [weight.shape for weight in piece.weights] or not affordable(
                shapes[0][0], sum(shape[1] + 1 for shape in shapes[:2])
            ):
                return
            self._weights[known[0]] = known
            own = [widened(weight.detach()) for weight in piece.weights]
            self._aims.add(known[0], cell, own, _steps(piece), self._plan.stays(known[0], piece.weights[0].shape)[0])

        for place in self._some:
            with _Pieces(see):
                self._run_dense(self._answers.batches[place])

    def step(self, layer: str) -> Tensors:
        """See `Learner.step`."""
        known, seen = self._weights[layer], []

        def see(_: str, piece: Piece) -> None:
            if self._small_names.get(_key(piece.weights[0])) == layer:
                seen.append(_steps(piece))

        for place in self._some:
            with _Pieces(see):
                self.run(place)
        found = self._aims.steps(layer, list(self.read(known).values()), seen)
        return dict(zip(known, found, strict=False))

    def run(self, place: int) -> list[torch.Tensor]:
        """The output tensors of the pruned model."""
        return self._run_small(self._answers.batches[place])

    def read(self, names: Sequence[str]) -> Tensors:
        """Weights by name."""
        return read_weights(self._parameters, names)

    def write(self, tensors: Tensors) -> None:
        """Set weights."""
        write_weights(self._parameters, tensors)


def _key(weight: torch.Tensor) -> tuple[int, torch.Size]:
    """What tells a parameter from others, be it handed on as another tensor: cuDNN's share a storage."""
    return weight.data_ptr(), weight.shape


def _names(parameters: Mapping[str, nn.Parameter]) -> dict[tuple[int, torch.Size], str]:
    return {_key(weight): name for name, weight in parameters.items()}


class _Pieces(TorchFunctionMode):
    """Within this context and thread, kernels that run over sequences show each direction of each layer."""

    def __init__(self, see: See) -> None:
        super().__init__()
        self._see = see

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name not in SEQUENCES or kwargs or not isinstance(func, BuiltinFunctionType):
            return func(*args, **(kwargs or {}))
        return run_sequence(name, func, args, lambda piece: self._see(name, piece))
