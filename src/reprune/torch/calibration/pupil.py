"""What a PyTorch model answers, and the pruned model as something whose consumers can be refitted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import nn

from reprune.core.answers.answers import Answers
from reprune.core.answers.gauss_newton import Refitted, Seen, Tensors, last_consumers
from reprune.core.evidence.passes import Forward
from reprune.core.evidence.readings import Axis
from reprune.core.layers import Consumer, Structure
from reprune.torch.calibration import watch as watching
from reprune.torch.calibration.answers import rows, watch_responses
from reprune.torch.calibration.importance import differentiable_kernels, pulled_back
from reprune.torch.calibration.watch import watch
from reprune.torch.ragged.base import RaggedBase
from reprune.torch.tracing.leaves import leaves
from reprune.torch.tracing.recording import tensors_in
from reprune.torch.tracing.running.calling import invoke
from reprune.torch.tracing.running.copies import duplicate, fresh
from reprune.torch.tracing.running.isolation import apart, run_apart


def answering(model: nn.Module, forward: Forward | None) -> Callable[[Any], list[torch.Tensor]]:
    """A private model as a function from a batch to its output tensors."""

    def run(batch: Any) -> list[torch.Tensor]:
        with torch.no_grad():
            output = run_apart(duplicate(model, share=True), batch, forward)
        return [widened(tensor.detach()) for tensor in tensors_in(output)]

    return run


def widened(tensor: torch.Tensor) -> torch.Tensor:
    """Half precision in single, as exponentials overflow in it."""
    return tensor.float() if tensor.is_floating_point() and tensor.dtype.itemsize < 4 else tensor


def read_weights(parameters: Mapping[str, nn.Parameter], names: Sequence[str]) -> Tensors:
    """Values of some parameters."""
    return {name: widened(parameters[name].detach()).cpu().numpy().copy() for name in names}


def write_weights(parameters: Mapping[str, nn.Parameter], tensors: Tensors) -> None:
    """Set some parameters."""
    with torch.no_grad():
        for name, values in tensors.items():
            parameters[name].copy_(torch.from_numpy(np.ascontiguousarray(values)))


def made_by_sigmoid(model: nn.Module, example: Any, forward: Forward | None) -> list[int]:
    """Which of the output tensors hold numbers that a sigmoid made: probabilities each."""
    model = duplicate(model, share=True)
    for weight in model.parameters():
        weight.requires_grad_(weight.is_floating_point())
    try:
        with torch.enable_grad(), differentiable_kernels():
            outputs = list(tensors_in(run_apart(model, example, forward)))
        return [place for place, output in enumerate(outputs) if _from_sigmoid(output)]
    except RuntimeError:
        # In-place writes and inference mode inside the user's forward: nothing can be told.
        return []


def _from_sigmoid(output: torch.Tensor) -> bool:
    """Whether all values are those of a sigmoid that was computed shortly before, whatever moved them since."""
    nodes = [output.grad_fn] if output.grad_fn is not None else []
    for _ in range(8):
        for node in nodes:
            if "Sigmoid" in node.name() and hasattr(node, "_saved_result"):
                return bool(torch.isin(output.detach().flatten(), node._saved_result.flatten()).all())
        nodes = [after for node in nodes for after, _ in node.next_functions if after is not None]
    return False


class Pupil:
    """A pruned model whose consumers are refitted. See `core.answers.gauss_newton.Pupil`.

    Its recurrent modules run once for every batch: what is refitted changes nothing about what they answer.

    Args:
        model: The pruned model.
        structure: What a trace of it would find.
        answers: The dense model's.
        forward: Replaces `model(batch)`.
    """

    def __init__(self, model: nn.Module, structure: Structure, answers: Answers, forward: Forward | None) -> None:
        self._model, self._answers, self._forward = model, answers, forward
        self._parameters = dict(model.named_parameters())
        self._copies: dict[int, tuple[Any, list[int]]] = {}
        self._recordings: list[dict[int, list[Any]]] = [{} for _ in answers.batches]
        found = last_consumers(structure, self._parameters, partial(self._responses, structure))
        self.weights = self._observed(found)

    def _responses(self, structure: Structure, changed: Sequence[Consumer]) -> list[tuple[str, float]]:
        """The size of the layers' responses to one batch, while some weights are halved."""
        held = {consumer.tensor: self._parameters[consumer.tensor].detach().clone() for consumer in changed}
        seen: list[tuple[str, float]] = []

        def see(name: str, found: torch.Tensor, _: torch.Tensor | None) -> None:
            seen.append((name, float(found.double().square().sum())))

        try:
            with torch.no_grad(), watch_responses(self._model, structure, see):
                for name, value in held.items():
                    self._parameters[name].copy_(value / 2)
                answering(self._model, self._forward)(self._answers.batches[0])
        finally:
            with torch.no_grad():
                for name, value in held.items():
                    self._parameters[name].copy_(value)
        return seen

    def _observed(self, consumers: Sequence[Consumer]) -> list[Refitted]:
        """The consumers, with what they read."""
        shapes = {name: tuple(weight.shape) for name, weight in self._parameters.items()}
        seen = Seen(consumers, shapes)
        axes = [(consumer.tensor, consumer.axis) for consumer in consumers]
        if consumers:
            with watch(self._parameters, axes, _Reads(seen, self._parameters)):
                for place in self._answers.places:
                    self._run_numbered(place)
        return seen.weights()

    def run(self, place: int) -> list[torch.Tensor]:
        """The output tensors of a batch."""
        return [widened(output) for output in self._run_numbered(place)]

    def read(self, names: Sequence[str]) -> Tensors:
        """Weights by name."""
        return read_weights(self._parameters, names)

    def write(self, tensors: Tensors) -> None:
        """Set weights."""
        write_weights(self._parameters, tensors)

    def gradients(self, names: Sequence[str], rng: np.random.Generator) -> Iterator[tuple[Tensors, Tensors]]:
        """Gradients of the mean divergence of the rows to fit, and of its random projection, batch by batch.

        None where the model has no gradient.
        """
        weights = [self._parameters[name] for name in names]
        frozen = [weight for weight in weights if not weight.requires_grad]
        try:
            for weight in frozen:
                weight.requires_grad_(True)
            for place in self._answers.places:
                outputs = self._run_numbered(place, grad=True)
                pairs = list(self._answers.cotangents(place, [widened(output.detach()) for output in outputs], rng))
                chosen = [outputs[which] for which, _, _ in pairs]
                gradient = self._pulled(names, weights, chosen, [pair[1] for pair in pairs])
                yield gradient, self._pulled(names, weights, chosen, [pair[2] for pair in pairs])
        except RuntimeError:
            # In-place writes and inference mode inside the user's forward: it computes, but has no gradient.
            return
        finally:
            for weight in frozen:
                weight.requires_grad_(False)

    def _pulled(
        self,
        names: Sequence[str],
        weights: list[nn.Parameter],
        outputs: list[torch.Tensor],
        cotangents: list[torch.Tensor],
    ) -> Tensors:
        given = [part.to(output.dtype) for part, output in zip(cotangents, outputs, strict=True)]
        found = pulled_back(outputs, weights, given)
        return {
            name: np.zeros(tuple(weight.shape)) if gradient is None else gradient.double().cpu().numpy()
            for name, weight, gradient in zip(names, weights, found, strict=True)
        }

    def _run_numbered(self, place: int, *, grad: bool = False) -> list[torch.Tensor]:
        # In this order: leaving inference mode turns gradients on.
        with (
            torch.inference_mode(False),
            torch.set_grad_enabled(grad),
            _replayed(self._model, self._recordings[place]),
            apart(self._model, place),
        ):
            return list(tensors_in(invoke(self._model, self._copy(place), self._forward)))

    def _copy(self, place: int) -> Any:
        """A copy of a batch, of which a new one is made only when the model has written into it."""
        copied, versions = self._copies.get(place, (None, None))
        if versions is None or versions != [tensor._version for _, tensor in leaves(copied)]:
            copied = fresh(self._answers.batches[place])
            self._copies[place] = copied, [tensor._version for _, tensor in leaves(copied)]
        return copied


