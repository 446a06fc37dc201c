"""Distillation: what is compared, against SciPy; what it learns, against least squares; what it leaves alone."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import reprune
from reprune.core.answers.divergence import apart
from reprune.core.errors import StatisticsError
from reprune.torch.calibration.pupil import made_by_sigmoid
from tests.helpers.torch_sealed import sealed


class Tagger(nn.Module):
    """A stacked bidirectional layer with dropout; logits at every step, and the final states."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(5, 8, num_layers=2, bidirectional=True, batch_first=True, dropout=0.5)
        self.head = nn.Linear(16, 3)

    def forward(self, x, state=None):
        out, state = self.lstm(x, state)
        return self.head(out), state


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Tagger()


def batches(count=6, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(16, 7, 5, generator=generator),) for _ in range(count)]


def rows(seed, shape=(2, 5, 4)):
    return np.random.default_rng(seed).normal(size=shape)


def test_numbers_are_compared_as_such_and_as_logits():
    found, wanted = rows(0), rows(1)
    logs = [log_softmax(part.reshape(-1, 4), axis=1) for part in (found, wanted)]
    divergence = np.sum(np.exp(logs[1]) * (logs[1] - logs[0])) / 10
    square = np.mean((found - wanted) ** 2) / np.var(wanted)
    assert math.isclose(float(apart(torch.tensor(found), torch.tensor(wanted))), divergence + square, rel_tol=1e-12)


def test_classes_that_are_ruled_out_do_not_count():
    found, wanted = rows(0), rows(1)
    narrow = apart(torch.tensor(found), torch.tensor(wanted))
    ruled_out = np.full((2, 5, 1), -np.inf)
    wide = apart(*(torch.tensor(np.concatenate([part, ruled_out], axis=2)) for part in (found, wanted)))
    # The mean of the squares is over all classes.
    square = np.mean((found - wanted) ** 2) / np.var(wanted)
    assert math.isclose(float(wide), float(narrow) - square / 5, rel_tol=1e-12)


def test_probabilities_are_compared_by_relative_entropy():
    found, wanted = (np.exp(log_softmax(rows(seed), axis=-1)) for seed in (0, 1))
    expected = rel_entr(wanted, found).sum() / 10
    assert math.isclose(float(apart(torch.tensor(found), torch.tensor(wanted))), expected, rel_tol=1e-9)


def test_independent_probabilities_are_compared_one_by_one():
    found, wanted = (1 / (1 + np.exp(-rows(seed))) for seed in (0, 1))
    expected = (rel_entr(wanted, found) + rel_entr(1 - wanted, 1 - found)).sum() / 10
    value = float(apart(torch.tensor(found), torch.tensor(wanted), chances=True))
    assert math.isclose(value, expected, rel_tol=1e-9)


def test_nothing_is_written_to_the_dense_model(model):
    """It may answer, and train, in another thread meanwhile: not for a moment is a mode of its another one."""
    small = reprune.prune(model, batches(), ratio=0.5, method="magnitude").model
    model.train()
    with sealed(model):
        reprune.distill(small, model, batches(), steps=3)


class Embed(nn.Module):
    """What a speaker verifier answers: rectified numbers of unit length. Nothing makes probabilities of them."""

    def __init__(self, made=lambda x: nn.functional.normalize(x.relu(), dim=1)):
        super().__init__()
        self.lstm, self.linear, self.made = nn.LSTM(8, 24, batch_first=True), nn.Linear(24, 24), made

    def forward(self, x):
        return self.made(self.linear(self.lstm(x)[1][0][-1]))


def test_embeddings_from_0_to_1_are_no_probabilities():
    torch.manual_seed(0)
    dense = Embed().eval()
    for weight in dense.parameters():
        weight.data *= 4
    dense.linear.bias.data -= 1
    data, new = [torch.randn(16, 12, 8) for _ in range(20)], torch.randn(100, 12, 8)
    small = reprune.prune(dense, data, 0.75, method="iss-gm").model
    cosines = []
    for divergence in ("before", None, "cosine", "mse"):
        taught = copy.deepcopy(small)
        if divergence != "before":
            reprune.distill(taught, dense, data, 100, learning_rate=3e-3, divergence=divergence)
        with torch.no_grad():
            cosines.append(float((taught(new) * dense(new)).sum(1).mean()))
    assert min(cosines[1:]) > cosines[0] + 0.01


@pytest.mark.parametrize(
    ("made", "found"),
    [
        (lambda x: x.sigmoid(), [0]),
        (lambda x: x.sigmoid()[:, None].transpose(0, 1), [0]),
        (lambda x: (x, x.sigmoid().clone()), [1]),
        (lambda x: x.sigmoid() * 0.5, []),
        (lambda x: x.relu(), []),
        (lambda x: x * x.sigmoid(), []),
    ],
)
def test_a_sigmoid_is_known_by_what_it_left(made, found):
    model = Embed(made)
    for weight in model.parameters():
        weight.requires_grad_(False)
    assert made_by_sigmoid(model, torch.randn(3, 4, 8), None) == found
    assert not any(weight.requires_grad for weight in model.parameters())


