"""What is seen at the operations, whatever the modules around them: against layers that are run one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import reprune
from reprune.core.layers import Slot
from reprune.torch.calibration.kernels import run_sequence
from reprune.torch.calibration.labelled import observe_classes
from reprune.torch.calibration.readings import _Features
from reprune.torch.calibration.responses import gather, observe
from reprune.torch.calibration.weights import Part, Weights
from reprune.torch.tracing.record import record, trace
from tests.helpers.torch_oracle import check_oracle

pytestmark = pytest.mark.filterwarnings(
    "ignore::reprune.core.errors.CalibrationWarning", "ignore:.*weight_norm.*is deprecated"
)
DOUBLE = torch.float64


class OwnForward(nn.LSTM):
    """A forward of its own that ends in PyTorch's."""

    def forward(self, x: torch.Tensor, hx: Any = None) -> Any:
        return super().forward(nn.functional.dropout(x, 0.2, self.training) * 2, hx)

    def effective(self) -> nn.LSTM:
        plain = nn.LSTM(5, 6, 2).double()
        plain.load_state_dict(self.state_dict())
        plain.weight_ih_l0.data *= 2
        return plain


class Dropped(nn.Module):
    """The recurrent weight is set before each call, from a parameter of the wrapper."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.LSTM(5, 6, 2)
        self.raw = self.inner._parameters.pop("weight_hh_l1")

    def forward(self, x: torch.Tensor) -> Any:
        self.inner.weight_hh_l1 = nn.functional.dropout(self.raw, 0.5, self.training) * 1.5
        return self.inner(x)

    def effective(self) -> nn.LSTM:
        plain = nn.LSTM(5, 6, 2).double()
        plain.load_state_dict({**self.inner.state_dict(), "weight_hh_l1": self.raw * 1.5})
        return plain


class Handed(nn.LSTM):
    """Calls the kernel itself, with weights that it computes, one more parameter among them."""

    def __init__(self) -> None:
        super().__init__(5, 6, 2)
        self.weight_ih_l0_scale = nn.Parameter(torch.tensor(0.5))

    def weights(self) -> list[torch.Tensor]:
        found = list(self._flat_weights)
        found[0] = found[0] * self.weight_ih_l0_scale.exp()
        found[5] = torch.cat([gate + 0.0 for gate in found[5].chunk(4)])
        return found

    def forward(self, x: torch.Tensor) -> Any:
        zeros = torch.zeros(2, x.size(1), self.hidden_size, dtype=x.dtype)
        return torch._VF.lstm(x, (zeros, zeros), self.weights(), True, 2, 0.0, self.training, False, False)

    def effective(self) -> nn.LSTM:
        plain = nn.LSTM(5, 6, 2).double()
        for name, weight in zip(plain._flat_weights_names, self.weights(), strict=True):
            getattr(plain, name).data = weight.detach()
        return plain


class Normalised(nn.Module):
    """Weight normalisation by a hook that computes the weight before each call."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.utils.weight_norm(nn.LSTM(5, 6, 2), "weight_hh_l0")

    def forward(self, x: torch.Tensor) -> Any:
        return self.inner(x)

    def effective(self) -> nn.LSTM:
        plain = nn.LSTM(5, 6, 2).double()
        for name in plain._flat_weights_names:
            getattr(plain, name).data = getattr(self.inner, name).detach()
        return plain


