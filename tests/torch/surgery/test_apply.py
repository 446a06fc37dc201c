"""What applying a plan does to tensors and modules: against NumPy, and what is copied, refused and replaced."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import reprune
from reprune.core.errors import PlanError
from reprune.core.folding.fold import Fold, Refit
from reprune.core.layers import Consumer, Extent, Layer, SizeAttribute, Slot, Span, Structure
from reprune.core.plan import Plan
from reprune.torch import RaggedLSTM
from reprune.torch.surgery.apply import _fit, apply, mask, replace_module
from reprune.torch.surgery.attention import NarrowAttention
from reprune.torch.surgery.expand import expand
from reprune.torch.surgery.verify import _noisy


def test_what_is_cut_is_not_copied_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the bias of the head stays as it is: of all else the model is made of there is one smaller copy."""
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    plan = reprune.plan(model, [torch.randn(4, 3)], 0.5, method="magnitude", scope="all")
    copied, plain = [], nn.Parameter.__deepcopy__
    monkeypatch.setattr(nn.Parameter, "__deepcopy__", lambda self, memo: copied.append(self) or plain(self, memo))
    small = reprune.apply(model, plan)
    assert len(copied) == 1
    assert copied[0] is model[2].bias
    assert small[0].weight.shape == (4, 3)


class Sizes(nn.Module):
    """Something that has numbers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.both = 6, 21


SHAPES = {
    "a": (6, 3), "w": (4, 8), "w_bias": (4,), "conv": (5, 6, 3), "conv_bias": (5,), "vector": (6,), "vector_bias": (1,),
    "turned": (4, 5), "out": (2, 4), "free": (3, 3), "scale": (6,),
}  # fmt: skip
KEPT = {"a": [0, 2, 3, 5], "b": [0, 1, 3]}
STAY, GONE = [0, 1, 3, 4, 6, 7], [2, 5]  # Of the eight columns that read `a` from the second one on.


class Bare(nn.Module):
    """Tensors alone, one of them in two places."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name, shape in SHAPES.items():
            values = torch.randn(shape, generator=generator).to(dtype)
            if name == "scale":
                self.register_buffer(name, values)
            else:
                self.register_parameter(name, nn.Parameter(values, name != "w"))
        self.sizes, self.register = Sizes(), nn.ParameterDict({"again": self.a})
        self.register_buffer("numbers", torch.arange(6))


def planned(*, direct: bool = False, folded: bool = True) -> Plan:
    a, b = Span(0, "a", 0, 6), Span(0, "b", 0, 4)
    slots = (
        Slot("a", 0, 6, "own", (a,)),
        Slot("numbers", 0, 6, "own", (a,)),
        Slot("w", 1, 8, "reads", (Span(1, "a", 0, 6),)),
        Slot("w", 0, 4, "own", (b,)),
        Slot("w_bias", 0, 4, "own", (b,)),
        Slot("conv", 1, 6, "reads", (a,)),
        Slot("vector", 0, 6, "reads", (a,)),
        Slot("turned", 0, 4, "reads", (b,)),
        Slot("out", 1, 4, "reads", (b,)),
        Slot("scale", 0, 6, "follows", (a,)),
    )
    structure = Structure(
        {"a": Layer("a", "linear", 6, direct=direct), "b": Layer("b", "linear", 4)},
        slots,
        {slot.tensor: SHAPES.get(slot.tensor, (6,)) for slot in slots},
        (("a",), ("b",)),
        consumers=tuple(
            Consumer(slot.tensor, slot.axis, f"{slot.tensor}_bias" if f"{slot.tensor}_bias" in SHAPES else None)
            for slot in slots
            if slot.role == "reads"
        ),
        sizes=(
            SizeAttribute("sizes", ("a",), Extent(0, (("a", 1),))),
            SizeAttribute("sizes", ("both",), Extent(4, (("a", 1), ("b", 2))), times=7, divisor=6),
        ),
    )
    if not folded:
        return Plan(structure, KEPT)
    rng = np.random.default_rng(1)
    folds = tuple(
        Fold.of(tensor, axis, bias, rng.normal(size=(gone, stay)), rng.normal(size=gone))
        for tensor, axis, bias, gone, stay in (
            ("w", 1, "w_bias", 2, 6), ("conv", 1, "conv_bias", 2, 4), ("vector", 0, "vector_bias", 2, 4),
            ("turned", 0, None, 1, 3),
        )
    )  # fmt: skip
    refits = (Refit.of("out", rng.normal(size=(2, 3))), Refit.of("free", rng.normal(size=(3, 3))))
    return Plan(structure, KEPT, folds=folds, refits=refits)


