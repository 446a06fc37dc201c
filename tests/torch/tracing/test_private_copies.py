"""Nothing that belongs to the caller is written to: models, batches, random numbers, switches of the process."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import reprune.torch
from reprune.torch.surgery.apply import _borrowed
from reprune.torch.tracing.running.copies import duplicate, fresh
from reprune.torch.tracing.running.randomness import own_randomness
from tests.helpers.torch_sealed import sealed

pytestmark = pytest.mark.filterwarnings("ignore::reprune.core.errors.CalibrationWarning")


class Stream(nn.Module):
    """Keeps its state between calls and draws noise, as it answers."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.attention = nn.LSTM(5, 8, 2, batch_first=True), nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.last: torch.Tensor | None = None
        self.history: list[int] = []
        self.settings = {"noise": 0.1}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.history.append(len(x))
        out = self.lstm(x)[0]
        out = self.attention(out, out, out)[0]
        self.last = out.detach()
        self.settings["noise"] *= 1.0
        x.zero_()
        return self.head(nn.functional.dropout(out, self.settings["noise"]))


def stream() -> Stream:
    torch.manual_seed(0)
    return Stream().train()


def batches(count: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(6, 5, 5, generator=generator) for _ in range(count)]


VERBS: dict[str, Any] = {
    "inspect": lambda model, data: reprune.inspect(model, data),
    "prune": lambda model, data: reprune.prune(model, data, 0.5),
    "plan": lambda model, data: reprune.plan(model, data, 0.5, method="iss-gm"),
    "measure_latency": lambda model, data: reprune.measure_latency(model, data[0]),
    "labels": lambda model, data: reprune.plan(model, data, method="fsdp", labels=lambda x: torch.arange(6) % 2),
    "loss": lambda model, data: reprune.plan(model, data, method="taylor", loss=lambda net, x: net(x).square().mean()),
    "trace": lambda model, data: reprune.torch.trace(model, data[0]),
    "observe": lambda model, data: reprune.torch.observe(model, reprune.torch.trace(model, data[0]), data),
    "mask": lambda model, data: reprune.mask(model, reprune.plan(model, data, method="magnitude")),
    "apply": lambda model, data: reprune.apply(model, reprune.plan(model, data, method="magnitude")),
}


@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_writes_to_the_model_the_batches_or_the_process(verb: str) -> None:
    model, data = stream(), batches()
    before = [(x.clone(), x._version) for x in data]
    states = torch.get_rng_state(), np.random.get_state()[1].tolist()
    with sealed(model):
        VERBS[verb](model, data)
    for x, (values, version) in zip(data, before, strict=True):
        assert torch.equal(x, values)
        assert x._version == version
    # What is timed runs as it is, with the process's own random numbers.
    assert torch.equal(torch.get_rng_state(), states[0]) or verb == "measure_latency"
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.cuda.flash_sdp_enabled()
    assert torch.is_grad_enabled()
    assert torch.is_autocast_cache_enabled()


WRITES: dict[str, Any] = {
    "mode": lambda model: model.eval(),
    "attribute": lambda model: setattr(model.head, "size", 3),
    "forward": lambda model: vars(model.lstm).update(forward=None),
    "hook": lambda model: model.head.register_forward_hook(print),
    "dictionary": lambda model: model.settings.update(noise=0.0),
    "values": lambda model: model.head.weight.data.mul_(2),
    "buffer": lambda model: model.calls.add_(1),
    "gradient": lambda model: model(torch.randn(2, 3, 5)).sum().backward(),
    "list": lambda model: model.history.append(1),
}


@pytest.mark.parametrize("write", WRITES)
def test_the_seal_itself_holds(write: str) -> None:
    model = stream()
    with pytest.raises(AssertionError), sealed(model):
        WRITES[write](model)


PLANS: dict[str, Any] = {
    **{
        f"{ratio}": lambda model, data, ratio=ratio: reprune.plan(model, data, ratio)
        for ratio in (0.25, 0.5, 0.6, 0.75)
    },
    "iss-gm": VERBS["plan"],
    "labels": VERBS["labels"],
    "loss": VERBS["loss"],
    "prune": lambda model, data: reprune.prune(model, data, 0.5).plan,
    "calibrate": lambda model, data: reprune.calibrate(model, data).plan(0.4, "macs"),
    "pruned": lambda model, data: reprune.plan(reprune.prune(model, data, 0.5).model, data, 0.2, method="magnitude"),
}


