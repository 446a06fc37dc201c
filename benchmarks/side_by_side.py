"""Word models of one size, taught side by side: several settings in little more time than one takes alone.

The steps of a small recurrent model are so short that a GPU waits for the next one. Here the weights of all models are
stacked, every product is batched over the models, and a whole step of learning is one CUDA graph.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from reprune.core.answers.likely import CLASSES, LOGS
from reprune.core.saving.arrays import StoredArrays
from reprune.recipes.language.data import Windows
from reprune.recipes.language.text import IGNORED
from reprune.recipes.language.word_model import WordModel
from reprune.torch.training.likely import Likely, shared_cross_entropy

UNROLL, STREAMS, CLIPPED, WARM = 35, 20, 10.0, 200


@dataclass(frozen=True)
class Setting:
    """How one of the models learns.

    Attributes:
        dropout: Fraction dropped.
        rate: First step size of gradient descent, falling to zero along a cosine.
        decay: What a step of size 1 takes off every weight, as a fraction of it.
        written: Whether the model reads the dense model's own text as well.
    """

    dropout: float
    rate: float
    decay: float
    written: bool = True


class Streams:
    """Text in streams with a dense model's answers, in which windows follow each other.

    Args:
        words: T × N, N a multiple of 20: 20 streams are read at a time, then the next 20.
        following: The words that come, T × N, or None where only answers are learned.
        answers: Classes and logarithms (T × N × k), as `reprune.core.answers.likely` stores them.
        device: Where they are kept.
    """

    def __init__(self, words: Tensor, following: Tensor | None, answers: StoredArrays, device: str) -> None:
        self.groups, self.each = words.shape[1] // STREAMS, len(words) // UNROLL
        # Classes are below 2¹⁵, so that a signed type holds them, which PyTorch computes with.
        classes, logs = np.array(answers[CLASSES]).view(np.int16), np.array(answers[LOGS])
        parts = words, words if following is None else following, torch.from_numpy(classes), torch.from_numpy(logs)
        self._parts = [part.to(device).reshape(-1, STREAMS, *part.shape[2:]) for part in parts]
        self._rows = torch.arange(UNROLL, device=device) * self.groups
        self._first = torch.zeros((), dtype=torch.long, device=device)

    @property
    def count(self) -> int:
        """Windows of one pass; what is left at the end of the streams is left out."""
        return self.groups * self.each

    def go_to(self, window: int) -> bool:
        """Let `read` give that window; whether streams begin with it."""
        group, piece = divmod(window % self.count, self.each)
        self._first.fill_(piece * UNROLL * self.groups + group)
        return piece == 0

    def read(self) -> tuple[Tensor, Tensor, Likely]:
        """Words and those that follow (35 × 20), and the answers (35 × 20 × k)."""
        words, following, classes, logs = (part.index_select(0, self._first + self._rows) for part in self._parts)
        return words, following, Likely(classes.long(), logs.float())


class SideBySide:
    """Copies of a word model, each of which learns in its own way.

    Args:
        model: Where all of them start.
        settings: One a copy.
        device: Where they are.

    Attributes:
        rate: Fraction of each setting's step size that the next step takes.
    """

    def __init__(self, model: WordModel, settings: Sequence[Setting], device: str) -> None:
        self._model, self._settings, self._device = copy.deepcopy(model).to(device), settings, device
        weights = self._model.state_dict()
        self._weights = {k: v.expand(len(settings), *v.shape).contiguous() for k, v in weights.items()}
        self._sizes = [layer.hidden_size for layer in model.recurrent]
        self._dropout, self._step, self._decay = (
            torch.tensor([getattr(setting, name) for setting in settings], device=device)
            for name in ("dropout", "rate", "decay")
        )
        self._reads = torch.tensor([setting.written for setting in settings], device=device)[:, None]
        self._state = self._zero(2 * STREAMS)
        self.rate = torch.zeros((), device=device)
        self._learn: Callable[[], None] | None = None

    def _zero(self, streams: int) -> list[list[Tensor]]:
        shapes = [(len(self._settings), streams, size) for size in self._sizes]
        return [[torch.zeros(shape, device=self._device) for _ in range(2)] for shape in shapes]

    def state_dict(self) -> dict[str, Tensor]:
        """Weights of all copies, by the model's names (copies × shape)."""
        return self._weights

    def load_state_dict(self, weights: dict[str, Tensor]) -> None:
        """Go on with weights of all copies."""
        for name, value in self._weights.items():
            value.copy_(weights[name])

    def model(self, index: int) -> WordModel:
        """One of the copies as an ordinary model."""
        one = copy.deepcopy(self._model)
        one.load_state_dict({name: value[index] for name, value in self._weights.items()})
        return one

    def learn(self, text: Streams, written: Streams, share: float) -> None:
        """One step of gradient descent on the windows where both texts are.

        Args:
            text: What people wrote; `share` of the loss is the cross entropy with the dense model's answers.
            written: What the dense model wrote: only its answers are learned.
            share: See `text`.
        """
        if self._learn is None:

            def step() -> None:
                self._one_step(text, written, share)

            self._learn = step if self._device == "cpu" else self._captured(step)
        self._learn()

    def begin(self, part: int) -> None:
        """Let streams begin without a past: those of the text (0) or of what was written (1)."""
        for state in self._state:
            for value in state:
                value[:, part * STREAMS : (part + 1) * STREAMS].zero_()

    def _captured(self, step: Callable[[], None]) -> Callable[[], None]:
        """The step as a CUDA graph. What is run before it is captured changes no weight: the step size is zero."""
        wanted = self.rate.clone()
        self.rate.zero_()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        self.rate.copy_(wanted)
        for part in range(2):
            self.begin(part)
        replay: Callable[[], None] = graph.replay
        return replay

    def _one_step(self, text: Streams, written: Streams, share: float) -> None:
        count = len(self._settings)
        read = [text.read(), written.read()]
        words = torch.cat([words for words, _, _ in read], 1)
        # New leaves in every step, as those of an earlier one belong to another CUDA stream than a graph's.
        weights = {name: value.detach().requires_grad_() for name, value in self._weights.items()}
        values, state = self._recurrent(weights, words[:, None].expand(-1, count, -1), self._state, self._dropout)
        loss = torch.zeros((), device=self._device)
        for part, (values_of, (_, following, answers)) in enumerate(zip(values.split(STREAMS, 2), read, strict=True)):
            logits = self._output(weights, values_of)
            labels = following.flatten().expand(count, -1)
            if part:
                labels = labels.where(self._reads, IGNORED)
            repeated = Likely(*(x.flatten(0, 1).expand(count, -1, -1).flatten(0, 1) for x in answers))
            loss = loss + shared_cross_entropy(logits.flatten(0, 1), labels.flatten(), repeated, 1.0 if part else share)
        gradients = torch.autograd.grad(loss, list(weights.values()))
        streams = STREAMS * (1 + self._reads[:, 0].float())
        # Summed over the window, averaged over the streams, as the step sizes of Zaremba et al. are meant.
        norms = sum(gradient.flatten(1).square().sum(1) for gradient in gradients).sqrt() / streams  # type: ignore[union-attr]
        size = self.rate * self._step
        scale = size * (CLIPPED / (norms + 1e-6)).clamp(max=1.0) / streams
        with torch.no_grad():
            for value, gradient in zip(self._weights.values(), gradients, strict=True):
                shape = (count,) + (1,) * (value.dim() - 1)
                value.mul_((1 - size * self._decay).view(shape)).addcmul_(gradient, -scale.view(shape))
            for kept, after in zip(self._state, state, strict=True):
                for one, other in zip(kept, after, strict=True):
                    one.copy_(other)

    def _recurrent(
        self, weights: dict[str, Tensor], words: Tensor, state: list[list[Tensor]], dropout: Tensor | None
    ) -> tuple[Tensor, list[list[Tensor]]]:
        """What the last layer gives for words (T × S × B), as T × S × B × units, and the states after them."""
        table = weights["embedding.weight"]
        count, vocabulary, _ = table.shape
        places = words + vocabulary * torch.arange(count, device=words.device)[:, None]
        values, left = functional.embedding(places, table.flatten(0, 1)), []
        for layer, before in enumerate(state):
            own = {name: weights[f"recurrent.{layer}.{name}_l0"] for name in ("weight_ih", "weight_hh")}
            bias = sum(weights[f"recurrent.{layer}.{name}_l0"] for name in ("bias_ih", "bias_hh"))
            inputs = _linear(_dropped(values, dropout), own["weight_ih"], bias)
            inputs = inputs.unflatten(1, (len(words), -1)).transpose(0, 1).contiguous()
            values, hidden, memory = _Steps.apply(inputs, own["weight_hh"], *before)
            left.append([hidden.detach(), memory.detach()])
        return _dropped(values, dropout), left

    def _output(self, weights: dict[str, Tensor], values: Tensor) -> Tensor:
        """Logits, S × T·B × vocabulary."""
        return _linear(values, weights["output.weight"], weights["output.bias"])

    @torch.no_grad()
    def perplexities(self, text: Windows) -> list[float]:
        """Of a text, one a copy, every stream from a zero state."""
        state, count, total = None, len(self._settings), torch.zeros(len(self._settings), dtype=torch.float64)
        read = 0
        for window in text:
            words = window.words.to(self._device)
            if state is None:
                state = self._zero(words.shape[1])
            values, state = self._recurrent(self._weights, words[:, None].expand(-1, count, -1), state, None)
            logits = self._output(self._weights, values)
            following = window.following.to(self._device).flatten()
            found = functional.cross_entropy(logits.flatten(0, 1), following.repeat(count), reduction="none")
            total += found.view(count, -1).sum(1).double().cpu()
            read += len(following)
        return [float(value) for value in (total / read).exp()]


