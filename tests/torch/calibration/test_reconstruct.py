"""The default method end to end: what it folds, against least squares on what the consumers really read."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.overrides import TorchFunctionMode

import reprune
from reprune import Method
from reprune.torch.calibration.importance import differentiable_kernels, output_importance
from reprune.torch.calibration.responses import observe
from reprune.torch.tracing.record import trace


class Tagger(nn.Module):
    """Two bidirectional layers; the head reads one position after a nonlinearity, beside a plain input."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(5, 6, 2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(12 + 5, 4)

    def forward(self, x, lengths):
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        out, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        last = out[torch.arange(len(x)), lengths - 1]
        return self.head(torch.cat([torch.relu(last), x[:, 0]], -1))


def batches(count=6, size=40):
    generator = torch.Generator().manual_seed(3)
    for _ in range(count):
        lengths = torch.randint(2, 12, (size,), generator=generator)
        yield torch.randn(size, int(lengths.max()), 5, generator=generator, dtype=torch.float64), lengths


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Tagger().double().eval()


def head_inputs(model):
    seen = []
    handle = model.head.register_forward_hook(lambda _, args, out: seen.append(args[0].detach()))
    with torch.no_grad():
        for batch in batches():
            model(*batch)
    handle.remove()
    return torch.cat(seen).numpy()