@pytest.mark.parametrize(
    ("noise", "which", "each"),
    [
        pytest.param(0.0, list(PLANS)[:4], 5, marks=pytest.mark.slow),
        (0.1, list(PLANS)[:4], 1),
        pytest.param(0.1, list(PLANS), 20, marks=pytest.mark.slow),
    ],
    ids=["quiet", "noisy", "every verb"],
)
def test_any_number_of_threads_plan_on_one_model_that_answers_meanwhile(
    noise: float, which: list[str], each: int
) -> None:
    model, data = stream().eval(), batches()
    model.settings["noise"] = noise
    wanted = {name: PLANS[name](model, data).to_json() for name in which}
    question = torch.randn(6, 5, 5)
    found: list[bool] = []
    answers: list[torch.Tensor] = []
    done = threading.Event()

    def plan(name: str) -> None:
        found.extend(PLANS[name](model, data).to_json() == wanted[name] for _ in range(each))

    def serve() -> None:
        with torch.no_grad():
            while not done.wait(0.002):  # What it keeps of every call is copied with it.
                torch.rand(3)
                answers.append(model(question.clone()))

    server = threading.Thread(target=serve)
    threads = [threading.Thread(target=plan, args=(name,)) for name in wanted]
    for thread in (server, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    server.join()
    assert found == [True] * each * len(which)
    assert len(answers) > 20
    assert noise or all(torch.equal(answer, answers[0]) for answer in answers)


class Locked(nn.Module):
    """Holds what Python cannot copy, in itself and in an object of its own."""

    class Cache:
        def __init__(self) -> None:
            self.lock, self.seen = threading.Lock(), {"calls": 0}

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(5, 8, batch_first=True), nn.Linear(8, 3)
        self.lock, self.cache, self.items = threading.Lock(), self.Cache(), [threading.Lock(), 3]
        self.again = self.cache

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with self.lock, self.cache.lock:
            self.cache.seen["calls"] += 1
            return self.head(self.lstm(x)[0])


def test_what_cannot_be_copied_is_shared_and_nothing_else() -> None:
    torch.manual_seed(0)
    model = Locked()
    copied = duplicate(model)
    assert copied.lock is model.lock
    assert copied.cache is copied.again is not model.cache
    assert copied.cache.lock is model.cache.lock
    assert copied.items[0] is model.items[0]
    assert all(one is not two for one, two in zip(copied.parameters(), model.parameters(), strict=True))
    assert all(torch.equal(one, two) for one, two in zip(copied.parameters(), model.parameters(), strict=True))
    assert copied.lstm._flat_weights[0] is copied.lstm.weight_ih_l0
    with sealed(model):
        small = reprune.prune(model, batches(), 0.5).model
    assert model.cache.seen == {"calls": 0}
    assert small(torch.randn(2, 3, 5)).shape == (2, 3, 3)


def test_shared_parameters_use_the_same_memory() -> None:
    class Marked(nn.Parameter):
        """A parameter of a kind of its own."""

    model = Locked()
    model.head.weight.requires_grad_(False)
    marked = nn.Linear(2, 2)
    marked.weight = Marked(torch.ones(2, 2))
    assert type(duplicate(marked, share=True).weight) is Marked
    twin = duplicate(model, share=True)
    for one, two in zip(model.parameters(), twin.parameters(), strict=True):
        assert one is not two
        assert one.data_ptr() == two.data_ptr()
        assert one.requires_grad == two.requires_grad


def test_surgery_copies_no_weight_that_it_cuts() -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).eval()
    plan = reprune.plan(model, [torch.randn(4, 5)], 0.5, scope="all", method="magnitude")
    borrowed = _borrowed(model, plan)
    # All parameters hold units but for the last bias; what is no parameter is small.
    assert list(borrowed) == [id(weight) for weight in list(model.parameters())[:-1]]
    assert [held.data_ptr() for held in borrowed.values()] == [weight.data_ptr() for weight in model.parameters()][:-1]


def test_a_batch_with_what_cannot_be_copied_is_copied_in_part() -> None:
    batch = {"x": torch.zeros(2), "lock": threading.Lock(), "graph": torch.ones(2, requires_grad=True) * 2}
    copied = fresh(batch)
    assert copied["lock"] is batch["lock"]
    assert copied["x"] is not batch["x"]
    assert torch.equal(copied["graph"], batch["graph"])
    assert copied["graph"].is_leaf


def draws() -> list[torch.Tensor]:
    x = torch.ones(5)
    return [
        torch.rand(3), torch.randn(2, 2), torch.randint(9, (4,)), torch.randint(3, 9, (4,)), torch.randperm(6),
        torch.bernoulli(x / 2), torch.multinomial(x, 2), torch.empty(2).uniform_(), torch.normal(0.0, 1.0, (2,)),
        torch.normal(x, x), torch.rand_like(x), torch.randn_like(x), nn.functional.dropout(x), x.clone().exponential_(),
        nn.functional.gumbel_softmax(x), nn.functional.rrelu(-x, training=True), torch.native_dropout(x, 0.5, True)[0],
    ]  # fmt: skip


