"""Builders of small recurrent modules and data, and an independent reference: a NumPy loop over time."""

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence

from reprune.torch.ragged.modules import RaggedGRU, RaggedLSTM, RaggedRNN

KINDS = ["lstm", "lstm-proj", "gru", "rnn-tanh", "rnn-relu"]
FORMS = ["dense", "batch-first", "unbatched", "packed", "packed-unsorted"]
LENGTHS = {"packed": [6, 4, 1], "packed-unsorted": [1, 6, 4]}
FEATURES, STEPS, BATCH = 5, 6, 3


def dense(kind, layers=2, bidirectional=False, **options):
    options |= {"num_layers": layers, "bidirectional": bidirectional}
    if kind.startswith("lstm"):
        return nn.LSTM(FEATURES, 4, proj_size=3 if kind == "lstm-proj" else 0, **options)
    if kind == "gru":
        return nn.GRU(FEATURES, 4, **options)
    return nn.RNN(FEATURES, 4, nonlinearity=kind[4:], **options)


def ragged(kind, sizes, proj_sizes=None, **options):
    options |= {"dtype": torch.float64}
    if kind.startswith("lstm"):
        return RaggedLSTM(FEATURES, sizes, proj_sizes=proj_sizes, **options)
    if kind == "gru":
        return RaggedGRU(FEATURES, sizes, **options)
    return RaggedRNN(FEATURES, sizes, nonlinearity=kind[4:], **options)


UNEVEN = {
    1: ([[4], [3], [3], [3]], [[3], [2], [2], [3]]),
    2: ([[4, 6], [3, 3], [3, 3], [5, 2]], [[3, 2], [2, 2], [2, 2], [5, 3]]),
}


def uneven(kind, directions, **options):
    sizes, proj_sizes = UNEVEN[directions]
    return ragged(kind, sizes, proj_sizes if kind == "lstm-proj" else None, **options)


def data(form, dtype=torch.float64):
    if form == "unbatched":
        return torch.randn(STEPS, FEATURES, dtype=dtype, requires_grad=True)
    if form == "dense":
        return torch.randn(STEPS, BATCH, FEATURES, dtype=dtype, requires_grad=True)
    if form == "batch-first":
        return torch.randn(BATCH, STEPS, FEATURES, dtype=dtype, requires_grad=True)
    sequences = [torch.randn(length, FEATURES, dtype=dtype) for length in LENGTHS[form]]
    return pack_sequence(sequences, enforce_sorted=form == "packed")


def initial(module, form, dtype=torch.float64):
    """Random initial states in the module's own form: stacked if all sizes are equal, otherwise tuples."""
    batch = () if form == "unbatched" else (BATCH,)
    sizes = getattr(module, "hidden_sizes", [[module.hidden_size]])
    out = getattr(module, "output_sizes", [[module.proj_size or module.hidden_size]])

    def draw(nested):
        flat = [size for layer in nested for size in layer]
        if len(set(flat)) > 1:
            return tuple(torch.randn(*batch, size, dtype=dtype) for size in flat)
        pieces = module.num_layers * (2 if module.bidirectional else 1)
        return torch.randn(pieces, *batch, flat[0], dtype=dtype)

    return (draw(out), draw(sizes)) if module.mode == "LSTM" else draw(out)


def tensors(result):
    """All tensors in a result, in order, whatever its form."""
    if isinstance(result, PackedSequence):
        return [result.data]
    if isinstance(result, torch.Tensor):
        return [result]
    return [tensor for part in result for tensor in tensors(part)]


def gradients(module, result):
    weights = list(module.parameters())
    generator = torch.Generator().manual_seed(3)
    loss = sum((t * torch.randn(t.shape, generator=generator, dtype=t.dtype)).sum() for t in tensors(result))
    return torch.autograd.grad(loss, weights, retain_graph=True)


