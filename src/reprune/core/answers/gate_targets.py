"""What the gates of recurrent cells do, time step by time step: pre-activations, and what the responses owe to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace

from reprune.core.answers.divergence import sigmoid

Array = Any


class Steps(NamedTuple):
    """One direction of one layer in one call, step by step in its own direction of time.

    Attributes:
        read: What it reads (N time steps × inputs).
        state: The states before the steps (N × units).
        sizes: How many sequences there are at every step, never more than before; they add up to N.
        memory: `c` of an LSTM before the first step (sequences × units).
    """

    read: Array
    state: Array
    sizes: Sequence[int]
    memory: Array | None = None

    @classmethod
    def of(cls, read: Array, response: Array, sizes: Sequence[int], first: Array, memory: Array | None = None) -> Steps:
        """The steps of a layer that emits its states (N × units), from a first one (sequences × units)."""
        ends = np.cumsum(sizes).tolist()
        states = [first, *(response[end - size : end] for end, size in zip(ends, sizes, strict=True))]
        before = [state[:size] for state, size in zip(states[:-1], sizes, strict=True)]
        return cls(read, array_namespace(response).concat(before), sizes, memory)


class Targets(NamedTuple):
    """What the gates of a layer did in the dense model (N time steps × gate rows).

    Attributes:
        wanted: Pre-activations a.
        slopes: Derivatives ∂h/∂a of the unit's response; of all of them together, where a gate acts on all.
        reset: What the part of a that comes from the state is multiplied with, or None if with nothing.
    """

    wanted: Array
    slopes: Array
    reset: Array | None = None

    def take(self, steps: Any, rows: Any) -> Targets:
        """Some steps, of some rows."""
        return Targets(*(None if part is None else part[steps][:, rows] for part in self))


def targets(cell: str, weights: Sequence[Array], steps: Steps) -> Targets:
    """What gates do, time step by time step.

    Args:
        cell: `lstm`, `gru`, `rnn_tanh` or `rnn_relu`; `gru_before` for a GRU that resets before the product.
        weights: For the input (gate rows × inputs) and for the state (gate rows × units), the gates in PyTorch's order,
            and the biases if any (gate rows each); `gru_before` has one alone.
        steps: What they read.
    """
    incoming, recurrent = (
        part @ weights[place].T + (weights[2 + place] if len(weights) > 2 + place else 0.0)
        for place, part in enumerate((steps.read, steps.state))
    )
    if cell == "gru_before":
        return _gru(incoming, recurrent, steps, weights[1][2 * steps.state.shape[1] :])
    return _TARGETS[cell](incoming, recurrent, steps)


def _lstm(incoming: Array, recurrent: Array, steps: Steps) -> Targets:
    xp, units = array_namespace(incoming), steps.state.shape[1]
    wanted = incoming + recurrent
    into, keep, new, out = (wanted[:, place * units : (place + 1) * units] for place in range(4))
    into, keep, new, out = sigmoid(into), sigmoid(keep), xp.tanh(new), sigmoid(out)
    before: list[Array] = []
    after = steps.memory
    shown: list[Array] = []
    start = 0
    for size in steps.sizes:
        here = slice(start, start + size)
        before.append(after[:size])  # type: ignore[index]
        after = keep[here] * before[-1] + into[here] * new[here]
        shown.append(xp.tanh(after))
        start += size
    earlier, visible = xp.concat(before), xp.concat(shown)
    through = out * (1 - visible**2)
    slopes = (
        through * new * into * (1 - into),
        through * earlier * keep * (1 - keep),
        through * into * (1 - new**2),
        visible * out * (1 - out),
    )
    return Targets(wanted, xp.concat(slopes, axis=1))


def _gru(incoming: Array, recurrent: Array, steps: Steps, fed: Array | None = None) -> Targets:
    """With the new gates' weights for the state, if it is reset before the product: a unit's reset acts on all then."""
    xp, units, state = array_namespace(incoming), steps.state.shape[1], steps.state
    new = slice(2 * units, None)
    wanted = (incoming + recurrent)[:, : 2 * units]
    gates = sigmoid(wanted)
    reset, keep = gates[:, :units], gates[:, units:]
    inner = incoming[:, new] + (reset * recurrent[:, new] if fed is None else (reset * state) @ fed.T)
    made = xp.tanh(inner)
    through = (1 - keep) * (1 - made**2)
    acts = through * recurrent[:, new] if fed is None else state * xp.sqrt(through**2 @ fed**2)
    slopes = (acts * reset * (1 - reset), (state - made) * keep * (1 - keep), through)
    resets = xp.concat((xp.ones_like(gates), reset), axis=1)
    return Targets(xp.concat((wanted, inner), axis=1), xp.concat(slopes, axis=1), resets)


def _tanh(incoming: Array, recurrent: Array, steps: Steps) -> Targets:
    wanted = incoming + recurrent
    return Targets(wanted, 1 - array_namespace(wanted).tanh(wanted) ** 2)


def _relu(incoming: Array, recurrent: Array, steps: Steps) -> Targets:
    wanted = incoming + recurrent
    return Targets(wanted, array_namespace(wanted).astype(wanted > 0, wanted.dtype))


_TARGETS: dict[str, Callable[..., Targets]] = {"lstm": _lstm, "gru": _gru, "rnn_tanh": _tanh, "rnn_relu": _relu}
