"""Input units: the columns of an embedding have gates too, count, and are cut out of everything that holds them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reprune.torch as verbs
from reprune.core.budget.cost import CostModel
from reprune.core.errors import RecipeError, UnsupportedModelError
from reprune.core.layers import Structure
from reprune.core.plan import Plan
from reprune.report import render_table
from reprune.torch import Pruner, Result, mask, trace
from reprune.torch.surgery.verify import rehearse
from reprune.torch.tracing.record import record
from reprune.torch.training.neuron_selection import NeuronSelection, settled
from tests.helpers.torch_oracle import check_oracle, converted, prepared, random_plans
from tests.helpers.torch_zoo import CASES
from tests.helpers.torch_zoo.case import Case
from tests.helpers.torch_zoo.sharing import TiedSoftmax

COLUMNS = "embedding:columns"
WORDS = torch.randint(0, 11, (3, 5), generator=torch.Generator().manual_seed(0))


class Tagger(nn.Module):
    """Words → embedding → dropout → two LSTM layers → a head."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6, **options)
        self.dropout = nn.Dropout(0.2)
        self.lstm = nn.LSTM(6, 8, 2, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, words: Tensor) -> Tensor:
        return self.read(self.embedding(words))

    def read(self, values: Tensor) -> Tensor:
        found: Tensor = self.head(self.lstm(self.dropout(values))[0])
        return found


class TwoReaders(Tagger):
    """The columns go into a second recurrent layer, and beside its units into a head."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.GRU(6, 5, batch_first=True)
        self.second = nn.Linear(11, 4)

    def forward(self, words: Tensor) -> Tensor:
        values = self.embedding(words)
        found: Tensor = self.second(torch.cat([self.other(values)[0], values], -1))
        return self.read(values) + found


class Places(Tagger):
    """An embedding of positions and a learned offset are added: one column of all three goes at once."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Embedding(20, 6)
        self.offset = nn.Parameter(torch.randn(6))

    def forward(self, words: Tensor) -> Tensor:
        return self.read(self.embedding(words) + self.places(torch.arange(words.shape[1])) + self.offset)


class TiedBehindProjection(Tagger):
    """The decoder reads a projection that is as wide as the embedding; its own name for the matrix comes first."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 6)
        embedding = self.embedding
        del self.embedding
        self.decoder = nn.Linear(6, 11)
        self.decoder.weight = embedding.weight
        self.embedding = embedding

    def forward(self, words: Tensor) -> Tensor:
        found: Tensor = self.decoder(super().forward(words))
        return found


class Residual(nn.Module):
    """Columns are added to the units of two directions, one after the other: they are no units of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.lstm = nn.LSTM(8, 4, bidirectional=True, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, words: Tensor) -> Tensor:
        values = self.embedding(words)
        found: Tensor = self.head(self.lstm(values)[0] + values)
        return found


class Stacked(nn.Module):
    """The same sum in another way: values and units lie in one tensor first, which needs equal widths."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm, self.head = nn.Embedding(11, 8), nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, words: Tensor) -> Tensor:
        values = self.embedding(words)
        found: Tensor = self.head(torch.stack([values, self.lstm(values)[0]]).sum(0))
        return found


class PartlyTied(Tagger):
    """Four of the columns are units of a small layer as well, the other two go with another embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.small = nn.GRU(3, 4, batch_first=True)
        self.features, self.extra = nn.Embedding(11, 3), nn.Embedding(11, 2)

    def forward(self, words: Tensor) -> Tensor:
        states = self.small(self.features(words))[0]
        return self.read(self.embedding(words) + torch.cat([states, self.extra(words)], -1))


