"""What the ragged modules compute: equal sizes as PyTorch's own, uneven ones as a time loop and a masked module."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence

from reprune.torch.ragged.kernels import reversal
from reprune.torch.ragged.modules import RaggedGRU, RaggedLSTM, unroll
from tests.torch.ragged.cases import (
    BATCH,
    FEATURES,
    FORMS,
    KINDS,
    LENGTHS,
    STEPS,
    UNEVEN,
    as_pieces,
    as_sequences,
    assert_all_close,
    data,
    dense,
    gradients,
    ignore,
    initial,
    numpy_reference,
    ragged,
    shrink,
    tensors,
    uneven,
)

# PyTorch says so about its own module too.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Tiny tensors gain nothing from threads, which wait for each other where other tests run beside these."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# Equal sizes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_equal_sizes_compute_what_the_dense_module_computes(kind, layers, bidirectional, form):
    for dtype, bias, with_states in itertools.product([torch.float32, torch.float64], [True, False], [True, False]):
        expected_module = dense(kind, layers, bidirectional, bias=bias, batch_first=form == "batch-first", dtype=dtype)
        module = unroll(expected_module)
        x = data(form, dtype)
        hx = initial(expected_module, form, dtype) if with_states else None
        expected = expected_module(x, hx)
        actual = module(x, hx)
        with module.observe(ignore):
            piecewise = module(x, hx)
        tolerance = 1e-5 if dtype == torch.float32 else 1e-12
        for result in (actual, piecewise):
            assert [t.shape for t in tensors(result)] == [t.shape for t in tensors(expected)]
            assert_all_close(tensors(result), tensors(expected), tolerance)
            assert_all_close(gradients(module, result), gradients(expected_module, expected), tolerance)
        if isinstance(x, PackedSequence):
            assert torch.equal(actual[0].batch_sizes, x.batch_sizes)
            assert actual[0].unsorted_indices is x.unsorted_indices


@pytest.mark.parametrize("form", ["dense", "batch-first", "packed"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_drops_the_same_elements(kind, form):
    expected_module = dense(kind, 3, True, dropout=0.5, batch_first=form == "batch-first", dtype=torch.float64)
    module, x = unroll(expected_module), data(form)
    results = []
    for run in (expected_module, module):
        torch.manual_seed(5)
        results.append(tensors(run(x)))
    torch.manual_seed(5)
    with module.observe(ignore):
        results.append(tensors(module(x)))
    assert_all_close(results[1], results[0], 0)
    assert_all_close(results[2], results[0])
    assert not torch.equal(results[0][0], tensors(module.eval()(x))[0])


def test_dropout_applies_between_uneven_layers():
    module, x = ragged("lstm", [[4], [3]], dropout=1.0), data("dense")
    output, _ = module(x)
    silent, _ = module(torch.randn_like(x))
    torch.testing.assert_close(output, silent)
    assert not torch.equal(*(module.eval()(y)[0] for y in (x, torch.randn_like(x))))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_follows_the_dense_module(dtype):
    expected_module = dense("lstm", 2, True).to(dtype)
    x = torch.randn(STEPS, BATCH, FEATURES, dtype=dtype)
    assert_all_close(tensors(unroll(expected_module)(x)), tensors(expected_module(x)), 0)
    uneven_module = uneven("lstm", 2).to(dtype)
    precise = copy.deepcopy(uneven_module).double()
    assert_all_close([t.double() for t in tensors(uneven_module(x))], tensors(precise(x.double())), 2e-2)


def test_autocast_follows_the_dense_module():
    expected_module = dense("gru", 2)
    x = torch.randn(STEPS, BATCH, FEATURES)
    with torch.autocast("cpu", torch.bfloat16):
        assert_all_close(tensors(unroll(expected_module)(x.bfloat16())), tensors(expected_module(x.bfloat16())), 0)


# Uneven sizes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_uneven_sizes_equal_a_time_loop_and_report_its_responses(kind, directions, form):
    for bias, with_states in itertools.product([True, False], [True, False]):
        module, x = uneven(kind, directions, bias=bias, batch_first=form == "batch-first"), data(form)
        hx = initial(module, form) if with_states else None
        sequences = as_sequences(x, form)
        sizes, out = module.hidden_sizes, module.output_sizes
        h_0, c_0 = [[np.zeros((len(sequences), n)) for layer in nested for n in layer] for nested in (out, sizes)]
        if with_states:
            h_0 = as_pieces(hx[0] if module.mode == "LSTM" else hx, form)
            c_0 = as_pieces(hx[1], form) if module.mode == "LSTM" else c_0
        outputs, h_n, c_n, responses = numpy_reference(module, sequences, h_0, c_0)

        seen = {}
        with module.observe(lambda *report: seen.update({report[0]: report[1:]})):  # noqa: B023
            observed = module(x, hx)
        for output, states in (module(x, hx), observed):
            for actual, expected in zip(as_sequences(output, form), outputs, strict=True):
                np.testing.assert_allclose(actual, expected, atol=1e-12)
            ends = [*states[0], *states[1]] if module.mode == "LSTM" else states
            expected_ends = [*h_n, *c_n] if module.mode == "LSTM" else h_n
            for actual, expected in zip(ends, expected_ends, strict=True):
                wanted = expected[0] if form == "unbatched" else expected
                np.testing.assert_allclose(actual.detach().numpy(), wanted, atol=1e-12)
        check_reports(module, x, form, seen, responses, h_0, h_n)


def check_reports(module, x, form, seen, responses, h_0, h_n):
    assert set(seen) == set(responses)
    for name, (_, response, start, end) in seen.items():
        if isinstance(x, PackedSequence):
            assert response.shape[0] == sum(LENGTHS[form])
            actual = as_sequences(x._replace(data=response), form)
            order = x.sorted_indices if x.sorted_indices is not None else torch.arange(BATCH)
        else:
            actual, order = as_sequences(response, "dense"), torch.arange(response.shape[1])
        for a, b in zip(actual, responses[name], strict=True):
            np.testing.assert_allclose(a, b, atol=1e-12)
        layer, direction = int(name[1]), int("reverse" in name)
        piece = layer * module.num_directions + direction
        np.testing.assert_array_equal(start, h_0[piece][order.numpy()])
        np.testing.assert_allclose(end.detach(), h_n[piece][order.numpy()], atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn-tanh", "rnn-relu"])
def test_uneven_sizes_equal_the_masked_dense_module(kind, bidirectional, form):
    model = dense(kind, 3, bidirectional, dtype=torch.float64)
    kept = [[0, 2], [1, 2, 3], [3], [0, 1, 2, 3], [0, 1], [1, 3]] if bidirectional else [[0, 2], [1, 2, 3], [3]]
    small, index = shrink(model, kept)
    small.accept_full_states([4] * len(kept), kept)
    model.batch_first = small.batch_first = form == "batch-first"
    x, hx = data(form), initial(model, form)
    (full_output, full_states), (output, states) = model(x, hx), small(x, hx)
    last = kept[-1] if not bidirectional else kept[-2] + [4 + unit for unit in kept[-1]]
    expected = [tensors(full_output)[0][..., last]]
    for state in full_states if kind == "lstm" else [full_states]:
        expected += [piece[..., units] for piece, units in zip(state, kept, strict=True)]
    actual = tensors((output, states))
    assert_all_close(actual, expected)
    names = [name for name, _ in small.named_parameters()]
    full = dict(zip([name for name, _ in model.named_parameters()], gradients(model, expected), strict=True))
    assert_all_close(gradients(small, actual), [full[name][index[name]] for name in names])


def test_gradients_are_those_of_finite_differences():
    module = uneven("lstm-proj", 2)
    x = torch.randn(3, 2, FEATURES, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: tuple(tensors(module(y))), (x,))


def test_states_feed_back():
    module, x = uneven("lstm", 2), data("dense")
    whole, _ = unroll(dense("lstm", dtype=torch.float64))(x)
    one_way = ragged("lstm", [[4], [3]])
    whole, last = one_way(x)
    first, state = one_way(x[:2])
    second, final = one_way(x[2:], state)
    assert_all_close([torch.cat([first, second]), *tensors(final)], [whole, *tensors(last)])
    _, (h_n, _) = module(x)
    assert isinstance(h_n, tuple)
    assert h_n[-1].shape == (BATCH, UNEVEN[2][0][-1][1])


def test_equal_states_may_come_piece_by_piece():
    module, x = unroll(dense("lstm", 2, True, dtype=torch.float64)), data("dense")
    h, c = initial(module, "dense")
    assert_all_close(tensors(module(x, (tuple(h), list(c)))), tensors(module(x, (h, c))), 0)


def test_only_the_unequal_kind_of_state_is_a_tuple():
    module = RaggedLSTM(FEATURES, [[4], [6]], proj_sizes=[[2], [2]])
    _, (h_n, c_n) = module(torch.randn(STEPS, BATCH, FEATURES))
    assert h_n.shape == (2, BATCH, 2)
    assert [tuple(c.shape) for c in c_n] == [(BATCH, 4), (BATCH, 6)]


@pytest.mark.parametrize("lengths", [[1], [5], [4, 4], [6, 4, 1], [9, 7, 7, 2, 1, 1]])
def test_reversal_is_per_sequence_and_its_own_inverse(lengths):
    packed = pack_sequence([torch.arange(length) + 100 * i for i, length in enumerate(lengths)])
    order = reversal(packed.batch_sizes)
    padded, _ = pad_packed_sequence(packed._replace(data=packed.data[order]), batch_first=True)
    for i, length in enumerate(lengths):
        assert padded[i, :length].tolist() == [100 * i + step for step in reversed(range(length))]
    assert torch.equal(order[order], torch.arange(sum(lengths)))


def test_very_long_packed_sequences():
    module = RaggedGRU(2, [[3, 2]])
    packed = pack_sequence([torch.randn(20_000, 2), torch.randn(3, 2)])
    with torch.no_grad():
        output, h_n = module(packed)
    padded, _ = pad_packed_sequence(output)
    torch.testing.assert_close(padded[0, 0, 3:], h_n[1][0])
    torch.testing.assert_close(padded[-1, 0, :3], h_n[0][0])