def corrected(plan: Plan, values: dict[str, Any]) -> dict[str, Any]:
    """Dense tensors whose kept columns and biases have taken over what the others carried."""
    values = {name: array.copy() for name, array in values.items()}
    for fold in plan.folds:
        stay, gone = (STAY, GONE) if fold.tensor == "w" else ([0, 2, 3, 5], [1, 4])
        stay, gone = ([0, 1, 3], [2]) if fold.tensor == "turned" else (stay, gone)
        coefficients, offsets = fold.arrays(len(gone), len(stay))
        columns = np.moveaxis(values[fold.tensor], fold.axis, -1)
        lost = columns[..., gone].copy()
        columns[..., stay] += lost @ coefficients
        if fold.bias is not None:
            gain = lost @ offsets
            values[fold.bias] += gain.sum(1) if gain.ndim > 1 else gain
    return values


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_tensors_are_cut_folded_and_refitted_as_the_plan_says(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setattr("reprune.torch.surgery.apply.ROWS", 2)
    model, plan = Bare(dtype), planned()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    small, masked = reprune.apply(model, plan), reprune.mask(model, plan)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    wanted = corrected(plan, {name: before[name].double().numpy() for name in SHAPES})
    wanted["out"][:, KEPT["b"]], wanted["free"][...] = (refit.array() for refit in plan.refits)
    whole = {name: value.copy() for name, value in wanted.items()}
    whole["w"][:, GONE] = whole["conv"][:, [1, 4]] = whole["vector"][[1, 4]] = 0
    whole["out"][:, 2] = whole["turned"][2] = 0
    wanted["w"] = wanted["w"][KEPT["b"]][:, STAY]
    wanted["w_bias"], wanted["out"], wanted["turned"] = (
        wanted["w_bias"][KEPT["b"]], wanted["out"][:, KEPT["b"]], wanted["turned"][KEPT["b"]]
    )  # fmt: skip
    wanted["conv"] = wanted["conv"][:, KEPT["a"]]
    wanted |= {name: wanted[name][KEPT["a"]] for name in ("a", "vector", "scale")}
    tolerance = {"rtol": 1e-12, "atol": 1e-14} if dtype == torch.float64 else {"rtol": 0.03, "atol": 0.03}
    for found, expected in ((small, wanted), (masked, whole)):
        for name, values in expected.items():
            tensor = getattr(found, name)
            assert tensor.dtype == dtype
            np.testing.assert_allclose(tensor.double().detach().numpy(), values, **tolerance)
            assert isinstance(tensor, nn.Parameter) == (name != "scale")
            assert tensor.requires_grad == (name not in ("w", "scale"))
            assert tensor.is_contiguous()
        assert found.register["again"] is found.a
    assert small.numbers.tolist() == KEPT["a"]
    assert (small.sizes.a, small.sizes.both) == (4, (4 + 4 + 2 * 3) * 7 // 6)
    assert (masked.sizes.a, masked.sizes.both, masked.numbers.tolist()) == (6, 21, list(range(6)))


@pytest.mark.parametrize("direct", [False, True])
def test_what_masking_expanding_and_noise_leave(direct: bool) -> None:
    """Units that are read without a weight are silent at their source; noise is in their own weights alone."""
    model, plan = Bare(torch.float64), planned(direct=direct, folded=False)
    masked, noisy, small = reprune.mask(model, plan), _noisy(model, plan), reprune.apply(model, plan)
    wanted = {name: getattr(model, name).detach().clone() for name in SHAPES}
    wanted["w"][:, GONE] = wanted["conv"][:, [1, 4]] = wanted["vector"][[1, 4]] = wanted["out"][:, 2] = 0
    wanted["turned"][2] = 0
    if direct:
        wanted["a"][[1, 4]] = wanted["scale"][[1, 4]] = 0
    changed = {"w": ([2], slice(None)), "w_bias": ([2],)} | ({} if direct else {"a": ([1, 4],)})
    for name, values in wanted.items():
        assert torch.equal(getattr(masked, name), values)
        moved = getattr(noisy, name) != values
        expected = torch.zeros_like(moved)
        if name in changed:
            expected[changed[name]] = True
            if name == "w" and not direct:
                expected[:, GONE] = False  # Nothing reads the noise of other units.
        assert torch.equal(moved, expected), name
    assert torch.equal(noisy.numbers, model.numbers)
    noise = torch.cat([(noisy.w_bias - model.w_bias)[2:3], (noisy.w - model.w)[2, STAY]]).detach()
    assert len(noise.unique()) == len(noise)
    assert 0.3 < noise.std() < 2
    grown = expand(model, small, plan)
    wanted = {name: getattr(model, name).detach().clone() for name in [*SHAPES, "numbers"]}
    for name in ("a", "vector", "scale", "numbers"):
        wanted[name][[1, 4]] = 0
    wanted["w"][:, GONE] = wanted["w"][2] = wanted["w_bias"][2] = wanted["conv"][:, [1, 4]] = wanted["out"][:, 2] = 0
    wanted["turned"][2] = 0
    assert all(torch.equal(getattr(grown, name), values) for name, values in wanted.items())


def without(name: str) -> Any:
    def change(model: Bare) -> None:
        delattr(model, name)

    return change


def reshaped(name: str, *shape: int) -> Any:
    def change(model: Bare) -> None:
        model.register_parameter(name, nn.Parameter(torch.ones(shape)))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("out"), "Bare has no tensor 'out'"),
        (reshaped("out", 2, 5), r"'out' has shape \(2, 5\), the plan was made for \(2, 4\)"),
        (without("conv_bias"), "Bare has no tensor 'conv_bias'"),
        (without("free"), "Bare has no tensor 'free'"),
        (reshaped("free", 4, 3), r"'free' would keep \(4, 3\), the plan holds \(3, 3\)"),
        (without("sizes"), "no module 'sizes'"),
    ],
)
@pytest.mark.parametrize("use", [apply, mask, lambda model, plan: expand(model, model, plan)])
def test_plans_of_other_models_are_refused(use: Any, change: Any, message: str) -> None:
    model = Bare(torch.float32)
    change(model)
    with pytest.raises(PlanError, match=message):
        use(model, planned())