class Written(nn.Module):
    """A cell written by hand, which starts from an embedding of the first word."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.start = nn.Embedding(11, 6), nn.Embedding(11, 8)
        self.incoming, self.recurrent, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, words: Tensor) -> Tensor:
        state = self.start(words[:, 0])
        for value in self.embedding(words).unbind(1):
            state = torch.tanh(self.incoming(value) + self.recurrent(state))
        found: Tensor = self.head(state)
        return found


class Lengths(Tagger):
    """Columns are also squared and summed: zeros in what reads them cannot silence them."""

    def forward(self, words: Tensor) -> Tensor:
        values = self.embedding(words)
        return self.read(values) * values.square().sum(-1, keepdim=True)


class Sized(Tagger):
    """The model's own code asks for the embedding's width."""

    def forward(self, words: Tensor) -> Tensor:
        return self.read(self.embedding(words).reshape(*words.shape, self.embedding.embedding_dim))


class Returned(Tagger):
    def forward(self, words: Tensor) -> Any:
        return super().forward(words), self.embedding(words)


class Cut(Tagger):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 4)

    def forward(self, words: Tensor) -> Tensor:
        found: Tensor = self.first(self.embedding(words)[..., :2])
        return super().forward(words) + found


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm, self.head = nn.EmbeddingBag(11, 6), nn.LSTM(6, 8), nn.Linear(8, 4)

    def forward(self, words: Tensor) -> Tensor:
        found: Tensor = self.head(self.lstm(self.embedding(words).unsqueeze(0))[0])
        return found


def structure_of(model: nn.Module) -> Structure:
    return rehearse(record(model, WORDS, inputs=True), model, WORDS)


def made(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().double().eval()


@pytest.mark.parametrize(
    ("make", "units"),
    [
        (Tagger, {COLUMNS: 6}),
        (lambda: Tagger(padding_idx=0), {COLUMNS: 6}),
        (TwoReaders, {COLUMNS: 6}),
        (Places, {COLUMNS: 6, "places:columns": 6}),
        (TiedSoftmax, {}),
        (TiedBehindProjection, {COLUMNS: 6}),
        (Residual, {}),
        (Stacked, {}),
        (PartlyTied, {"extra:columns": 2, "features:columns": 3}),
        (Written, {COLUMNS: 6}),
        (Lengths, {COLUMNS: 6}),
        (Sized, {COLUMNS: 6}),
        (Bag, {}),
    ],
)
def test_pruned_equals_masked(make: Callable[[], nn.Module], units: dict[str, int]) -> None:
    model = made(make)
    plain, structure = trace(model, WORDS), structure_of(model)
    assert {name: size for name, size in structure.counts().items() if name.endswith(":columns")} == units
    # Hidden units are found as without, and nothing but hidden units without.
    assert plain.counts() == {name: size for name, size in structure.counts().items() if name not in units}
    assert not units or any(
        len(kept) < units[name] for name, kept in random_plans(structure, 1)[0].kept.items() if name in units
    )
    assert set(structure.prunable) == set(structure.layers)
    for plan in random_plans(structure, 4):
        assert Plan.from_json(plan.to_json()) == plan
        check_oracle(model, plan, WORDS)
        # What the cost model promises is what surgery leaves.
        small = verbs.apply(model, plan)
        assert CostModel(structure)("parameters", plan.counts()) == sum(p.numel() for p in small.parameters())
        assert render_table(plan)


def test_columns_taken_by_their_position_are_pieces() -> None:
    """The first two are read by a weight of a written size, which keeps them; the others may go."""
    model = made(Cut)
    structure = structure_of(model)
    assert "first" in str(structure.layers["embedding:columns[0:2]"].pin)
    assert structure.layers["embedding:columns[2:6]"].pin is None
    for plan in random_plans(structure, 2):
        check_oracle(model, plan, WORDS)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Tagger(max_norm=1.0), "max_norm shortens rows"),
        (Returned, "part of what the model returns"),
    ],
)
def test_left_alone(make: Callable[[], nn.Module], reason: str) -> None:
    structure = structure_of(made(make))
    assert reason in str(structure.layers[COLUMNS].pin)
    assert set(structure.prunable) == {"lstm:l0", "lstm:l1"}


def has_embedding(case: Case) -> bool:
    return any(isinstance(module, nn.Embedding) for module in case.build().modules())


@pytest.mark.parametrize("case", [case for case in CASES.values() if has_embedding(case)], ids=str)
def test_every_wiring_that_embeds(case: Case) -> None:
    torch.manual_seed(0)
    model = prepared(case.build().double(), train=False)
    example = converted(case.batch(3, 6), torch.float64)
    plain, structure = (
        rehearse(record(model, example, inputs=embeddings), model, example) for embeddings in (False, True)
    )
    hidden = [name for name, layer in structure.layers.items() if layer.cell != "embedding"]
    assert hidden == list(plain.layers)
    assert [name for name in structure.prunable if name in hidden] == list(plain.prunable)
    if not any(layer.approximate for layer in structure.layers.values()):
        for plan in random_plans(structure, 2):
            check_oracle(model, plan, converted(case.batch(4, 3 if case.steps else 6), torch.float64), case.states)


def test_an_embedding_alone_is_no_recurrent_model() -> None:
    model = nn.Sequential(nn.Embedding(11, 6), nn.Linear(6, 2))
    with pytest.raises(UnsupportedModelError, match="No recurrent layer ran"):
        Pruner(model, WORDS, method="neuron-selection", inputs=True)


def gates_of(pruner: Pruner) -> NeuronSelection:
    assert pruner._work is not None
    assert isinstance(pruner._work.technique, NeuronSelection)
    return pruner._work.technique


@pytest.mark.parametrize("make", [Tagger, TwoReaders, Places])
def test_a_gate_multiplies_its_column(make: Callable[[], nn.Module]) -> None:
    """As if the tables themselves had been multiplied."""
    model = made(make)
    plain = copy.deepcopy(model)
    hidden = ["lstm*", "other*"] if make is TwoReaders else ["lstm*"]
    pruner = Pruner(model, WORDS, method="neuron-selection", schedule="after", inputs=True, exclude=hidden)
    gates = gates_of(pruner)
    with torch.no_grad():
        gates.log_alpha.copy_(torch.tensor([-4.0, -1.0, 0.0, 0.5, 1.5, 4.0]))
        found = model(WORDS)
        factors = settled(gates.log_alpha)
        for name in ("embedding.weight", "places.weight", "offset"):
            if name in dict(plain.named_parameters()):
                plain.get_parameter(name).mul_(factors)
    torch.testing.assert_close(found, plain(WORDS), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("of", ["units", "parameters", "macs"])
def test_what_a_column_costs(of: str) -> None:
    """A unit, 11 + 4·8 parameters and 4·8 MACs per word."""
    model = made(Tagger)
    pruner = Pruner(model, WORDS, ratio=0.1, of=of, method="neuron-selection", inputs=True, exclude=["lstm*"])  # type: ignore[arg-type]
    gates = gates_of(pruner)
    with torch.no_grad():
        gates.log_alpha.copy_(torch.tensor([-90.0, -90, -90, 90, 90, 90]))
    weights = sum(parameter.numel() for parameter in model.parameters())
    macs = 4 * 8 * (6 + 8 + 8 + 8) + 8 * 4
    share = {"units": 3 / 6, "parameters": 3 * (11 + 32) / weights, "macs": 3 * 32 / macs}[of]
    assert float(gates.expected_removed().detach()) == pytest.approx(share, rel=1e-5)
    cost = CostModel(pruner.structure)
    assert cost.layer_macs(COLUMNS, pruner.structure.counts()) == 0
    assert cost.layer_parameters(COLUMNS, pruner.structure.counts()) == 66


def train(
    model: nn.Module, schedule: str, pruner: Pruner | None = None, steps: range = range(12), **options: Any
) -> tuple[Pruner, torch.optim.Optimizer]:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    pruner = pruner or Pruner(
        model,
        WORDS,
        ratio=0.5,
        method="neuron-selection",
        schedule=schedule,
        optimizer=optimizer,
        total_steps=12,
        inputs=True,
        **options,
    )
    for step in steps:
        torch.manual_seed(step)
        words = torch.randint(0, 11, (4, 6))
        optimizer.zero_grad()
        ((model(words) - 1.0).square().mean() + pruner.loss()).backward()
        optimizer.step()
        pruner.step()
    return pruner, optimizer


@pytest.mark.parametrize("schedule", ["after", "soft:4", "fractional:4", "gradual:4"])
@pytest.mark.parametrize("make", [Tagger, Places, TiedBehindProjection, Lengths])
def test_ends_in_the_masked_last_state(make: Callable[[], nn.Module], schedule: str, tmp_path: Path) -> None:
    model = made(make).train()
    dense = made(make)
    pruner, optimizer = train(model, schedule)
    small = pruner.finish().eval()
    model.eval()
    plan = pruner.plan
    assert plan is not None
    width = len(plan.kept[COLUMNS])
    assert sum(plan.counts().values()) == sum(plan.structure.counts().values()) // 2
    embedding = small.get_submodule("embedding")
    assert isinstance(embedding, nn.Embedding)
    assert embedding.embedding_dim == width
    assert embedding.weight.shape == (11, width)
    assert small.get_parameter("lstm.weight_ih_l0").shape[1] == width
    words = torch.randint(0, 11, (2, 9))
    masked = model if schedule.startswith("gradual") else mask(model, plan)
    torch.testing.assert_close(small(words), masked(words), rtol=1e-10, atol=1e-12)
    if schedule.startswith("gradual"):
        for parameter in model.parameters():
            assert optimizer.state[parameter]["exp_avg"].shape == parameter.shape
    Result(small, plan).save(tmp_path)
    torch.testing.assert_close(verbs.load(dense, tmp_path)(words), small(words), rtol=1e-12, atol=1e-14)


def test_sparse_gradients() -> None:
    model = made(lambda: Tagger(sparse=True)).train()
    pruner = Pruner(model, WORDS, method="neuron-selection", schedule="after", inputs=True)
    dense = [parameter for name, parameter in model.named_parameters() if name != "embedding.weight"]
    sparse = torch.optim.SparseAdam([model.get_parameter("embedding.weight")])
    optimizers = [sparse, torch.optim.SGD(dense, lr=0.1)]
    for _ in range(3):
        (model(WORDS).square().mean() + pruner.loss()).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        pruner.step()
    small = pruner.finish().eval()
    assert small.get_submodule("embedding").sparse is True
    torch.testing.assert_close(small(WORDS), model.eval()(WORDS), rtol=1e-10, atol=1e-12)


def test_useless_columns_go() -> None:
    """Three columns are read, three are multiplied by zero before anything reads them."""

    class Blind(Tagger):
        seen: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.tensor([1.0, 0, 1, 0, 0, 1]))

        def forward(self, words: Tensor) -> Tensor:
            return self.read(self.embedding(words) * self.seen)

    torch.manual_seed(0)
    model = Blind()
    pruner = Pruner(
        model, WORDS, ratio=0.5, method="neuron-selection", inputs=True, exclude=["lstm*"], schedule="after"
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    goal = torch.randn(11, 4)
    for _ in range(250):
        words = torch.randint(0, 11, (8, 3))
        optimizer.zero_grad()
        (10 * (model(words) - goal[words]).square().mean() + pruner.loss()).backward()
        optimizer.step()
        pruner.step()
    pruner.finish()
    assert pruner.plan is not None
    assert pruner.plan.kept[COLUMNS] == [0, 2, 5]


@pytest.mark.parametrize("schedule", ["soft:4", "gradual:4"])
def test_goes_on_from_a_checkpoint(schedule: str) -> None:
    """With the same weights, gates and sizes as a training that was not interrupted; Adam starts anew in both."""
    model = made(Tagger).train()
    pruner, _ = train(model, schedule, steps=range(6))
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(pruner.state_dict())
    # Lists and tensors only, as `torch.save` keeps them.
    again = made(Tagger).train()
    taken, _ = train(again, schedule, steps=range(0))
    taken.load_state_dict(state)
    again.load_state_dict(weights)
    plans = []
    for trained, its in ((model, pruner), (again, taken)):
        its.optimizers = [torch.optim.Adam(trained.parameters(), lr=1e-2)]
        optimizer = its.optimizers[0]
        for step in range(6, 12):
            torch.manual_seed(step)
            optimizer.zero_grad()
            (trained(torch.randint(0, 11, (4, 6))).square().mean() + its.loss()).backward()
            optimizer.step()
            its.step()
        small = its.finish()
        assert its.plan is not None
        plans.append((dict(its.plan.kept), small.state_dict()))
    assert plans[0][0] == plans[1][0]
    for name, tensor in plans[0][1].items():
        assert torch.equal(tensor, plans[1][1][name]), name
    other = Pruner(made(Tagger), WORDS, method="neuron-selection", schedule=schedule)
    with pytest.raises(RecipeError, match="another scope=, exclude= or inputs="):
        other.load_state_dict(state)


@pytest.mark.parametrize("method", ["iss-gm", "reconstruct", "iss-group-lasso"])
def test_other_methods_refuse(method: str) -> None:
    with pytest.raises(RecipeError, match=f"inputs=True: method='{method}' .* Give method='neuron-selection'"):
        Pruner(made(Tagger), WORDS, method=method, inputs=True)


def test_columns_are_units_only_when_asked_for() -> None:
    pruner = Pruner(made(Tagger), WORDS, method="neuron-selection", schedule="after")
    assert set(pruner.structure.layers) == {"lstm:l0", "lstm:l1"}
    assert pruner.finish().get_parameter("embedding.weight").shape == (11, 6)