def test_each_consumer_has_the_moments_of_what_it_reads(model):
    structure = trace(model, next(batches()))
    statistics = observe(model, structure, batches(), readings=True)
    rows = head_inputs(model)
    moments = statistics.readings["head.weight", 1].merged()
    assert moments.count == len(rows)
    np.testing.assert_allclose(moments.mean, rows.mean(0), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(moments.covariance, np.cov(rows.T, bias=True), rtol=1e-9, atol=1e-12)
    # Layer 1 reads both directions of layer 0, valid steps only.
    below = statistics.readings["lstm.weight_ih_l1", 1]
    assert below is statistics.readings["lstm.weight_ih_l1_reverse", 1]
    assert below.merged().count == sum(int(lengths.sum()) for _, lengths in batches())
    plain = observe(model, structure, batches())
    for name in structure.layers:
        np.testing.assert_allclose(statistics[name].mean, plain[name].mean, rtol=1e-10)
        np.testing.assert_allclose(statistics[name].covariance, plain[name].covariance, rtol=1e-9, atol=1e-14)


def test_every_step_of_a_loop_counts():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = nn.LSTMCell(5, 6), nn.Linear(6, 2)

        def forward(self, x):
            state = (x.new_zeros(len(x), 6), x.new_zeros(len(x), 6))
            found = []
            for step in x.unbind(1):
                state = self.cell(step, state)
                found.append(self.head(state[0]))
            return torch.stack(found, 1)

    torch.manual_seed(0)
    model, x = Loop().double(), [torch.randn(3, 7, 5, dtype=torch.float64) for _ in range(4)]
    seen = []
    handle = model.head.register_forward_hook(lambda _, args, out: seen.append(args[0].detach()))
    for batch in x:
        model(batch)
    handle.remove()
    rows = torch.cat(seen).numpy()
    statistics = observe(model, trace(model, x[0]), x, readings=True)
    assert statistics.readings["head.weight", 1] is statistics.readings["cell.weight_hh", 1]
    for moments in (statistics.readings["head.weight", 1].merged(), statistics["cell:l0"]):
        assert moments.count == len(rows) == 84
        np.testing.assert_allclose(moments.mean, rows.mean(0), rtol=1e-10)
        np.testing.assert_allclose(moments.covariance, np.cov(rows.T, bias=True), rtol=1e-9, atol=1e-14)


WRITTEN = {
    "linear": lambda x, h, w, u, parts: nn.functional.linear(h, u) + x @ w.t(),
    "matrix": lambda x, h, w, u, parts: x @ w.t() + h @ u.t(),
    "left": lambda x, h, w, u, parts: (w @ x.t() + u @ h.t()).t(),
    "gate by gate": lambda x, h, w, u, parts: x @ w.t() + torch.cat([h @ part.t() for part in u.split(6)], 1),
    "batched": lambda x, h, w, u, parts: torch.bmm(h[:, None], u.t().expand(len(h), -1, -1))[:, 0] + x @ w.t(),
    "convolution": lambda x, h, w, u, parts: x @ w.t() + nn.functional.conv1d(h[:, :, None], u[:, :, None])[:, :, 0],
    "module": lambda x, h, w, u, parts: x @ w.t() + parts(h),
}


@pytest.mark.parametrize("method", ["reconstruct", "iss-gm"])
@pytest.mark.parametrize("way", WRITTEN)
def test_cells_written_in_any_way_are_observed(way, method):
    class Written(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.recurrent, self.head = (
                nn.Parameter(torch.randn(24, 5)),
                nn.Linear(6, 24, False),
                nn.Linear(6, 2),
            )

        def forward(self, x):
            h = c = torch.zeros(len(x), 6, dtype=x.dtype)
            for step in x.unbind(1):
                gates = WRITTEN[way](step, h, self.w, self.recurrent.weight, self.recurrent)
                i, f, g, o = gates.chunk(4, 1)
                c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
                h = torch.sigmoid(o) * torch.tanh(c)
                read.append(h)
            return self.head(h)

    torch.manual_seed(0)
    read = []
    model, x = Written().double(), [torch.randn(4, 7, 5, dtype=torch.float64) for _ in range(3)]
    calibration = reprune.calibrate(model, x, methods=[method])
    read.clear()
    for batch in x:
        read.append(torch.zeros(4, 6, dtype=torch.float64))
        model(batch)
        read.pop()  # The state after the last step is fed back to nothing.
    rows = torch.cat(read).detach().numpy()
    [found] = calibration._evidence.layers.values()
    np.testing.assert_allclose(found.mean, rows.mean(0), rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(found.covariance, np.cov(rows.T, bias=True), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("ways", ["aaa", "aab", "baa", "aca", "aad", "dda", "cab", "eee", "aba"])
def test_readers_that_go_apart_have_moments_of_their_own(ways):
    """Two weights that read the same in some passes (a), and in others something else, nothing, or twice."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(5, 6)
            self.first, self.second = nn.Linear(6, 2), nn.Linear(6, 2)

        def forward(self, x, way):
            out = self.lstm(x)[0]
            total = self.first(out)
            if way == "d":
                return total + self.first(2 * out) + self.second(out)
            if way == "e":
                out.mul_(2.0)  # After the recurrent weight and the first head have read it.
            if way != "c":
                total = total + self.second(torch.tanh(out) if way == "b" else out)
            return total

    torch.manual_seed(0)
    model = Two().double()
    data = [(torch.randn(4, 7, 5, dtype=torch.float64), way) for way in ways]
    structure = trace(model, (data[0][0], "a"))
    seen = {"lstm": [], "first": [], "second": []}
    model.lstm.register_forward_hook(lambda _, args, out: seen["lstm"].append(out[0].detach().clone()))
    for name in ("first", "second"):
        getattr(model, name).register_forward_pre_hook(lambda _, args, name=name: seen[name].append(args[0].clone()))
    with torch.no_grad():
        statistics = observe(model, structure, data, readings=True)
    for tensor, name in (("lstm.weight_hh_l0", "lstm"), ("first.weight", "first"), ("second.weight", "second")):
        rows = torch.cat([part.reshape(-1, 6) for part in seen[name]]).numpy()
        moments = statistics.readings[tensor, 1].merged()
        assert moments.count == len(rows)
        np.testing.assert_allclose(moments.mean, rows.mean(0), rtol=1e-9, atol=1e-13)
        np.testing.assert_allclose(moments.covariance, np.cov(rows.T, bias=True), rtol=1e-8, atol=1e-13)
    own, first, second = (
        statistics.readings[name, 1] for name in ("lstm.weight_hh_l0", "first.weight", "second.weight")
    )
    assert (own is first) == ("d" not in ways)
    assert (first is second) == (set(ways) == {"a"})


def test_responses_of_cells_and_of_what_is_projected_from_them():
    class Projected(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(5, 6, 2, proj_size=4, batch_first=True, bidirectional=True)
            self.head = nn.Linear(8, 2)

        def forward(self, x):
            return self.head(self.lstm(x)[0])

    torch.manual_seed(0)
    model = Projected().double()
    x = [torch.randn(3, 7, 5, dtype=torch.float64) for _ in range(4)]
    structure = trace(model, x[0])
    found, plain = observe(model, structure, x, readings=True), observe(model, structure, x)
    assert len(found) == 8
    for name in structure.layers:
        np.testing.assert_allclose(found[name].mean, plain[name].mean, rtol=1e-10)
        np.testing.assert_allclose(found[name].covariance, plain[name].covariance, rtol=1e-9, atol=1e-14)


def test_the_head_is_refitted_by_least_squares(model, monkeypatch):
    monkeypatch.setattr("reprune.core.folding.compensation.RIDGES", (0.0,))
    plan = reprune.plan(model, list(batches()), ratio=0.4, method=Method("cost", "reconstruction", "least-squares"))
    folded = reprune.mask(model, plan).head
    rows = head_inputs(model)
    stay = np.array([i for i in range(17) if i >= 12 or i % 6 in plan.kept[f"lstm:l1{'_reverse' if i >= 6 else ''}"]])
    # Refitting the head on the kept features to its own dense outputs is the same problem, solved directly.
    target = rows @ model.head.weight.detach().numpy().T + model.head.bias.detach().numpy()
    design = np.column_stack([rows[:, stay], np.ones(len(rows))])
    solution = np.linalg.lstsq(design, target, rcond=None)[0]
    fitted = rows @ folded.weight.detach().numpy().T + folded.bias.detach().numpy()
    np.testing.assert_allclose(fitted, design @ solution, rtol=1e-6, atol=1e-8)
    assert not folded.weight.detach().numpy()[:, np.setdiff1d(np.arange(17), stay)].any()


class Started(nn.Module):
    """A bidirectional layer, from zeros or from a state that is given; the head reads the mean of all steps."""

    def __init__(self, kind, given):
        super().__init__()
        self.rnn, self.head = kind(5, 6, bidirectional=True, batch_first=True), nn.Linear(12, 2)
        self.given = torch.randn(2, 1, 6, dtype=torch.float64) if given else None

    def forward(self, x, lengths):
        start = self.given if self.given is None else self.given.expand(-1, len(x), -1).contiguous()
        start = (start, torch.zeros_like(start)) if start is not None and isinstance(self.rnn, nn.LSTM) else start
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        out, _ = pad_packed_sequence(self.rnn(packed, start)[0], batch_first=True)
        return self.head(out.sum(1) / lengths[:, None])


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_weights_are_refitted_on_the_states_that_they_read(kind, given, monkeypatch):
    """The one before the first step is among them, the one after the last is not: stepped through by cells."""
    monkeypatch.setattr("reprune.core.folding.compensation.RIDGES", (1e-12,))
    torch.manual_seed(0)
    model = Started(kind, given).double().eval()
    plan = reprune.plan(model, list(batches()), ratio=0.5, method=Method("energy", "geometric-median", "least-squares"))
    masked = reprune.mask(model, plan).rnn
    cell_kind = nn.LSTMCell if kind is nn.LSTM else nn.GRUCell
    for direction, suffix in enumerate(("l0", "l0_reverse")):
        cell = cell_kind(5, 6).double()
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(cell, name).data = getattr(model.rnn, f"{name}_{suffix}").data
        read = []
        with torch.no_grad():
            for x, lengths in batches():
                for sequence, length in zip(x, lengths.tolist(), strict=True):
                    steps = sequence[:length].flip(0) if direction else sequence[:length]
                    h = torch.zeros(1, 6, dtype=torch.float64) if model.given is None else model.given[direction]
                    state = (h, torch.zeros_like(h)) if kind is nn.LSTM else h
                    for step in steps:
                        read.append(state[0][0] if kind is nn.LSTM else state[0])
                        state = cell(step[None], state)
        rows, weight = torch.stack(read).numpy(), cell.weight_hh.detach().numpy()
        stay = list(plan.kept[f"rnn:{suffix}"])
        target = rows @ weight.T + cell.bias_hh.detach().numpy()
        design = np.column_stack([rows[:, stay], np.ones(len(rows))])
        fitted = rows @ getattr(masked, f"weight_hh_{suffix}").detach().numpy().T
        fitted += getattr(masked, f"bias_hh_{suffix}").detach().numpy()
        expected = design @ np.linalg.lstsq(design, target, rcond=None)[0]
        np.testing.assert_allclose(fitted, expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("method", ["reconstruct", "iss-gm+reconstruct", "magnitude+mean", "random+reconstruct"])
def test_pruned_equals_masked_with_compensation(model, method):
    plan = reprune.plan(model, list(batches()), ratio=0.5, method=method)
    again = reprune.Plan.from_json(plan.to_json())
    assert again == plan
    assert plan.folds
    small, masked = reprune.apply(model, again), reprune.mask(model, plan)
    for batch in batches(2):
        torch.testing.assert_close(small(*batch), masked(*batch), rtol=0, atol=1e-12)


def test_reconstruction_beats_plain_removal(model):
    def error(method):
        small = reprune.prune(model, list(batches()), ratio=0.5, method=method).model
        with torch.no_grad():
            return sum(float((small(*batch) - model(*batch)).square().sum()) for batch in batches())

    assert error("reconstruct") < 0.5 * error("random+reconstruct")
    assert error("random+reconstruct") < error("random+mean") < error("random")


def test_fold_that_does_not_fit_is_refused(model):
    plan = reprune.plan(model, list(batches()), ratio=0.5)
    text = plan.to_json()
    coefficients = json.loads(text)["folds"][0]["coefficients"]
    for old, new in (
        (coefficients, ""),
        (coefficients, "AAAA"),
        ('"axis": 1', '"axis": 9'),
    ):
        with pytest.raises(reprune.PlanError):
            reprune.Plan.from_json(text.replace(old, new))


def test_importance_of_the_last_consumer_is_what_it_reads(model):
    x, lengths = next(batches(1, size=1))
    consumers = trace(model, (x, lengths)).consumers
    seen = []
    handle = model.head.register_forward_hook(lambda _, args, out: seen.append(args[0].detach()))
    found = output_importance(model, consumers, (x, lengths))
    handle.remove()
    # The head's outputs are the model's own: with one row and signs ±1 the estimate is exact.
    expected = seen[0].square().sum().expand(4)
    torch.testing.assert_close(found["head.weight", 1], expected)
    assert all(weight.grad is None for weight in model.parameters())


def test_importance_estimates_the_jacobian(model):
    """Outputs of a gate weight count by the squared Jacobian of the model's output, summed over rows."""
    x, lengths = next(batches(1, size=3))
    consumers = trace(model, (x, lengths)).consumers
    found = output_importance(model, consumers, (x, lengths), draws=400)
    jacobian = torch.autograd.functional.jacobian(
        lambda weight: torch.func.functional_call(model, {"lstm.weight_hh_l1": weight}, (x, lengths)),
        model.lstm.weight_hh_l1.detach(),
    )
    expected = jacobian.square().sum((0, 1, 3))
    torch.testing.assert_close(found["lstm.weight_hh_l1", 1], expected, rtol=0.5, atol=1e-5)


@pytest.mark.parametrize("packed", [False, True])
def test_kernels_that_have_a_backward_pass_compute_what_they_do_in_evaluation(packed):
    lstm, x = nn.LSTM(3, 4, 2, dropout=0.5).eval(), torch.randn(5, 2, 3)
    x = pack_padded_sequence(x, torch.tensor([5, 3])) if packed else x
    given = []

    class Kernels(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func.__name__ == "lstm":
                given.append(args[5 + packed : 7 + packed])
            return func(*args, **(kwargs or {}))

    wanted = lstm(x)[0]
    with Kernels(), differentiable_kernels():
        torch.testing.assert_close(lstm(x)[0], wanted)
        lstm.train()(x)
    assert given == [(0.0, True), (0.5, True)]  # In training mode, without which cuDNN has no backward pass.


def test_importance_is_that_of_the_whole_pass():
    """Half of the units feed an output that only the first batch asks for: they are the ones to go."""

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = nn.LSTM(3, 8, batch_first=True), nn.Linear(8, 2)

        def forward(self, x, asked):
            return self.head(self.lstm(x)[0]) * asked

    torch.manual_seed(0)
    model = Masked()
    with torch.no_grad():
        model.lstm.weight_hh_l0.zero_()
        model.head.weight.copy_(torch.eye(2).repeat_interleave(4, dim=1))
    asked = [torch.tensor([1.0, 0.0]), *[torch.tensor([0.0, 10.0])] * 5]
    data = [(torch.randn(30, 5, 3), row) for row in asked]
    assert reprune.plan(model, data, ratio=0.5).kept == {"lstm:l0": [4, 5, 6, 7]}
    assert reprune.plan(model, data[:1], ratio=0.5).kept == {"lstm:l0": [0, 1, 2, 3]}


def test_a_model_without_gradient_has_no_importance(model):
    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x, lengths):
            return self.model(x, lengths).argmax(-1)

    decoder, example = Decoder(), next(batches(1))
    assert output_importance(decoder, trace(decoder, example).consumers, example) == {}
    assert reprune.prune(decoder, [example], ratio=0.5).model(*example).shape == (40,)


class TwoHeads(nn.Module):
    """Linear layers on what is not contiguous, which PyTorch computes as a product and a sum."""

    def __init__(self, once):
        super().__init__()
        self.lstm, self.out, self.once = nn.LSTM(3, 6, batch_first=True), nn.Linear(6, 2), once

    def forward(self, x):
        found = self.lstm(x)[0]
        return self.out(found) if self.once else self.out(found) + found @ self.out.weight.T


@pytest.mark.parametrize(("once", "bias"), [(True, "out.bias"), (False, None)])
def test_a_bias_that_is_added_by_itself_takes_offsets_up(once, bias):
    plan = reprune.plan(TwoHeads(once), [torch.randn(5, 4, 3)] * 4, 0.5, method="iss-gm+mean")
    assert {c.tensor: c.bias for c in plan.structure.consumers}["out.weight"] == bias
