"""ONNX's LSTM, GRU and RNN operators written out: one product for all inputs, and a `Scan` over the recurrent ones.

What is written out computes what the operator does, and its products with weights can be quantised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from reprune.runtimes import need

RECURRENT = {"LSTM": 4, "GRU": 3, "RNN": 1}
"""Gates of each operator."""
_DEFAULTS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}


def write_out(proto: Any, wanted: Callable[[Any, int], bool], *, static: bool) -> list[str]:
    """Replace the recurrent operators of a model, in place; returns sentences on those that cannot be.

    Args:
        proto: The model.
        wanted: Tells for a node and its number of units whether to replace it.
        static: Quantise the state before its product with a fixed range, else with that of each step.
    """
    onnx = need("onnx", "int8=")
    weights = {weight.name: weight for weight in proto.graph.initializer}
    nodes, refused = [], []
    for node in proto.graph.node:
        if node.op_type not in RECURRENT or not wanted(node, _attribute(node, "hidden_size", 0)):
            nodes.append(node)
            continue
        reason = _refusal(node, weights)
        if reason is not None:
            refused.append(f"{node.op_type} {node.name}: {reason}")
            nodes.append(node)
            continue
        arrays = [onnx.numpy_helper.to_array(weights[name]) if name else None for name in node.input[1:4]]
        writer = _Layer(onnx, node, arrays, static)
        nodes += writer.write()
        proto.graph.initializer.extend(writer.weights)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    read = {name for node in nodes for name in node.input} | {port.name for port in proto.graph.output}
    stay = [weight for weight in proto.graph.initializer if weight.name in read or weight.name in _inputs(proto)]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(stay)
    return refused


def _inputs(proto: Any) -> set[str]:
    return {port.name for port in proto.graph.input}


def _attribute(node: Any, name: str, default: Any) -> Any:
    onnx = need("onnx", "int8=")
    return next((onnx.helper.get_attribute_value(entry) for entry in node.attribute if entry.name == name), default)


def _activations(node: Any) -> list[str]:
    directions = 2 if _attribute(node, "direction", b"forward") == b"bidirectional" else 1
    named = [name.decode() for name in _attribute(node, "activations", [])]
    return named or _DEFAULTS[node.op_type] * directions


def _refusal(node: Any, weights: Any) -> str | None:
    """Why an operator cannot be written out."""
    if any(name and name not in weights for name in node.input[1:4]):
        return "its weights are computed"
    if len(node.input) > 7 and node.input[7]:
        return "it has peepholes"
    options = {"clip", "input_forget", "layout", "activation_alpha", "activation_beta"}
    if options & {entry.name for entry in node.attribute if _attribute(node, entry.name, 0) not in (0, [])}:
        return "it has options that are rare"
    if not set(_activations(node)) <= {"Sigmoid", "Tanh", "Relu"}:
        return "its nonlinearities are rare"
    return None


class _Layer:
    """One operator, written out direction by direction."""

    def __init__(self, onnx: Any, node: Any, arrays: Sequence[Any], static: bool) -> None:
        self.onnx, self.node, self.static = onnx, node, static
        self.kind, self.gates = node.op_type, RECURRENT[node.op_type]
        self.w, self.r, self.b = arrays
        self.units = self.r.shape[2]
        self.prefix = f"{node.name or node.output[0]}/written"
        self.states = 2 if self.kind == "LSTM" else 1
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def write(self) -> list[Any]:
        """The nodes in the operator's place; their weights are in `weights`."""
        direction = _attribute(self.node, "direction", b"forward")
        backward = {b"forward": [False], b"reverse": [True], b"bidirectional": [False, True]}[direction]
        x, lengths = self.node.input[0], self.node.input[4] if len(self.node.input) > 4 else ""
        outputs: list[list[str]] = [[] for _ in range(1 + self.states)]
        for index, reverse in enumerate(backward):
            for kind, name in zip(outputs, self._direction(index, reverse, x, lengths), strict=True):
                kind.append(name)
        for kind, target in zip(outputs, self.node.output, strict=False):
            if target:
                axis = 1 if kind is outputs[0] else 0
                self._node("Concat", kind, axis=axis, output=target)
        return self.nodes

    def _direction(self, index: int, reverse: bool, x: str, lengths: str) -> list[str]:
        """Output (T, 1, B, H) and final states (1, B, H) of one direction."""
        wide = self.gates * self.units
        bias = np.zeros(2 * wide, np.float32) if self.b is None else self.b[index]
        outer, inner = bias[:wide].copy(), bias[wide:].copy()
        if self.kind == "GRU":
            # The candidate's recurrent bias is inside the reset gate's product.
            outer[: 2 * self.units] += inner[: 2 * self.units]
            inner = inner[2 * self.units :]
        else:
            outer, inner = outer + inner, inner[:0]
        product = self._node("MatMul", [x, self._weight(f"w{index}", self.w[index].T)])
        read = self._node("Add", [product, self._weight(f"b{index}", outer)])
        given = [self._start(index, state, x) for state in range(self.states)]
        scans = [read]
        if lengths:
            scans.append(self._times(x))
        body = self._body(index, inner, lengths)
        names = [f"{self.prefix}/{key}{index}" for key in ("h", "c", "y")]
        final, emitted = names[: self.states], names[2]
        self.nodes.append(
            self.onnx.helper.make_node(
                "Scan",
                [*given, *scans],
                [*final, emitted],
                f"{self.prefix}/scan{index}",
                body=body,
                num_scan_inputs=len(scans),
                scan_input_directions=[int(reverse)] * len(scans),
                scan_output_directions=[int(reverse)],
            )
        )
        one, zero = self._constant([1]), self._constant([0])
        return [self._node("Unsqueeze", [emitted, one]), *(self._node("Unsqueeze", [name, zero]) for name in final)]

    def _start(self, index: int, state: int, x: str) -> str:
        """The initial state (B, H) of a direction: what the operator is given, or zeros."""
        position = 5 + state
        if len(self.node.input) > position and self.node.input[position]:
            return self._node("Gather", [self.node.input[position], self._constant(index)], axis=0)
        batch = self._node("Gather", [self._node("Shape", [x]), self._constant([1])], axis=0)
        shape = self._node("Concat", [batch, self._constant([self.units])], axis=0)
        return self._node("Expand", [self._weight("zero", np.zeros((1, 1), np.float32)), shape])

    def _times(self, x: str) -> str:
        """The number of each step, (T,), in the type of lengths."""
        count = self._node("Gather", [self._node("Shape", [x]), self._constant(0)], axis=0)
        steps = self._node("Range", [self._constant(0), count, self._constant(1)])
        return self._node("Cast", [steps], to=self.onnx.TensorProto.INT32)

    def _body(self, index: int, inner: Any, lengths: str) -> Any:
        """One step, as the graph of a `Scan`."""
        step = _Step(self, index, inner)
        h, c = f"{step.prefix}/h", f"{step.prefix}/c"
        states = [h, c][: self.states]
        steps: dict[str, Callable[..., list[str]]] = {"LSTM": step.lstm, "GRU": step.gru, "RNN": step.rnn}
        new = steps[self.kind](f"{step.prefix}/x", *states)
        emitted = new[0]
        inputs = [*states, f"{step.prefix}/x"]
        if lengths:
            time = f"{step.prefix}/time"
            inputs.append(time)
            column = step.node("Unsqueeze", [lengths, step.constant(np.array([1], np.int64))])
            valid = step.node("Less", [time, column])
            emitted = step.node("Where", [valid, emitted, step.constant(np.zeros((), np.float32))])
            new = [step.node("Where", [valid, one, old]) for one, old in zip(new, states, strict=True)]
        # Every output of a graph has a name of its own.
        outputs = [*new, step.node("Identity", [emitted]) if emitted in new else emitted]
        port, kinds = self.onnx.helper.make_tensor_value_info, self.onnx.TensorProto
        given = [port(name, kinds.FLOAT, [None, self.units]) for name in states]
        given.append(port(f"{step.prefix}/x", kinds.FLOAT, [None, self.gates * self.units]))
        given += [port(name, kinds.INT32, []) for name in inputs[len(given) :]]
        # Where the shapes outside are not known, a Scan asks for those of its results.
        results = [port(name, kinds.FLOAT, [None, self.units]) for name in outputs]
        return self.onnx.helper.make_graph(step.nodes, f"{self.kind}_step", given, results, step.weights)

    def _node(self, kind: str, inputs: Sequence[str], output: str = "", **options: Any) -> str:
        name = output or f"{self.prefix}/{kind}_{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(kind, list(inputs), [name], f"{name}_node", **options))
        return name

    def _weight(self, key: str, value: Any) -> str:
        name = f"{self.prefix}/{key}"
        if all(weight.name != name for weight in self.weights):
            self.weights.append(self.onnx.numpy_helper.from_array(np.ascontiguousarray(value, np.float32), name))
        return name

    def _constant(self, value: Any) -> str:
        name = f"{self.prefix}/constant_{value}"
        if all(weight.name != name for weight in self.weights):
            self.weights.append(self.onnx.numpy_helper.from_array(np.asarray(value, np.int64), name))
        return name