def factor(done: int, steps: int) -> float:
    """Of the first step size after so many of all steps: soon all of it, then falling to zero along a cosine."""
    return min(1.0, (done + 1) / WARM) * (1 + math.cos(math.pi * done / steps)) / 2


def _linear(values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """T × S × B × in through weights of each model (S × out × in): S × T·B × out."""
    return torch.baddbmm(bias[:, None], values.transpose(0, 1).flatten(1, 2), weight.transpose(1, 2))


def _dropped(values: Tensor, dropout: Tensor | None) -> Tensor:
    if dropout is None:
        return values
    kept = 1 - dropout[:, None, None]
    return values * (torch.rand_like(values) < kept) / kept


class _Steps(torch.autograd.Function):
    """The steps of LSTM layers of S models side by side, given what comes from their inputs."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, hidden: Tensor, memory: Tensor) -> tuple[Tensor, ...]:
        """Hidden states of all steps (T × S × B × H), and both states after the last.

        Args:
            inputs: Input-side pre-activations with the biases, T × S × B × 4H, gates in PyTorch's order.
            weight: S × 4H × H.
            hidden: Before the first step, S × B × H.
            memory: The same.
        """
        across, hiddens, memories, kept = weight.transpose(1, 2).contiguous(), [hidden], [memory], []
        for given in inputs:
            recurrent = torch.bmm(hiddens[-1], across)
            new = _cell(given.flatten(0, 1), recurrent.flatten(0, 1), memories[-1].flatten(0, 1))
            hiddens.append(new[0].view_as(hidden))
            memories.append(new[1].view_as(memory))
            kept.append(new[2])
        ctx.save_for_backward(weight)
        ctx.kept = hiddens, memories, kept
        return torch.stack(hiddens[1:]), hiddens[-1], memories[-1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """Gradients of the inputs and the weight; the state before the first step gets none."""
        (weight,), (hiddens, memories, kept) = ctx.saved_tensors, ctx.kept
        above = gradients[0]
        to_hidden, to_memory, found = torch.zeros_like(above[0]), torch.zeros_like(above[0]).flatten(0, 1), []
        for step in reversed(range(len(above))):
            pair = memories[step].flatten(0, 1), memories[step + 1].flatten(0, 1)
            given = (above[step] + to_hidden).flatten(0, 1)
            to_gates, to_memory = _cell_backward(given, to_memory, *pair, kept[step])
            found.append(to_gates.view(*weight.shape[:1], -1, weight.shape[1]))
            to_hidden = torch.bmm(found[-1], weight)
        to_inputs = torch.stack(found[::-1])
        before = torch.stack(hiddens[:-1]).transpose(0, 1).flatten(1, 2)
        return to_inputs, torch.bmm(to_inputs.permute(1, 3, 0, 2).flatten(2), before), None, None


def _cell(inputs: Tensor, recurrent: Tensor, memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden state, memory, and the gates; on a GPU by PyTorch's own kernel of `nn.LSTMCell`."""
    if inputs.is_cuda:
        made: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._thnn_fused_lstm_cell(inputs, recurrent, memory)
        return made
    let, forget, new, out = (inputs + recurrent).chunk(4, 1)
    let, forget, new, out = let.sigmoid(), forget.sigmoid(), new.tanh(), out.sigmoid()
    after = forget * memory + let * new
    return out * after.tanh(), after, torch.cat([let, forget, new, out], 1)


def _cell_backward(
    to_hidden: Tensor, to_memory: Tensor, before: Tensor, after: Tensor, gates: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of the pre-activations and of the memory before."""
    if gates.is_cuda:
        found = torch.ops.aten._thnn_fused_lstm_cell_backward_impl(to_hidden, to_memory, before, after, gates, False)
        return found[0], found[1]
    let, forget, new, out = gates.chunk(4, 1)
    bent = after.tanh()
    total = to_hidden * out * (1 - bent * bent) + to_memory
    parts = (
        total * new * let * (1 - let),
        total * before * forget * (1 - forget),
        total * let * (1 - new * new),
        to_hidden * bent * out * (1 - out),
    )
    return torch.cat(parts, 1), total * forget