class Spectral(Normalised):
    """Spectral normalisation, whose power iteration multiplies the weight as well."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.inner = torch.nn.utils.spectral_norm(nn.LSTM(5, 6, 2), "weight_hh_l0")


class Net(nn.Module):
    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.rnn = kind(5, 6, 2) if kind is OwnForward else kind()
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.rnn(x)[0]))


def data(count: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(7, 4, 5, generator=generator, dtype=DOUBLE) for _ in range(count)]


def layer_by_layer(plain: nn.LSTM, x: torch.Tensor) -> list[torch.Tensor]:
    found = []
    for layer in range(2):
        single = nn.LSTM(plain.input_size if layer == 0 else 6, 6).double()
        for name in single._flat_weights_names:
            getattr(single, name).data = getattr(plain, name.replace("l0", f"l{layer}")).data
        x = single(x)[0].detach()
        found.append(x.reshape(-1, 6))
    return found


def assert_moments(found: Any, rows: np.ndarray[Any, Any]) -> None:
    assert found.count == len(rows)
    np.testing.assert_allclose(found.mean, rows.mean(0), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(rows.T, bias=True), rtol=1e-8, atol=1e-13)


@pytest.mark.parametrize("kind", [OwnForward, Dropped, Handed, Normalised, Spectral])
def test_layers_are_observed_with_the_weights_that_are_used(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = Net(kind).double().eval()
    model(data(1)[0])  # Weights that a hook computes are there from the first call on.
    structure = trace(model, data(1)[0])
    lower, upper = (
        torch.cat([layer_by_layer(model.rnn.effective(), x)[layer] for x in data()]).numpy() for layer in (0, 1)
    )
    names = list(structure.layers)
    assert len(names) == 2
    for readings in (False, True):
        statistics = observe(model, structure, data(), readings=readings)
        assert_moments(statistics[names[0]], lower)
        assert_moments(statistics[names[1]], upper)
    assert_moments(statistics.readings["head.weight", 1].merged(), np.tanh(upper))
    with torch.no_grad(), gather(model, structure) as gathered:
        for x in data():
            model(x)
    assert_moments(gathered[names[1]], upper)


@pytest.mark.parametrize("method", ["reconstruct", "iss-gm", "pfa-kl", "magnitude"])
@pytest.mark.parametrize("kind", [OwnForward, Dropped, Handed])
def test_what_inspect_accepts_every_method_prunes(kind: type[nn.Module], method: str) -> None:
    torch.manual_seed(0)
    model = Net(kind).double().eval()
    assert not reprune.inspect(model, data(1)).pinned
    plan = reprune.plan(model, data(), 0.5, method=method)
    assert sum(plan.counts().values()) < 12
    check_oracle(model, plan, data(1)[0])


READERS: dict[str, Any] = {
    "low rank": lambda s, h: h @ (s.w + s.a @ s.b).t(),
    "added": lambda s, h: nn.functional.linear(h, s.w + s.a @ s.b, torch.zeros(4, dtype=h.dtype)),
    "half precision": lambda s, h: nn.functional.linear(h.float(), s.w.float()).double(),
    "stacked": lambda s, h: nn.functional.linear(h, torch.cat([s.w, s.b], 0)),
    "side by side": lambda s, h: torch.cat([torch.ones_like(h)[..., :2], h], -1) @ torch.cat([s.a, s.w], 1).t(),
    "padded": lambda s, h: nn.functional.pad(h, (1, 2)) @ nn.functional.pad(s.w, (1, 2)).t(),
    "vectors": lambda s, h: torch.stack([torch.stack([s.w @ v for v in row.unbind()]) for row in h.unbind()]),
    "dot": lambda s, h: torch.stack([torch.dot(s.w[0], v) for v in h.reshape(-1, 6).unbind()]),
    "einsum": lambda s, h: torch.einsum("tbh,oh->tbo", h, s.w),
    "convolution": lambda s, h: nn.functional.conv1d(h.permute(1, 2, 0), s.w[:, :, None]),
    "transposed": lambda s, h: nn.functional.conv_transpose1d(h.permute(1, 2, 0), s.w.t()[:, :, None]),
    "inference": lambda s, h: s.inside(h),
    "masked": lambda s, h: h @ (s.w * (s.w.abs() > 0.1)).t(),
}


@pytest.mark.parametrize("way", READERS)
def test_readers_are_known_however_their_weight_is_used(way: str) -> None:
    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(5, 6)
            self.w, self.a, self.b = (nn.Parameter(torch.randn(shape)) for shape in ((4, 6), (4, 2), (2, 6)))

        def inside(self, h: torch.Tensor) -> torch.Tensor:
            with torch.inference_mode():
                return nn.functional.linear(h.clone(), self.w).clone()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return READERS[way](self, self.lstm(x)[0])

    torch.manual_seed(0)
    model = Read().double()
    structure = trace(model, data(1)[0])
    with torch.no_grad():
        rows = torch.cat([model.lstm(x)[0].reshape(-1, 6) for x in data()])
    rows = rows.float().double() if way == "half precision" else rows
    observed = observe(model, structure, data(), readings=True)
    moments = observed.readings["w", 1].merged()
    assert moments.count == len(rows)
    tolerance = 1e-5 if way == "half precision" else 1e-9
    np.testing.assert_allclose(moments.mean, rows.mean(0), rtol=tolerance)
    np.testing.assert_allclose(moments.covariance, np.cov(rows.T, bias=True), rtol=tolerance, atol=1e-12)
    assert_moments(observed["lstm:l0"], torch.cat([model.lstm(x)[0].detach().reshape(-1, 6) for x in data()]).numpy())


@pytest.mark.parametrize(("widest", "read"), [(6, True), (5, False)])
def test_consumers_up_to_a_width_are_read(monkeypatch: pytest.MonkeyPatch, widest: int, read: bool) -> None:
    monkeypatch.setattr("reprune.torch.calibration.readings.WIDEST", widest)
    model = Net(OwnForward).double().eval()
    found = observe(model, trace(model, data(1)[0]), data(1), readings=True)
    assert (("head.weight", 1) in found.readings) == read


@pytest.mark.parametrize("nonlinearity", ["relu", "tanh"])
def test_zeros_that_units_answer_count_and_zeros_that_are_read_may_be_padding(nonlinearity: str) -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.RNN(5, 2, nonlinearity=nonlinearity), nn.Linear(2, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.rnn(x)[0])

    torch.manual_seed(0)
    model = Small().double()
    rows = torch.cat([model.rnn(x)[0].detach().reshape(-1, 2) for x in data()]).numpy()
    found = observe(model, trace(model, data(1)[0]), data(), readings=True)
    own, other = (found.readings[name, 1] for name in ("rnn.weight_hh_l0", "head.weight"))
    assert_moments(found["rnn:l0"], rows)
    assert_moments(other.merged(), rows[rows.any(1)])
    assert rows.any(1).all() == (own is other) == (nonlinearity == "tanh")


def test_equal_numbers_are_the_same_wherever_they_lie() -> None:
    x, slot = torch.arange(9.0).view(3, 3), Slot("w", 1, 3, "reads", ())
    one = _Features(x, slot, padded=False)
    others = [_Features(other, slot, padded=False) for other in (x, x.clone(), x.t(), x + 1)]
    assert [one.is_same(other) for other in others] == [True, True, False, False]


class Twice(nn.Module):
    """Two weights read a width, one of them through a rectifier."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.one, self.two = nn.Linear(5, 6), nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.enter(x)
        return self.one(h) + self.two(h.relu())

    def answers(self, x: torch.Tensor) -> torch.Tensor:
        return self.enter(x)


