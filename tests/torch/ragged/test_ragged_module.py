"""The ragged modules among other modules: saving, exporting, compiling, converting, initial states, errors."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import pack_padded_sequence

from reprune.core.errors import PlanError, UnsupportedModelError
from reprune.torch.ragged.modules import RaggedGRU, RaggedLSTM, RaggedRNN, StateSelector, fold, unroll
from tests.torch.ragged.cases import (
    BATCH,
    FEATURES,
    KINDS,
    STEPS,
    UNEVEN,
    assert_all_close,
    data,
    dense,
    gradients,
    ignore,
    ragged,
    tensors,
    uneven,
)

# What PyTorch says about its own dense modules too: a slower kernel for projections, and how nn.LSTM keeps its weights.
pytestmark = [
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
    pytest.mark.filterwarnings("ignore:The tensor attributes self.rnn._flat_weights"),
]


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Tiny tensors gain nothing from threads, which wait for each other where other tests run beside these."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# The module as a citizen ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_dict_is_that_of_the_dense_module(kind):
    model = dense(kind, 2, True, dtype=torch.float64)
    sizes, projections = [[4, 4]] * 2, [[3, 3]] * 2 if kind == "lstm-proj" else None
    module, x = ragged(kind, sizes, projections), data("dense")
    assert list(module.state_dict()) == list(model.state_dict())
    module.load_state_dict(model.state_dict())
    assert_all_close(tensors(module(x)), tensors(model(x)), 0)
    assert [[w.shape for w in ws] for ws in module.all_weights] == [[w.shape for w in ws] for ws in model.all_weights]
    other, again = uneven(kind, 2), uneven(kind, 2)
    again.load_state_dict(other.state_dict())
    assert_all_close(tensors(again(x)), tensors(other(x)), 0)


def test_attributes_that_code_reads():
    even, uneven_module = unroll(dense("lstm-proj", 2, True, batch_first=True)), uneven("lstm-proj", 2, dropout=0.25)
    names = ("mode", "input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional")
    for name in (*names, "proj_size"):
        assert getattr(even, name) == getattr(dense("lstm-proj", 2, True, batch_first=True), name)
    assert uneven_module.hidden_size == ((4, 6), (3, 3), (3, 3), (5, 2))
    assert uneven_module.proj_size == ((3, 2), (2, 2), (2, 2), (5, 3))
    assert "hidden_sizes=((4, 6), (3, 3), (3, 3), (5, 2))" in repr(uneven_module)
    assert "dropout=0.25" in repr(uneven_module)
    assert repr(RaggedRNN(2, [[3]], nonlinearity="relu")) == "RaggedRNN(2, hidden_sizes=((3,),), nonlinearity='relu')"


def test_new_weights_are_uniform_within_one_over_the_root_of_the_units():
    torch.manual_seed(0)
    module = RaggedGRU(50, [[400], [100]])
    for name, units in (("weight_hh_l0", 400), ("weight_ih_l1", 100), ("bias_hh_l1", 100)):
        largest = getattr(module, name).abs().max().item() * units**0.5
        assert 0.97 < largest <= 1


def test_copies_are_equal_and_independent():
    module, x = uneven("lstm", 2), data("dense")
    kept = [list(range(size)) for layer in UNEVEN[2][0] for size in layer]
    module.accept_full_states([8] * 8, kept)
    full = (torch.randn(8, BATCH, 8, dtype=torch.float64), torch.randn(8, BATCH, 8, dtype=torch.float64))
    file = io.BytesIO()
    with module.observe(ignore):
        torch.save(module, file)
        copied = copy.deepcopy(module)
    file.seek(0)
    for other in (copied, torch.load(file, weights_only=False)):
        assert other._observers == []
        assert_all_close(tensors(other(x, full)), tensors(module(x, full)), 0)
        before = tensors(module(x))[0]
        other.weight_ih_l0.data.zero_()
        assert torch.equal(tensors(module(x))[0], before)


class Reader(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.rnn = module

    def forward(self, x, h=None):
        output, states = self.rnn(x, h)
        return output.relu(), states


@pytest.mark.parametrize(
    ("kind", "directions", "strict"), [("lstm", 1, False), ("lstm-proj", 2, False), ("gru", 2, True)]
)
def test_export(kind, directions, strict):
    model = Reader(uneven(kind, directions)).eval()
    x = data("dense").detach()
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(model, (x,), dynamic_shapes=({1: batch},), strict=strict).module()
    y = torch.randn(STEPS, 7, FEATURES, dtype=torch.float64)
    assert_all_close(tensors(program(y)), tensors(model(y)))


@pytest.mark.parametrize("folded", [False, True])
def test_export_with_full_states(folded):
    module = RaggedGRU(FEATURES, [[2], [2]] if folded else [[2], [3]])
    module.accept_full_states([4, 4], [[0, 3], [1, 2] if folded else [0, 1, 2]])
    model = Reader(fold(module) if folded else module).eval()
    x, h = torch.randn(STEPS, BATCH, FEATURES), torch.randn(2, BATCH, 4)
    program = torch.export.export(model, (x, h)).module()
    assert_all_close(tensors(program(x, h)), tensors(model(x, h)), 1e-6)


# The compiler hides this warning of its own from users, not from a filter that raises.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("directions", [1, 2])
def test_compile(directions):
    module = uneven("lstm", directions).float()
    kept = [list(range(size)) for layer in module.hidden_sizes for size in layer]
    module.accept_full_states([8] * len(kept), kept)
    compiled = torch.compile(Reader(module), backend="aot_eager")
    for steps in (3, 4, 50):  # A traced kernel would be one graph per length, 50 steps long.
        x = torch.randn(steps, BATCH, FEATURES)
        hx = tuple(torch.randn(len(kept), BATCH, 8) for _ in range(2))
        actual, expected = compiled(x, hx), Reader(module)(x, hx)
        assert_all_close(tensors(actual), tensors(expected), 1e-6)
        assert_all_close(gradients(module, actual), gradients(module, expected), 1e-5)


def test_devices_and_types():
    module = uneven("gru", 2)
    assert next(module.float().parameters()).dtype == torch.float32
    assert module.to("meta").weight_ih_l0.is_meta
    assert RaggedLSTM(2, [[3]], device="meta", dtype=torch.float16).weight_hh_l0.dtype == torch.float16
    module.flatten_parameters()


# unroll and fold -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_fold_undoes_unroll_with_the_same_parameters(kind, bidirectional):
    model = dense(kind, 2, bidirectional, bias=False, batch_first=True, dropout=0.5).eval()
    model.weight_ih_l1.requires_grad_(False)
    module = unroll(model)
    back = fold(module)
    assert type(back) is type(model)
    assert repr(back) == repr(model)
    assert not module.training
    assert not back.training
    for (name, parameter), (other_name, other) in zip(model.named_parameters(), back.named_parameters(), strict=True):
        assert name == other_name
        assert parameter is other is getattr(module, name)
    x = torch.randn(BATCH, STEPS, FEATURES)
    assert_all_close(tensors(back(x)), tensors(model(x)), 0)
    assert_all_close(tensors(copy.deepcopy(back)(x)), tensors(model(x)), 0)


def test_unroll_and_fold_keep_hooks_and_the_random_state():
    model, seen = dense("lstm"), []
    model.register_forward_hook(lambda *_: seen.append("hook"))
    state = torch.get_rng_state()
    back = fold(unroll(model))
    assert torch.equal(torch.get_rng_state(), state)
    unroll(model)(torch.randn(STEPS, FEATURES))
    back(torch.randn(STEPS, FEATURES))
    assert seen == ["hook", "hook"]


def test_a_single_layer_with_dropout_folds_without_a_warning():
    assert fold(RaggedLSTM(2, [[3]], dropout=0.5)).dropout == 0.5


def test_sliced_weights_unroll_to_what_fits_them():
    model = nn.LSTM(FEATURES, 4, 2)
    model.weight_ih_l0, model.weight_hh_l0, model.bias_ih_l0, model.bias_hh_l0, model.weight_ih_l1 = (
        nn.Parameter(torch.randn(*shape)) for shape in ((8, FEATURES), (8, 2), (8,), (8,), (16, 2))
    )
    module = unroll(model)
    assert module.hidden_sizes == ((2,), (4,))
    assert module.weight_ih_l1 is model.weight_ih_l1
    model.weight_hh_l0 = nn.Parameter(torch.randn(8, 3))
    with pytest.raises(UnsupportedModelError, match=r"weight_hh_l0 has shape \(8, 3\).* \(8, 2\)"):
        unroll(model)


@pytest.mark.parametrize(
    "module",
    [
        RaggedLSTM(2, [[3], [4]]),
        RaggedGRU(2, [[3, 4]]),
        RaggedLSTM(2, [[3], [3]], proj_sizes=[[2], [1]]),
        RaggedLSTM(2, [[3]], proj_sizes=[[3]]),
    ],
    ids=["layers", "directions", "projections", "wide-projection"],
)
def test_what_no_dense_module_can_hold_is_not_folded(module):
    assert fold(module) is None


def test_what_computes_something_else_is_not_unrolled():
    class Own(nn.LSTM):
        def forward(self, input, hx=None):
            return super().forward(input.relu(), hx)

    with pytest.raises(UnsupportedModelError, match="forward of its own"):
        unroll(Own(2, 3))
    with pytest.raises(UnsupportedModelError, match=r"weight_hh_l0 .*parametrisation"):
        unroll(weight_norm(nn.LSTM(2, 3), "weight_hh_l0"))


def test_folding_keeps_the_state_selector():
    module = RaggedLSTM(FEATURES, [[2], [2]])
    module.accept_full_states([4, 4], [[0, 3], [1, 2]])
    x, hx = torch.randn(STEPS, BATCH, FEATURES), (torch.randn(2, BATCH, 4), torch.randn(2, BATCH, 4))
    assert_all_close(tensors(fold(module)(x, hx)), tensors(module(x, hx)), 1e-6)
    assert_all_close(tensors(unroll(fold(module))(x, hx)), tensors(module(x, hx)), 1e-6)


# State selection -----------------------------------------------------------------------------------------------------


def echo(module):
    """The module, with a last pre-hook that records the state it is called with."""
    seen = []

    def record(_, args, kwargs):
        seen.append(args[1] if len(args) > 1 else kwargs.get("hx"))

    module.register_forward_pre_hook(record, with_kwargs=True)
    return module, seen


@pytest.mark.parametrize("keyword", [False, True])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("cell", [False, True])
def test_the_selector_takes_the_kept_entries(kind, cell, keyword):
    kept = [[0, 3]] if cell else [[0, 3], [1, 2]]
    small = getattr(nn, kind + "Cell" if cell else kind)(FEATURES, 2, **({} if cell else {"num_layers": 2}))
    small.register_forward_pre_hook(StateSelector([4] * len(kept), kept), with_kwargs=True)
    small, seen = echo(copy.deepcopy(small))
    x = torch.randn(BATCH, FEATURES) if cell else torch.randn(STEPS, BATCH, FEATURES)
    full = torch.randn(BATCH, 4) if cell else torch.randn(2, BATCH, 4)
    expected = full[:, [0, 3]] if cell else torch.stack([full[0][:, [0, 3]], full[1][:, [1, 2]]])
    pruned = torch.randn_like(expected)
    for given, wanted in ((full, expected), (pruned, pruned)):
        hx = (given, given) if kind == "LSTM" else given
        small(x, hx=hx) if keyword else small(x, hx)
        assert_all_close(tensors(seen[-1]), [wanted, wanted] if kind == "LSTM" else [wanted], 0)
    small(x)
    small(x, hx=None)
    assert seen[-2:] == [None, None]


def test_the_selector_serves_unbatched_states_and_pieces():
    selector = StateSelector([4, 4], [[0, 3], [0, 1, 2, 3]])
    h = torch.arange(8.0).reshape(2, 4)
    first, second = selector.select(h, pair=False)
    assert first.tolist() == [0, 3]
    assert second.tolist() == [4, 5, 6, 7]
    again = selector.select((h[0], h[1]), pair=False)
    assert_all_close(again, [first, second], 0)
    assert_all_close(selector.select((first, second), pair=False), [first, second], 0)


def test_the_selector_selects_h_and_c_apart():
    module = nn.LSTM(FEATURES, 3, proj_size=2)
    selector = StateSelector([4], [[0, 3]], cell_full_sizes=[6], cell_kept=[[0, 4, 5]])
    module.register_forward_pre_hook(selector, with_kwargs=True)
    module, seen = echo(module)
    h, c = torch.randn(1, BATCH, 4), torch.randn(1, BATCH, 6)
    module(torch.randn(STEPS, BATCH, FEATURES), (h, c))
    assert_all_close(seen[-1], [h[..., [0, 3]], c[..., [0, 4, 5]]], 0)


@pytest.mark.parametrize(
    ("full", "kept"),
    [([4], [[0], [1]]), ([4], [[4]]), ([4], [[2, 1]]), ([4], [[1, 1]]), ([4], [[-1]]), ([4], [[]]), ([], [])],
)
def test_malformed_selections_are_refused(full, kept):
    with pytest.raises(PlanError, match=r"kept|lists"):
        StateSelector(full, kept)


def test_a_selection_must_fit_the_module():
    with pytest.raises(PlanError, match=r"\(3, 4\).*\(2, 4\)"):
        RaggedGRU(2, [[3, 4]]).accept_full_states([8, 8], [[0, 1], [0, 1, 2, 3]])
    with pytest.raises(PlanError, match="go together"):
        StateSelector([4], [[0]], cell_kept=[[0]])


# Errors --------------------------------------------------------------------------------------------------------------


def packed_of(features):
    return pack_padded_sequence(torch.randn(4, 2, features), [4, 2])


@pytest.mark.parametrize(
    "arguments",
    [
        (torch.randn(FEATURES),),
        (torch.randn(1, 2, 3, FEATURES),),
        (torch.randn(2, 3, FEATURES + 1),),
        (torch.randn(2, 3, FEATURES, dtype=torch.float64),),
        (torch.randn(2, FEATURES - 1),),
        (torch.randn(0, 3, FEATURES),),
        (torch.randn(0, FEATURES),),
        (torch.randn(2, 3, FEATURES), torch.randn(2, 2, 4)),
        (torch.randn(2, 3, FEATURES), torch.randn(1, 3, 4)),
        (torch.randn(2, 3, FEATURES), torch.randn(2, 3, 5)),
        (torch.randn(2, 3, FEATURES), torch.randn(2, 4)),
        (torch.randn(2, FEATURES), torch.randn(2, 1, 4)),
        (packed_of(FEATURES), torch.randn(2, 3, 4)),
    ],
    ids=lambda arguments: "-".join(str(tuple(getattr(a, "data", a).shape)) for a in arguments),
)
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_wrong_arguments_raise_what_the_dense_module_raises(kind, arguments):
    model = dense(kind)
    if len(arguments) > 1 and kind == "lstm":
        arguments = (arguments[0], (arguments[1], arguments[1]))
    with pytest.raises((RuntimeError, ValueError)) as expected:
        model(*arguments)
    with pytest.raises(expected.type) as actual:
        unroll(model)(*arguments)
    assert type(actual.value) is type(expected.value)


def test_errors_name_what_was_expected():
    module = RaggedLSTM(FEATURES, [[4], [3]])
    with pytest.raises(RuntimeError, match="Expected 5, got 7"):
        module(packed_of(7))
    with pytest.raises(RuntimeError, match=r"tuple of 2 tensors of sizes \[\(3, 4\), \(3, 3\)\]"):
        module(torch.randn(STEPS, 3, FEATURES), (torch.randn(2, 3, 4), torch.randn(2, 3, 4)))
    pieces = (torch.randn(3, 4), torch.randn(3, 4))
    with pytest.raises(RuntimeError, match=r"Expected hidden\[0\] sizes \[\(3, 4\), \(3, 3\)\]"):
        module(torch.randn(STEPS, 3, FEATURES), (pieces, pieces))
    with pytest.raises(RuntimeError, match="pair"):
        module(torch.randn(STEPS, 3, FEATURES), torch.randn(1, 3, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_sizes": []}, "hidden_sizes must list"),
        ({"hidden_sizes": [[3], [3, 4]]}, "hidden_sizes must list"),
        ({"hidden_sizes": [[3, 3, 3]]}, "hidden_sizes must list"),
        ({"hidden_sizes": [[0]]}, "hidden_sizes must list"),
        ({"hidden_sizes": [[3]], "proj_sizes": [[2, 2]]}, "nested"),
        ({"hidden_sizes": [[3]], "dropout": 1.5}, "dropout"),
        ({"input_size": 0, "hidden_sizes": [[3]]}, "input_size"),
    ],
)
def test_malformed_sizes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RaggedLSTM(**({"input_size": 2} | options))


def test_an_unknown_nonlinearity_is_refused():
    with pytest.raises(ValueError, match="'tanh' or 'relu'"):
        RaggedRNN(2, [[3]], nonlinearity="gelu")
