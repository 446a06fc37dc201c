"""Running a model without writing to it: as a function of its inputs and of its variables, compiled where that pays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import keras

from reprune.keras.tracing.graph import ModelGraph, array, run

Tensors = list[Any]
Function = Callable[..., Tensors]

LONG = 16
"""Time steps from which on compiling takes less time than running a recurrent layer step by step."""
OFTEN = 8
"""Calls from which on it pays whatever is run."""
STEPS = 2048
"""Time steps of all calls with tensors of one shape from which on it pays to have XLA compile it for them."""


class Compiled:
    """A function of lists of tensors that the backend compiles for long sequences, and for any when it is called often.

    What the function assigns to variables of Keras, such as the states of stateful layers, is dropped: every call
    starts from what they hold, and leaves it.

    Args:
        function: Takes lists of tensors, and returns one.
    """

    def __init__(self, function: Function) -> None:
        self._plain = _apart(function)
        self._ways = [self._plain, *_WAYS[keras.backend.backend()](self._plain)]
        self._calls: Counter[tuple[int, ...]] = Counter()

    def __call__(self, *given: Sequence[Any]) -> Tensors:
        """The function's tensors for lists of arrays, the last of which holds the sequences whose length counts."""
        # Tensors, no variables: for those, TensorFlow would compile the function once more.
        tensors = [[keras.ops.stop_gradient(keras.ops.convert_to_tensor(value)) for value in part] for part in given]
        while True:
            way = self._way(tensors[-1])
            try:
                return list(way(*tensors))
            except Exception:
                # XLA knows not every operation, and a graph no Python branch on values. Errors of the last way that is
                # left are the user's own.
                if way is self._plain:
                    raise
                self._ways.remove(way)

    def _way(self, tensors: Tensors) -> Function:
        shape = tuple(int(size) for value in tensors for size in value.shape)
        steps = max((int(value.shape[1]) for value in tensors if len(value.shape) > 1), default=1)
        self._calls[shape] += 1
        # Operation by operation, JAX compiles every loop anew.
        if self._calls[shape] * steps > STEPS or keras.backend.backend() == "jax":
            return self._ways[-1]
        often = steps >= LONG or self._calls.total() > OFTEN
        return self._ways[min(1, len(self._ways) - 1)] if often else self._plain


def _apart(function: Function) -> Function:
    def run(*given: Tensors) -> Tensors:
        with keras.StatelessScope():
            return list(function(*given))

    return run


def _tensorflow(function: Function) -> list[Function]:
    import tensorflow as tf

    # TensorFlow counts how often the same lines are compiled, and warns; a `partial` has none.
    own = partial(function)
    return [tf.function(own, jit_compile=xla, reduce_retracing=True, autograph=False) for xla in (None, True)]


def _jax(function: Function) -> list[Function]:
    import jax

    return [jax.jit(function)]


def _torch(function: Function) -> list[Function]:
    return []


_WAYS = {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}