class _Reads:
    """A listener that adds up what consumers read."""

    def __init__(self, seen: Seen, weights: Mapping[str, torch.Tensor]) -> None:
        self._seen, self._weights = seen, weights

    def read(self, seen: watching.Seen) -> None:
        """See `Listener.read`."""
        name, axis = seen.axis
        if seen.features.shape[-1] == self._weights[name].shape[axis]:
            self._seen.add(name, rows(seen.features))

    def feed_back(self, axis: Axis, first: torch.Tensor, last: torch.Tensor) -> None:
        """See `Listener.feed_back`."""


@contextmanager
def _replayed(model: nn.Module, recording: dict[int, list[Any]]) -> Iterator[None]:
    """Within this context, recurrent modules answer what they answered in an earlier pass over the same batch."""
    with ExitStack() as stack:
        for number, module in enumerate(model.modules()):
            if isinstance(module, (nn.RNNBase, RaggedBase)):
                stack.enter_context(_replayed_module(module, recording.setdefault(number, [])))
        yield


@contextmanager
def _replayed_module(module: nn.Module, held: list[Any]) -> Iterator[None]:
    run, calls = module.forward, count()

    def forward(*args: Any, **kwargs: Any) -> Any:
        number = next(calls)
        if number == len(held):
            with torch.no_grad():
                held.append(run(*args, **kwargs))
        return held[number]

    vars(module)["forward"] = forward
    try:
        yield
    finally:
        del vars(module)["forward"]
