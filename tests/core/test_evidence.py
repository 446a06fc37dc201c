from __future__ import annotations

import numpy as np
import pytest
import torch

from reprune.core.errors import StatisticsError
from reprune.core.evidence.evidence import Evidence, LayerEvidence
from reprune.core.evidence.parts import shown
from reprune.core.layers import Layer, Slot, Span, Structure
from tests.helpers.builders import responses, stack


def test_incoming_weights_are_the_gate_rows_of_each_unit():
    model = stack((4, 3))
    layer, tensors = model.evidence().layers["b"], model.tensors
    for unit in range(3):
        rows = [tensors[f"b.{name}"][gate * 3 + unit] for name in ("w_ih", "w_hh") for gate in range(4)]
        np.testing.assert_array_equal(layer.incoming[unit], np.concatenate(rows))


def test_outgoing_weights_are_the_columns_of_each_unit():
    model = stack((4, 3))
    layer = model.evidence().layers["a"]
    for unit in range(4):
        columns = [model.tensors["a.w_hh"][:, unit], model.tensors["b.w_ih"][:, unit]]
        np.testing.assert_array_equal(layer.outgoing[unit], np.concatenate(columns))


def partial(tensor):
    """Layer `a` of 4 units; a consumer reads units 1 and 2 only, each at two positions after one of its own."""
    slot = Slot("w", 0, 5, "reads", (Span(1, "a", 1, 2, 2),))
    structure = Structure({"a": Layer("a", "lstm", 4)}, (slot,), {"w": (5, 3)}, (("a",),))
    return LayerEvidence(structure, {"w": tensor}, "a", None).outgoing


def test_units_that_a_consumer_does_not_read_have_zeros():
    weight = np.arange(1.0, 16.0).reshape(5, 3)
    np.testing.assert_array_equal(partial(weight), [[0] * 6, [4, 5, 6, 7, 8, 9], [10, 11, 12, 13, 14, 15], [0] * 6])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_torch_weights_lose_their_history_and_gain_precision(dtype):
    weight = torch.full((5, 3), 300.0, dtype=dtype, requires_grad=True)
    outgoing = partial(weight)
    assert not outgoing.requires_grad
    assert outgoing.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert (outgoing**2).sum().item() == 12 * 90_000


@pytest.mark.parametrize("of", [np.asarray, torch.from_numpy])
def test_spectrum_is_sorted_and_never_negative(of):
    spectrum = np.array([3.0, 1.0, 1e-20, 0.0])
    layer = stack((4,)).evidence({"a": of(responses(spectrum))}).layers["a"]
    np.testing.assert_allclose(layer.spectrum, spectrum, rtol=1e-10, atol=1e-15)
    assert np.all(np.diff(layer.spectrum) <= 0)
    assert np.all(layer.spectrum >= 0)


def test_no_statistics_names_the_layer():
    with pytest.raises(StatisticsError, match=r"a: this method needs response statistics"):
        _ = stack((4,)).evidence().layers["a"].spectrum


def test_nan_responses_name_the_layer():
    evidence = stack((4, 3)).evidence({"b": np.full((5, 3), np.nan)})
    with pytest.raises(StatisticsError, match=r"b: its responses hold NaN"):
        _ = evidence.layers["b"].spectrum


def test_evidence_is_gathered_for_every_layer():
    model = stack((4, 3, 2))
    assert list(Evidence(model.structure, model.tensors).layers) == ["a", "b", "c"]


def test_a_batch_is_told_two_levels_deep():
    batch = {"x": (torch.zeros(2, 3), np.zeros(4, "int8")), "more": {"y": [1]}}
    arrays = "a tuple of a tensor (2, 3) of float32, a NumPy array (4,) of int8"
    assert shown(batch) == f"{{'x': {arrays}, 'more': {{'y': a list}}}}"
    assert shown([1]) == "a list of an int"