def assert_all_close(actual, expected, tolerance=1e-10):
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def ignore(*_):
    pass


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def numpy_step(mode, w, x, h, c):
    """One time step of one sequence: what the cell units emit before a projection, the new h, the new c."""
    zero = np.zeros(1)
    read = w["weight_ih"] @ x + w.get("bias_ih", zero)
    back = w["weight_hh"] @ h + w.get("bias_hh", zero)
    if mode == "LSTM":
        i, f, g, o = np.split(read + back, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        units = sigmoid(o) * np.tanh(c)
        return units, w["weight_hr"] @ units if "weight_hr" in w else units, c
    if mode == "GRU":
        (ir, iz, in_), (hr, hz, hn) = np.split(read, 3), np.split(back, 3)
        z = sigmoid(iz + hz)
        h = (1 - z) * np.tanh(in_ + sigmoid(ir + hr) * hn) + z * h
    else:
        h = np.tanh(read + back) if mode == "RNN_TANH" else np.maximum(read + back, 0)
    return h, h, c


def numpy_reference(module, sequences, hs, cs):
    """Outputs per sequence, final h and c per piece, responses per name and sequence, by plain loops."""
    h_n, c_n, responses, piece = [], [], {}, 0
    for layer in range(module.num_layers):
        outputs = []
        for direction in range(module.num_directions):
            suffix = f"l{layer}" + "_reverse" * direction
            w = {n[: -len(suffix) - 1]: p.detach().numpy() for n, p in module.named_parameters() if n.endswith(suffix)}
            w = {n: p for n, p in w.items() if n.count("_") == 1}
            emitted, cells, ends = [], [], []
            for number, sequence in enumerate(sequences):
                h, c = hs[piece][number], cs[piece][number]
                steps = []
                for x in sequence[::-1] if direction else sequence:
                    units, h, c = numpy_step(module.mode, w, x, h, c)
                    steps.append((units, h))
                steps = steps[::-1] if direction else steps
                cells.append(np.stack([units for units, _ in steps]))
                emitted.append(np.stack([h for _, h in steps]))
                ends.append((h, c))
            outputs.append(emitted)
            responses[suffix] = cells
            if "weight_hr" in w:
                responses[suffix + ":projection"] = emitted
            h_n.append(np.stack([h for h, _ in ends]))
            c_n.append(np.stack([c for _, c in ends]))
            piece += 1
        sequences = [np.concatenate(parts, axis=-1) for parts in zip(*outputs, strict=True)]
    return sequences, h_n, c_n, responses


def as_sequences(x, form):
    """The single sequences (steps, features) in any form of input or output."""
    if form == "unbatched":
        return [x.detach().numpy()]
    if form == "dense":
        return list(x.detach().transpose(0, 1).numpy())
    if form == "batch-first":
        return list(x.detach().numpy())
    padded, lengths = pad_packed_sequence(x, batch_first=True)
    return [sequence[:length].detach().numpy() for sequence, length in zip(padded, lengths, strict=True)]


def as_pieces(state, form):
    """One array (batch, size) per layer and direction."""
    return [piece.detach().numpy()[None] if form == "unbatched" else piece.detach().numpy() for piece in state]


def shrink(model, kept):
    """Mask a dense module in place and slice the ragged module of the kept units from it."""
    directions = 2 if model.bidirectional else 1
    gates = {"LSTM": 4, "GRU": 3}.get(model.mode, 1)
    sizes = [[len(kept[layer * directions + d]) for d in range(directions)] for layer in range(model.num_layers)]
    small = ragged({"LSTM": "lstm", "GRU": "gru"}.get(model.mode, model.mode.lower().replace("_", "-")), sizes)
    state = {}
    for name, parameter in model.named_parameters():
        layer, direction = int(name.split("_l")[1][0]), int(name.endswith("reverse"))
        units = np.array(kept[layer * directions + direction])
        rows = np.concatenate([gate * model.hidden_size + units for gate in range(gates)])
        columns = np.arange(parameter.shape[-1])
        if "weight_hh" in name:
            columns = units
        elif "weight_ih" in name and layer:
            below = [np.array(kept[(layer - 1) * directions + d]) + d * model.hidden_size for d in range(directions)]
            columns = np.concatenate(below)
        if parameter.dim() == 1:
            state[name] = (rows,)
        else:
            removed = np.setdiff1d(np.arange(parameter.shape[1]), columns)
            parameter.data[:, removed] = 0
            state[name] = np.ix_(rows, columns)
    small.load_state_dict({name: dict(model.named_parameters())[name].data[index] for name, index in state.items()})
    return small, state