class _Step:
    """The nodes of one step of a recurrence."""

    def __init__(self, layer: _Layer, index: int, inner: Any) -> None:
        self.layer, self.prefix = layer, f"{layer.prefix}/step{index}"
        count = len(_DEFAULTS[layer.kind])
        self.functions = _activations(layer.node)[index * count : (index + 1) * count]
        self.r, self.inner = layer.r[index].T, inner
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def lstm(self, x: str, h: str, c: str) -> list[str]:
        """New `h` and `c`; gates in ONNX's order: input, output, forget, cell."""
        gate, candidate, squash = self.functions
        gates, g = self.split(self.node("Add", [x, self.product(h, self.r)]), 3, 1)
        i, o, f = self.split(self.node(gate, [gates]), 1, 1, 1)
        kept = self.node("Mul", [f, c])
        c = self.node("Add", [kept, self.node("Mul", [i, self.node(candidate, [g])])])
        return [self.node("Mul", [o, self.node(squash, [c])]), c]

    def gru(self, x: str, h: str) -> list[str]:
        """New `h`; gates in ONNX's order: update, reset, candidate."""
        gate, candidate = self.functions
        units = self.layer.units
        x_gates, x_candidate = self.split(x, 2, 1)
        bias = self.constant(self.inner)
        before = _attribute(self.layer.node, "linear_before_reset", 0)
        if before:
            h_gates, h_candidate = self.split(self.product(h, self.r), 2, 1)
        else:
            h_gates = self.product(h, self.r[:, : 2 * units])
        z, r = self.split(self.node(gate, [self.node("Add", [x_gates, h_gates])]), 1, 1)
        if before:
            h_candidate = self.node("Mul", [r, self.node("Add", [h_candidate, bias])])
        else:
            product = self.product(self.node("Mul", [r, h]), self.r[:, 2 * units :])
            h_candidate = self.node("Add", [product, bias])
        n = self.node(candidate, [self.node("Add", [x_candidate, h_candidate])])
        # (1 - z) n + z h, with one product less.
        return [self.node("Add", [n, self.node("Mul", [z, self.node("Sub", [h, n])])])]

    def rnn(self, x: str, h: str) -> list[str]:
        """New `h`."""
        return [self.node(self.functions[0], [self.node("Add", [x, self.product(h, self.r)])])]

    def product(self, h: str, weight: Any) -> str:
        """A state times a weight (H, gates), in 8 bits: the weight by column, the state in one range."""
        key = f"r{len(self.weights)}"
        scale = np.maximum(np.abs(weight).max(0), 1e-8).astype(np.float32) / 127
        whole = np.clip(np.round(weight / scale), -127, 127).astype(np.int8)
        stored = self.store(key, whole)
        if self.layer.static and "Relu" not in self.functions:
            # A state between -1 and 1, which is what a product of a sigmoid and a hyperbolic tangent is.
            one, middle = self.constant(np.float32(1 / 127)), self.constant(np.uint8(128))
            small = self.node("QuantizeLinear", [h, one, middle])
            state = self.node("DequantizeLinear", [small, one, middle])
            zeros = self.store(f"{key}_zero_point", np.zeros(scale.shape, np.int8))
            scales = self.store(f"{key}_scale", scale)
            return self.node("MatMul", [state, self.node("DequantizeLinear", [stored, scales, zeros], axis=1)])
        small, step, middle = (f"{self.prefix}/{key}_{part}" for part in ("state", "step", "middle"))
        self.nodes.append(self.layer.onnx.helper.make_node("DynamicQuantizeLinear", [h], [small, step, middle]))
        summed = self.node("MatMulInteger", [small, stored, middle])
        real = self.node("Cast", [summed], to=self.layer.onnx.TensorProto.FLOAT)
        return self.node("Mul", [real, self.node("Mul", [step, self.store(f"{key}_scale", scale)])])

    def split(self, name: str, *gates: int) -> list[str]:
        """Gates of a step that lie side by side: so many of them in each part, (B, gates × H)."""
        outputs = [f"{self.prefix}/{len(self.nodes)}_{part}" for part in range(len(gates))]
        sizes = self.constant(np.array(gates, np.int64) * self.layer.units)
        self.nodes.append(self.layer.onnx.helper.make_node("Split", [name, sizes], outputs, axis=-1))
        return outputs

    def node(self, kind: str, inputs: Sequence[str], **options: Any) -> str:
        """The output of one more node."""
        name = f"{self.prefix}/{kind}_{len(self.nodes)}"
        self.nodes.append(self.layer.onnx.helper.make_node(kind, list(inputs), [name], f"{name}_node", **options))
        return name

    def constant(self, value: Any) -> str:
        """A small constant of the step."""
        return self.store(f"constant{len(self.weights)}", np.asarray(value))

    def store(self, key: str, value: Any) -> str:
        """A weight of the step."""
        name = f"{self.prefix}/{key}"
        self.weights.append(self.layer.onnx.numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name