def compiled_call(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What an operation returns, Keras's masks on its tensors included; a recurrent layer's loop is compiled.

    Args:
        operation: An operation or a layer.
        args: What it is called with, by position.
        kwargs: And by name.
    """
    if not isinstance(operation, (keras.layers.RNN, keras.layers.Bidirectional)):
        return operation(*args, **kwargs)
    leaves = keras.tree.flatten((args, kwargs))
    places = [place for place, leaf in enumerate(leaves) if keras.ops.is_tensor(leaf)]
    masked = [place for place in places if getattr(leaves[place], "_keras_mask", None) is not None]
    outputs: Any = None
    kept: list[int] = []

    def call(masks: Tensors, tensors: Tensors) -> Tensors:
        nonlocal outputs, kept
        given = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            given[place] = tensor
        for place, mask in zip(masked, masks, strict=True):
            given[place]._keras_mask = mask
        own_args, own_kwargs = keras.tree.pack_sequence_as((args, kwargs), given)
        outputs = operation(*own_args, **own_kwargs)
        flat = keras.tree.flatten(outputs)
        kept = [place for place, out in enumerate(flat) if getattr(out, "_keras_mask", None) is not None]
        return [*flat, *(flat[place]._keras_mask for place in kept)]

    found = Compiled(call)([leaves[place]._keras_mask for place in masked], [leaves[place] for place in places])
    flat = found[: len(found) - len(kept)]
    for place, mask in zip(kept, found[len(flat) :], strict=True):
        flat[place]._keras_mask = mask
    return keras.tree.pack_sequence_as(outputs, flat)


class Runner:
    """A graph as a function of its inputs and its weights; the model's variables are read, and none is written.

    Args:
        graph: The graph; its layers are run as they are.
        look: What to return of a pass, in place of the outputs: a function of the inputs.
    """

    def __init__(self, graph: ModelGraph, look: Callable[[Tensors], Tensors] | None = None) -> None:
        self.graph = graph
        self._weights = graph.weights()
        known = {id(variable) for variable in self._weights.values()}
        self._others = [variable for variable in graph.root.variables if id(variable) not in known]
        drawn = keras.src.backend.common.global_state.get_global_attribute("global_seed_generator")
        self._others += [] if drawn is None else [drawn.state]
        self._look = look or self._outputs
        self._compiled: dict[tuple[bool, ...], Compiled] = {}

    def __call__(self, inputs: Sequence[Any], weights: Mapping[str, Any] | None = None, draw: int = 0) -> Tensors:
        """The model's output tensors, or what is looked at.

        Args:
            inputs: Arrays as the graph takes them (`flat_inputs`), None for those that are left out.
            weights: Values in place of those that the model has, by name.
            draw: Which random numbers a model takes that is random even when it infers.
        """
        given = tuple(value is not None for value in inputs)
        if given not in self._compiled:
            self._compiled[given] = Compiled(lambda values, inputs: self.within(values, inputs, given))
        return self._compiled[given](self.values(weights, draw), [value for value in inputs if value is not None])

    def arrays(self, inputs: Sequence[Any], weights: Mapping[str, Any] | None = None, draw: int = 0) -> list[Any]:
        """The same as arrays of NumPy."""
        return [array(value) for value in self(inputs, weights, draw)]

    def values(self, weights: Mapping[str, Any] | None = None, draw: int = 0) -> Tensors:
        """All variables, the weights in the order of the graph; see `__call__`."""
        held = {name: variable.value for name, variable in self._weights.items()}
        others = [other.value + draw if draw and "seed" in other.path else other.value for other in self._others]
        return [*{**held, **(weights or {})}.values(), *others]

    def within(self, values: Tensors, inputs: Tensors, given: Sequence[bool] | None = None) -> Tensors:
        """The pass itself, for functions that are compiled as a whole.

        Args:
            values: As `values` gives them.
            inputs: The inputs that are given.
            given: Which ones those are; all of them by default.
        """
        parts = iter(inputs)
        inputs = [next(parts) if there else None for there in given or [True] * len(inputs)]
        with keras.StatelessScope(list(zip([*self._weights.values(), *self._others], values, strict=True))):
            return self._look(inputs)

    def _outputs(self, inputs: Tensors) -> Tensors:
        packed = keras.tree.pack_sequence_as(self.graph.root.input, inputs)
        return list(keras.tree.flatten(self.graph.root(packed, training=False)))


def _batch_is_fixed(graph: ModelGraph) -> bool:
    return any(spec.shape[0] is not None for spec in graph.root.inputs)


def few_sequences(graph: ModelGraph, inputs: Sequence[Any], count: int) -> list[Any]:
    """The first sequences of a batch, as the graph takes it; all of them where their number is fixed."""
    if _batch_is_fixed(graph):
        return list(inputs)
    return [value[:count] if value is not None and len(value.shape) else value for value in inputs]


def shortened(
    run: Runner, inputs: Sequence[Any], sequences: int, steps: int, *, time_is_open: bool = True
) -> tuple[list[Any], Tensors]:
    """The first steps of the first sequences of a batch, where the model can be run on them; else as much as it needs.

    Args:
        run: Runs the graph (`loosely`).
        inputs: A batch, as the graph takes it.
        sequences: Sequences that are enough.
        steps: Time steps that are enough.
        time_is_open: Whether time steps may be left out.

    Returns:
        The part of the batch, and the output tensors for it.
    """
    few = few_sequences(run.graph, inputs, sequences)
    whole = max((value.shape[1] for value in few if value is not None and len(value.shape) > 1), default=0)
    if whole <= steps or not time_is_open or _batch_is_fixed(run.graph):
        return few, run(few)

    def time(value: Any) -> bool:
        return value is not None and len(value.shape) > 1 and value.shape[1] == whole

    short = [value[:, :steps] if time(value) else value for value in few]
    try:
        found = run(short)
    except Exception:
        # A length is written into the model: whatever its layers raise, they run on the whole.
        return few, run(few)
    # What has no elements agrees with everything, and shows nothing.
    return (short, found) if all(0 not in out.shape for out in found) else (few, run(few))


def loosely(graph: ModelGraph) -> Callable[[Tensors], Tensors]:
    """Runs a graph on sequences of any length, whatever length it was declared with."""
    return lambda inputs: list(keras.tree.flatten(run(graph.root, inputs, lambda op, *args, **kw: op(*args, **kw))))
