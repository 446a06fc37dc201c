from __future__ import annotations

import numpy as np
import pytest
import torch

from reprune.core.errors import StatisticsError
from reprune.core.evidence.evidence import Evidence, LayerEvidence
from reprune.core.evidence.moments import Moments
from reprune.core.evidence.readings import readings
from reprune.core.evidence.widths import readers_of_width, responses_in
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


def moments_of(name, rows):
    moments = Moments(name, rows.shape[1])
    moments.update(rows)
    return moments


def partial(tensor):
    """Layer `a` of 4 units; a consumer reads units 1 and 2 only, each at two positions after one of its own."""
    slot = Slot("w", 0, 5, "reads", (Span(1, "a", 1, 2, 2),))
    structure = Structure({"a": Layer("a", "lstm", 4)}, (slot,), {"w": (5, 3)}, (("a",),))
    return LayerEvidence(structure, {"w": tensor}, "a", None).outgoing


def test_units_that_a_consumer_does_not_read_have_zeros():
    weight = np.arange(1.0, 16.0).reshape(5, 3)
    np.testing.assert_array_equal(partial(weight), [[0] * 6, [4, 5, 6, 7, 8, 9], [10, 11, 12, 13, 14, 15], [0] * 6])


def test_weights_that_are_only_read_stand_for_the_incoming_ones():
    """As of a table that is tied to a decoder; and a layer that nothing reads has no outgoing weights."""
    weight = np.arange(1.0, 13.0).reshape(4, 3)
    for role, outgoing in (("reads", weight), ("own", weight[:, :0])):
        slot = Slot("w", 0, 4, role, (Span(0, "a", 0, 4),))
        structure = Structure({"a": Layer("a", "lstm", 4)}, (slot,), {"w": (4, 3)}, (("a",),))
        layer = LayerEvidence(structure, {"w": weight}, "a", None)
        np.testing.assert_array_equal(layer.incoming, weight)
        np.testing.assert_array_equal(layer.outgoing, outgoing)


def test_sensitivity_sums_over_all_weights_of_a_unit():
    model = stack((4, 3))
    rng = np.random.default_rng(0)
    gradients = {name: rng.normal(size=tensor.shape) for name, tensor in model.tensors.items()}
    product = {name: abs(tensor * gradients[name]) for name, tensor in model.tensors.items()}
    layers = Evidence(model.structure, model.tensors, gradients=gradients).layers
    for unit in range(4):
        own = sum(product[name][unit::4].sum() for name in ("a.w_ih", "a.w_hh"))  # Biases are no weights.
        read = sum(product[name][:, unit].sum() for name in ("a.w_hh", "b.w_ih"))
        np.testing.assert_allclose(layers["a"].sensitivity[unit], own + read)
    # Units 1 and 2 at two positions each, after one of another kind.
    slot = Slot("w", 0, 5, "reads", (Span(0, "b", 0, 1), Span(1, "a", 1, 2, 2)))
    structure = Structure({"a": Layer("a", "lstm", 4)}, (slot,), {"w": (5, 3)}, (("a",),))
    weight = rng.normal(size=(5, 3))
    layer = LayerEvidence(structure, {"w": weight}, "a", None, gradients={"w": np.ones((5, 3))})
    np.testing.assert_allclose(layer.sensitivity, [0, abs(weight[1:3]).sum(), abs(weight[3:]).sum(), 0])
    with pytest.raises(StatisticsError, match="a: this method needs gradients of a loss"):
        _ = model.evidence().layers["a"].sensitivity


def test_a_layer_s_readings_are_those_that_read_all_its_units_alike():
    model = stack((4, 3))
    rows = {name: np.random.default_rng(0).normal(size=(50, size)) for name, size in (("a", 4), ("b", 3))}
    found = readings(model.structure, model.tensors, {name: moments_of(name, part) for name, part in rows.items()}, {})
    layers = Evidence(model.structure, model.tensors, readings=found).layers
    for name, read in (("a", ["a.w_hh", "b.w_ih"]), ("b", ["b.w_hh", "out.weight"])):
        assert [reading.slot.tensor for reading, _ in layers[name].readings] == read
        for _, places in layers[name].readings:
            np.testing.assert_array_equal(places, np.arange(layers[name].units)[:, None])
    layer = model.evidence(rows).layers["b"]
    np.testing.assert_allclose(layer.mean, rows["b"].mean(0))
    np.testing.assert_allclose(layer.covariance, np.cov(rows["b"].T, bias=True))


def test_what_a_width_answers_is_what_its_readers_see():
    """Two widths that are added, and a weight that reads their sum at two positions for each unit."""
    rng, shapes = np.random.default_rng(0), {"first": (7, 2), "second": (7, 2), "part": (2, 2)}
    slots = (
        Slot("first", 0, 7, "reads", (Span(1, "a", 0, 3, 2),)),
        Slot("second", 0, 7, "reads", (Span(0, "b", 0, 3),)),
        Slot("part", 0, 2, "reads", (Span(0, "a", 1, 2),)),
        Slot("first", 1, 2, "own", (Span(0, "b", 0, 2),)),
    )
    layers = {name: Layer(name, "linear", 3) for name in "abc"}
    structure = Structure(layers, slots, shapes, (("c",), ("b", "a")))
    both = readers_of_width(structure, "a")
    assert [reader.slot.tensor for reader in both] == ["second", "first"]
    np.testing.assert_array_equal(both[1].places, [[1, 2], [3, 4], [5, 6]])
    assert readers_of_width(structure, "c") == []
    rows = rng.normal(size=(20, 7)) + 3
    found = responses_in(moments_of("first", rows), "a", both[1])
    answers = np.concatenate([rows[:, 1::2], rows[:, 2::2]])
    assert (found.name, found.size, found.count) == ("a", 3, 40)
    np.testing.assert_allclose(found.mean, answers.mean(0))
    np.testing.assert_allclose(found.covariance, np.cov(answers.T, bias=True))


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