class Mixed(nn.GRU):
    """A recurrent layer with a part whose weight is called like its own."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.weight_ih_mixer = nn.Linear(7, 7)


# A module, shapes of what is left of some of its tensors (None: it is computed elsewhere), and its sizes then.
FITTED: dict[str, tuple[nn.Module, dict[str, tuple[int, ...] | None], dict[str, Any]]] = {
    "linear": (nn.Linear(6, 5), {"weight": (3, 4)}, {"in_features": 4, "out_features": 3}),
    "bilinear": (
        nn.Bilinear(6, 5, 4), {"weight": (2, 3, 1)}, {"in1_features": 3, "in2_features": 1, "out_features": 2}
    ),
    "batch norm": (nn.BatchNorm1d(6), {"weight": (4,)}, {"num_features": 4}),
    "batch norm without weights": (nn.BatchNorm2d(6, affine=False), {"running_mean": (4,)}, {"num_features": 4}),
    "layer norm": (nn.LayerNorm((2, 6)), {"weight": (2, 4)}, {"normalized_shape": (2, 4)}),
    "root mean square": (nn.RMSNorm(6), {"weight": (4,)}, {"normalized_shape": (4,)}),
    "groups": (nn.GroupNorm(4, 8), {"weight": (6,)}, {"num_groups": 3, "num_channels": 6}),
    "one group": (nn.GroupNorm(1, 8), {"weight": (6,)}, {"num_groups": 1, "num_channels": 6}),
    "embedding": (nn.Embedding(7, 6), {"weight": (7, 4)}, {"num_embeddings": 7, "embedding_dim": 4}),
    "slopes": (nn.PReLU(6), {"weight": (4,)}, {"num_parameters": 4}),
    "two axes": (
        nn.Conv2d(6, 8, (3, 2)), {"weight": (5, 4, 1, 2)},
        {"in_channels": 4, "out_channels": 5, "groups": 1, "kernel_size": (1, 2)},
    ),
    "cell": (nn.GRUCell(6, 5), {"weight_ih": (9, 4), "weight_hh": (9, 3)}, {"input_size": 4, "hidden_size": 3}),
    "lstm": (
        nn.LSTM(6, 5), {"weight_ih_l0": (12, 4), "weight_hh_l0": (12, 3), "bias_ih_l0": (12,), "bias_hh_l0": (12,)},
        {"input_size": 4, "hidden_size": 3, "proj_size": 0},
    ),
    "gru": (
        nn.GRU(6, 5, 2, bias=False),
        {"weight_ih_l0": (9, 4), "weight_hh_l0": (9, 3), "weight_ih_l1": (9, 3), "weight_hh_l1": (9, 3)},
        {"input_size": 4, "hidden_size": 3, "proj_size": 0},
    ),
    "rnn": (
        nn.RNN(6, 5, bias=False), {"weight_ih_l0": (3, 6), "weight_hh_l0": (3, 3)}, {"input_size": 6, "hidden_size": 3}
    ),
    "projected": (
        nn.LSTM(6, 5, proj_size=3, bias=False),
        {"weight_ih_l0": (16, 6), "weight_hh_l0": (16, 2), "weight_hr_l0": (2, 4)},
        {"input_size": 6, "hidden_size": 4, "proj_size": 2},
    ),
    "incoming weights from elsewhere": (
        nn.GRU(6, 5), {"weight_ih_l0": None, "bias_ih_l0": (9,), "bias_hh_l0": (9,)},
        {"input_size": 6, "hidden_size": 3},
    ),
    "all weights from elsewhere": (
        nn.RNN(6, 5, bias=False), {"weight_ih_l0": None, "weight_hh_l0": None}, {"input_size": 6, "hidden_size": 5}
    ),
    "a layer with a part of its own": (
        Mixed(6, 5, bias=False), {"weight_ih_l0": (9, 4), "weight_hh_l0": (9, 3)}, {"input_size": 4, "hidden_size": 3}
    ),
    "something else": (nn.Identity(), {}, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", FITTED)
def test_modules_take_their_sizes_from_what_is_left_of_their_weights(name: str) -> None:
    made, shapes, sizes = FITTED[name]
    module = copy.deepcopy(made)
    for tensor, shape in shapes.items():
        if shape is None:
            del module._parameters[tensor]
        elif tensor in module._buffers:
            module._buffers[tensor] = torch.ones(shape)
        else:
            setattr(module, tensor, nn.Parameter(torch.ones(shape)))
    assert _fit(module) is module
    assert {size: getattr(module, size) for size in sizes} == sizes


@pytest.mark.parametrize("shapes", [{"weight_ih_l1": (8, 5)}, {"weight_ih_l0_reverse": (8, 6)}])
def test_layers_of_several_sizes_become_a_ragged_module(shapes: dict[str, tuple[int, ...]]) -> None:
    lstm = nn.LSTM(6, 5, 1 + ("weight_ih_l1" in shapes), bidirectional="weight_ih_l0_reverse" in shapes, bias=False)
    for tensor, shape in shapes.items():
        setattr(lstm, tensor, nn.Parameter(torch.ones(shape)))
        hh = tensor.replace("ih", "hh")
        setattr(lstm, hh, nn.Parameter(torch.ones(8, 2)))
    assert type(_fit(lstm)) is RaggedLSTM


class OwnAttention(nn.MultiheadAttention):
    """Attention with a forward of its own."""

    def forward(self, *args: Any, **options: Any) -> Any:
        return super().forward(*args, **options)


def test_attention_with_pytorchs_own_forward_becomes_a_narrow_one() -> None:
    assert type(_fit(nn.MultiheadAttention(4, 2))) is NarrowAttention
    assert type(_fit(own := OwnAttention(4, 2))) is OwnAttention
    assert _fit(own) is own


def test_a_module_is_replaced_wherever_it_is_held() -> None:
    old, new = nn.Linear(2, 2), nn.Linear(2, 1)
    model, other = nn.Sequential(old, nn.ModuleList([old, nn.Linear(2, 2)])), nn.Linear(2, 2)
    model.listed, model.named, model.count = [other, old], {"old": old, "other": other}, 3
    replace_module(model, old, new)
    assert model[0] is model[1][0] is model.listed[1] is model.named["old"] is new
    assert model.listed[0] is model.named["other"] is other
    assert model[1][1] not in (old, new)
    assert model.count == 3


def test_modules_that_lose_nothing_are_left_alone() -> None:
    """Even where their sizes are not those of their weights, and where they would become something else."""
    model = nn.ModuleDict({
        "enter": nn.Linear(3, 8), "out": nn.Linear(8, 4), "other": nn.Linear(4, 4),
        "attention": nn.MultiheadAttention(4, 2),
    })  # fmt: skip
    model.other.out_features = 7
    span = (Span(0, "enter", 0, 8),)
    slots = (
        Slot("enter.weight", 0, 8, "own", span),
        Slot("enter.bias", 0, 8, "own", span),
        Slot("out.weight", 1, 8, "reads", span),
    )
    shapes = {"enter.weight": (8, 3), "enter.bias": (8,), "out.weight": (4, 8)}
    structure = Structure({"enter": Layer("enter", "linear", 8)}, slots, shapes, (("enter",),))
    small = reprune.apply(model, Plan(structure, {"enter": [1, 2, 5]}))
    assert (small.enter.out_features, small.out.in_features, small.out.out_features) == (3, 3, 4)
    assert small.other.out_features == 7
    assert type(small.attention) is nn.MultiheadAttention