def test_it_learns_the_least_squares_solution(model):
    """With nothing but a linear head free to change, there is one answer."""
    small = reprune.prune(model, batches(), 0.5).model.double()
    dense = copy.deepcopy(model).double()
    data = [(x.double(),) for (x,) in batches()]
    for name, weight in small.named_parameters():
        weight.requires_grad_(name.startswith("head"))
    x = torch.cat([x for (x,) in data])
    with torch.no_grad():
        small.eval(), dense.eval()
        features = small.lstm(x)[0].flatten(0, 1).numpy()
        wanted = dense(x)[0].flatten(0, 1).numpy()
    features = np.concatenate([features, np.ones((len(features), 1))], axis=1)
    best = features @ np.linalg.lstsq(features, wanted, rcond=None)[0]

    reprune.distill(
        small,
        dense,
        [(x,)],
        1500,
        learning_rate=0.02,
        divergence=lambda found, wanted: (found[0] - wanted[0]).square().mean(),
    )
    np.testing.assert_allclose(small(x)[0].detach().flatten(0, 1).numpy(), best, atol=1e-3)


def test_it_comes_closer_on_inputs_it_has_not_seen(model):
    result = reprune.prune(model, batches(), 0.5)
    before = copy.deepcopy(result.model)
    said = []
    assert (
        reprune.distill(result.model, model, batches(), 200, progress=lambda *line: said.append(line)) is result.model
    )
    (new,) = batches(1, seed=9)
    model.eval(), before.eval(), result.model.eval()
    with torch.no_grad():
        near, far = (apart(small(*new)[0], model(*new)[0]) for small in (result.model, before))
    assert near < 0.5 * far
    assert [step for step, _ in said] == list(range(1, 201))
    assert said[-1][1] < 0.5 * said[0][1]


def test_it_leaves_alone_what_it_should(model):
    model.train()
    small = reprune.prune(model, batches(), 0.5).model
    small.lstm.requires_grad_(False)
    frozen = copy.deepcopy(small.lstm.state_dict())
    dense, dropout = copy.deepcopy(model.state_dict()), [m.dropout for m in small.modules() if isinstance(m, nn.LSTM)]
    reprune.distill(small, model, batches(), 3)
    assert all(torch.equal(value, dense[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(value, frozen[name]) for name, value in small.lstm.state_dict().items())
    assert model.training
    assert all(module.training for module in small.modules())
    assert [m.dropout for m in small.modules() if isinstance(m, nn.LSTM)] == dropout
    assert all(weight.grad is None for weight in small.parameters())


def test_dropout_is_off(model):
    """A model that is compared with itself has nothing to learn."""
    said = []
    same = copy.deepcopy(model)
    reprune.distill(same, model, batches(), 2, learning_rate=0.0, progress=lambda _, far: said.append(far))
    assert said == pytest.approx([0, 0], abs=1e-6)


def test_packed_sequences(model):
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.GRU(5, 8, batch_first=True)
            self.head = nn.Linear(8, 3)

        def forward(self, x, lengths):
            packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            return self.head(pad_packed_sequence(self.lstm(packed)[0], batch_first=True)[0]).softmax(-1)

    torch.manual_seed(0)
    dense = Packed()
    data = [(x, torch.randint(1, 8, (16,))) for (x,) in batches()]
    small = reprune.prune(dense, data, 0.5).model
    said = []
    reprune.distill(small, dense, data, 60, learning_rate=0.02, progress=lambda _, far: said.append(far))
    assert np.mean(said[-6:]) < 0.3 * np.mean(said[:2])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batches": iter(batches())}, "gives only one pass: give a list or a data loader"),
        ({"batches": []}, "batches is empty"),
        ({"batches": batches()[0][0]}, "batches is a single Tensor"),
        ({"divergence": "euclid"}, "give one of kl, bce, mse, cosine"),
        ({"steps": 0}, "steps=0 must be a whole number, at least 1"),
        ({"forward": lambda model, batch: model(*batch)[0].argmax(-1)}, "no numbers that could be compared"),
        ({"divergence": lambda found, wanted: found[0].sum() * math.nan}, "became nan at step 1"),
    ],
)
def test_wrong_use_is_told_and_changes_nothing(model, wrong, message):
    small = reprune.prune(model, batches(), 0.5).model
    before = copy.deepcopy(small.state_dict())
    with pytest.raises(StatisticsError, match=message):
        reprune.distill(small, model, **{"batches": batches(), "steps": 5, **wrong})
    assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())
    assert small.training == model.training


def test_what_diverges_is_put_back(model):
    small = reprune.prune(model, batches(), 0.5).model
    before = copy.deepcopy(small.state_dict())
    with pytest.raises(StatisticsError, match="smaller learning_rate than 1e\\+30"):
        reprune.distill(small, model, batches(), 20, learning_rate=1e30)
    assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())


def test_nothing_that_may_change(model):
    small = reprune.prune(model, batches(), 0.5).model.requires_grad_(False)
    with pytest.raises(StatisticsError, match="No weight of Tagger may change"):
        reprune.distill(small, model, batches(), 5)
