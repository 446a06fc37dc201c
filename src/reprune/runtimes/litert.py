"""Run `.tflite` files in LiteRT (ai-edge-litert), the interpreter of Android and iOS."""

from __future__ import annotations

import re
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reprune.core.exporting import EightBits, ExportError
from reprune.runtimes import need, running


class LiteRtRunner:
    """A `.tflite` file in LiteRT's interpreter; inputs are resized to the arrays given."""

    def __init__(self, path: Path, threads: int | None) -> None:
        interpreter = need("ai_edge_litert.interpreter", "Running .tflite files")
        try:
            self._interpreter = interpreter.Interpreter(model_path=str(path), num_threads=threads)
            self._interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise ExportError(f"{path} cannot be loaded by LiteRT: {error}") from error
        self.runtime = f"LiteRT {version('ai-edge-litert')}"
        self._shapes: list[tuple[int, ...]] = [tuple(port["shape"]) for port in self._interpreter.get_input_details()]

    def __call__(self, *inputs: NDArray[Any]) -> list[NDArray[Any]]:
        """The outputs for inputs in the file's order."""
        ports = self._in_order("inputs", self._interpreter.get_input_details())
        if len(ports) != len(inputs):
            names = [port["name"] for port in ports]
            raise ExportError(f"The file takes {len(ports)} inputs {names}, got {len(inputs)}.")
        with running(self.runtime, inputs):
            shapes = [tuple(array.shape) for array in inputs]
            if shapes != self._shapes:
                for port, shape in zip(ports, shapes, strict=True):
                    self._interpreter.resize_tensor_input(port["index"], shape, strict=True)
                self._interpreter.allocate_tensors()
                self._shapes = shapes
            for port, array in zip(ports, inputs, strict=True):
                self._interpreter.set_tensor(port["index"], array)
            # A fused LSTM keeps its state in a variable: every call here is a sequence of its own.
            self._interpreter.reset_all_variables()
            self._interpreter.invoke()
            outputs = self._in_order("outputs", self._interpreter.get_output_details())
            return [np.asarray(self._interpreter.get_tensor(port["index"])) for port in outputs]

    def _in_order(self, kind: str, ports: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The ports in the file's order; by number if its signature numbers them, for converters shuffle those."""
        signatures = self._interpreter._get_full_signature_list()
        named: dict[str, int] = next(iter(signatures.values()))[kind] if signatures else {}
        if len(named) != len(ports) or not all(re.fullmatch(r"(in|out)put_\d+", name) for name in named):
            return ports
        found = {port["index"]: port for port in ports}
        ordered = [index for _, index in sorted((int(name.rpartition("_")[2]), index) for name, index in named.items())]
        return [found[index] for index in ordered] if set(ordered) == set(found) else ports


def open_file(path: Path, threads: int | None) -> LiteRtRunner:
    """Load a file; see `runtimes.open_file`."""
    return LiteRtRunner(path, threads)


def count_eight_bits(path: Path) -> EightBits:
    """What a `.tflite` file holds in 8 bits: weights and activations."""
    tensors = _interpreter(path).get_tensor_details()
    kinds = (np.int8, np.int16, np.float32)
    numbers = [tensor for tensor in tensors if tensor["dtype"] in kinds and np.prod(tensor["shape"], initial=1) > 1]
    eight = [tensor for tensor in numbers if tensor["dtype"] == np.int8]
    weights = _weights(path)
    return EightBits(
        tensors=len(eight),
        of=len(numbers),
        weights=sum(size for kind, size in weights if kind == np.int8),
        of_weights=sum(size for _, size in weights),
    )


def operators(path: Path) -> Counter[str]:
    """How often each operator occurs in a `.tflite` file, loops' bodies left out."""
    return Counter(entry["op_name"] for entry in _interpreter(path)._get_ops_details())


def _weights(path: Path) -> list[tuple[Any, int]]:
    """Type and number of elements of every constant tensor of numbers: what no operator writes and no caller gives."""
    interpreter = _interpreter(path)
    written = {int(index) for entry in interpreter._get_ops_details() for index in entry["outputs"]}
    written |= {port["index"] for port in interpreter.get_input_details()}
    return [
        (tensor["dtype"], int(np.prod(tensor["shape"])))
        for tensor in interpreter.get_tensor_details()
        if tensor["index"] not in written
        and tensor["dtype"] in (np.int8, np.int16, np.float32)
        and len(tensor["shape"]) > 1
    ]


def _interpreter(path: Path) -> Any:
    interpreter = need("ai_edge_litert.interpreter", "Reading .tflite files")
    kinds = interpreter.OpResolverType
    # Without delegates, which would take operators out of the list.
    return interpreter.Interpreter(
        model_path=str(path), experimental_op_resolver_type=kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    )