class Sliced(nn.Module):
    """A cell written by hand, whose states are read by the last columns of a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.head = nn.Parameter(torch.randn(6, 11) / 3), nn.Linear(6, 3)

    def states(self, x: torch.Tensor) -> list[torch.Tensor]:
        states = [x.new_zeros(x.shape[1], 6)]
        for step in x:
            states.append((step.sum(-1, keepdim=True) + states[-1] @ self.w[:, 5:].t()).tanh())
        return states

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.states(x)[-1])

    def answers(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat(self.states(x)[:-1])  # What it feeds back.


@pytest.mark.parametrize("kind", [Twice, Sliced])
def test_a_layer_answers_what_one_weight_reads_of_it(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = kind().double()
    structure = record(model, data(1)[0], scope="all" if kind is Twice else "recurrent").structure()
    name = next(iter(structure.layers))
    rows = torch.cat([model.answers(x).detach().reshape(-1, 6) for x in data()]).numpy()
    assert_moments(observe(model, structure, data())[name], rows)


def test_a_weight_that_is_only_multiplied_with_weights_reads_nothing() -> None:
    class Penalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(5, 6), nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            penalty = (self.head.weight @ self.head.weight.t()).sum() + (
                self.lstm.weight_hh_l0.t() @ self.lstm.weight_hh_l0
            ).sum()
            return self.head(self.lstm(x)[0]) + 0 * penalty

    model = Penalised().double()
    observed = observe(model, trace(model, data(1)[0]), data(), readings=True)
    assert observed.readings["head.weight", 1].count == observed.readings["lstm.weight_hh_l0", 1].count == 3 * 28


def test_layers_run_one_by_one_drop_what_the_kernel_drops_between_them() -> None:
    torch.manual_seed(0)
    lstm, x = nn.LSTM(5, 6, 3, dropout=0.5).double(), data(1)[0]
    zeros = torch.zeros(3, 4, 6, dtype=DOUBLE)
    args, seen = (x, (zeros, zeros), lstm._flat_weights, True, 3, 0.5, True, False, False), []
    with torch.no_grad():
        torch.manual_seed(1)
        wanted = torch.lstm(*args)
        torch.manual_seed(1)
        found = run_sequence("lstm", torch.lstm, args, seen.append)
    torch.testing.assert_close(found, wanted)
    assert (seen[1].read == 0).double().mean() > 0.3


def test_half_precision_that_was_cast_before_is_seen() -> None:
    torch.manual_seed(0)
    model = Net(OwnForward).eval()
    batch = data(1)[0].float()
    structure = trace(model, batch)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        model(batch)
        with gather(model, structure) as statistics:
            model(batch)
    assert {moments.count for moments in statistics.values()} == {28}


def test_what_lies_beside_a_weight_is_none_of_it() -> None:
    ones, w = torch.ones(4, 2), torch.randn(4, 6)
    made, weights = torch.cat([ones, w], 1), Weights({"w": w}, [("w", 1)])
    weights.follow("cat", ([ones, w], 1), made)
    assert weights.along(made[:, :2], 1) == []
    assert weights.along(made[:, 1:4], 1) == [Part(("w", 1), first=0, start=1, length=2)]
    assert weights.along(w.flatten(), 0) == []  # Past the end of the first row.


def test_products_of_many_weights_have_rows_of_one_and_columns_of_the_other() -> None:
    one, two = torch.randn(2, 3, 4), torch.randn(2, 4, 5)
    made, weights = torch.bmm(one, two), Weights({"one": one, "two": two}, [("one", 1), ("two", 2)])
    weights.follow("bmm", (one, two), made)
    assert [weights.along(made, dim) for dim in range(3)] == [
        [], [Part(("one", 1), first=0, start=0, length=3)], [Part(("two", 2), first=0, start=0, length=5)]
    ]  # fmt: skip


def test_axes_that_a_product_sums_over_at_once_are_taken_apart() -> None:
    w, rows = torch.randn(2, 3, 2), torch.arange(6)  # Six positions: two times three.
    for axis, apart in ((0, [[0, 3], [1, 4], [2, 5]]), (1, [[0, 1, 2], [3, 4, 5]])):
        (within,) = Weights({"w": w}, [("w", axis)]).within(w.flatten(0, 1), 0)
        assert within.part == Part(("w", axis), first=0, start=0, length=w.shape[axis])
        assert within.apart(rows).reshape(len(apart), -1).tolist() == apart
        # Nothing is taken apart that begins, or ends, in the middle of an axis.
        assert not any(Weights({"w": w}, [("w", axis)]).within(part, 0) for part in (w.flatten()[1:7], w.flatten()[:7]))


def test_an_extensions_kernel_of_the_same_name_is_run_as_it_is() -> None:
    library = torch.library.Library("reprune_tests", "DEF")
    library.define("gru(Tensor x) -> Tensor")
    library.impl("gru", lambda x: x * 2, "CompositeExplicitAutograd")
    model, x = Net(OwnForward).double().eval(), data(1)[0]
    with torch.no_grad(), gather(model, trace(model, x)):
        found = torch.ops.reprune_tests.gru(x)
    assert torch.equal(found, x * 2)


class Packs(nn.LSTM):
    """Packs by itself, out of order."""

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
        return pad_packed_sequence(super().forward(packed)[0])[0]


@pytest.mark.parametrize("where", ["in the layer", "sorted by hand", "in the batch"])
def test_classes_follow_sequences_into_packs(where: str) -> None:
    outside = where == "in the batch"

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = (Packs if where == "in the layer" else nn.LSTM)(5, 6), nn.Linear(6, 2)

        def forward(self, x: Any, lengths: torch.Tensor) -> torch.Tensor:
            if where == "in the layer":
                return self.head(self.lstm(x, lengths).sum(0))
            if where == "sorted by hand":
                order = lengths.argsort(descending=True)
                x = pack_padded_sequence(x[:, order], lengths[order])
            return self.head(pad_packed_sequence(self.lstm(x)[0])[0].sum(0))

    torch.manual_seed(0)
    model, x, lengths = Classifier().double(), data(1)[0], torch.tensor([2, 7, 3, 5])
    batch = (pack_padded_sequence(x, lengths, enforce_sorted=False), lengths) if outside else (x, lengths)
    structure = trace(model, batch)
    classes = torch.tensor([0, 1, 1, 0])
    [found] = observe_classes(model, structure, [batch], lambda _: classes).values()
    plain = nn.LSTM(5, 6).double()
    plain.load_state_dict(model.lstm.state_dict())
    rows = [plain(x[:length, [i]])[0][:, 0].detach().numpy() for i, length in enumerate(lengths.tolist())]
    by_class = [np.concatenate([rows[i] for i in range(4) if classes[i] == c]) for c in (0, 1)]
    every = np.concatenate(by_class)
    within = sum(((values - values.mean(0)) ** 2).sum(0) for values in by_class)
    between = ((every - every.mean(0)) ** 2).sum(0) - within
    np.testing.assert_allclose(found.separability(), between / within, rtol=1e-9)