@pytest.mark.parametrize("inference", [False, True])
def test_random_numbers_are_the_passs_own(inference: bool) -> None:
    torch.manual_seed(0)
    expected, state = draws()[:-1], torch.get_rng_state()
    for seed in (0, 0, 1):
        with torch.inference_mode(inference), own_randomness(seed):
            found = draws()
        same = [torch.equal(one, two) for one, two in zip(found, expected, strict=False)]
        assert all(same) if seed == 0 else not any(same[:2])
    assert torch.equal(torch.get_rng_state(), state)


def test_who_draws_from_generators_of_its_own_is_left_alone() -> None:
    def drawn() -> torch.Tensor:
        return torch.rand(3, generator=torch.Generator().manual_seed(4))

    expected, x = drawn(), torch.ones(4000)
    with own_randomness(7) as own:
        assert torch.equal(drawn(), expected)
        assert torch.equal(torch.ones(2) + 1, torch.full((2,), 2.0))
        assert not own.used
        (half, kept), (none, _), (alone, every) = (
            torch.native_dropout(x, p, train) for p, train in ((0.25, True), (1.0, True), (0.25, False))
        )
        assert own.used
    assert kept.dtype is every.dtype is torch.bool
    assert torch.equal(half, kept / 0.75)
    assert 2900 < int(kept.sum()) < 3100
    assert not none.any()
    assert torch.equal(alone, x)
    assert every.all()
    with own_randomness(7):
        first = torch.rand(3)
        assert not torch.equal(torch.rand(3), first)
    torch.manual_seed(7)
    assert torch.equal(torch.rand(3), first)


class Counted:
    """What cannot be copied, in a user's object that was not made by `__init__`."""

    def __init__(self) -> None:
        self.lock, self.items = threading.Lock(), [1]


class Numbered(float):
    """Another kind of object: it is shared, as nothing tells how to make one."""

    def __new__(cls, value: float) -> Numbered:
        made = super().__new__(cls, value)
        made.lock = threading.Lock()
        return made


def test_copies_of_what_cannot_be_copied_keep_its_shape() -> None:
    counted, numbered, shared = Counted(), Numbered(2.5), torch.zeros(3)
    value = {
        "both": (counted, counted),
        "number": numbered,
        "list": [shared, (shared, threading.Lock())],
        3: threading.Event(),
    }
    copied = fresh(value)
    assert list(copied) == list(value)
    one, two = copied["both"]
    assert type(one) is Counted
    assert one is two is not counted
    assert one.lock is counted.lock
    assert one.items == [1]
    assert one.items is not counted.items
    assert copied["number"] is numbered
    assert copied["list"][0] is copied["list"][1][0] is not shared
    assert type(copied["list"][1]) is tuple
    assert copied[3] is value[3]
    for circle in ([shared], {0: shared}):
        circle.append(circle) if isinstance(circle, list) else circle.update({1: circle})
        copied = fresh(circle)
        assert copied[1] is copied
        assert copied[0] is not shared


def test_batch_cut_from_a_large_tensor_is_copied_alone():
    data = torch.arange(4000.0).reshape(100, 40)
    batch = {"x": data[3:5], "transposed": [data[7:9].T]}
    copied = fresh(batch)
    torch.testing.assert_close(copied, batch)
    assert copied["x"].stride() == batch["x"].stride()
    copied["x"].zero_()
    torch.testing.assert_close(data, torch.arange(4000.0).reshape(100, 40))
    # Both look into one memory here, so that writing into one of them is seen in the other.
    whole = fresh((data, data[:2]))
    whole[0].fill_(7)
    assert (whole[1] == 7).all()
    alone = fresh(data[3:5])
    assert alone.untyped_storage().nbytes() == alone.nbytes == 2 * 40 * 4


def test_pruning_loads_neither_the_compiler_nor_sympy():
    program = (
        "import sys, torch, reprune; from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__(); self.rnn = nn.LSTM(3, 8); self.out = nn.Linear(8, 2)\n"
        "    def forward(self, x): return self.out(self.rnn(x)[0])\n"
        "reprune.prune(Net(), [torch.randn(30, 8, 3) for _ in range(4)])\n"
        "print({'torch._dynamo', 'sympy'} & set(sys.modules) or None)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "None"
