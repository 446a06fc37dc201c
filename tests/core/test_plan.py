from __future__ import annotations

import base64
import json
import warnings
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reprune.core.budget.latency import LatencyTable, TimedPart, TimeGrid
from reprune.core.errors import PlanError, PlanWarning
from reprune.core.folding.fold import Fold, Refit
from reprune.core.layers import CarriedState, Extent, Port, SizeAttribute, Slot, Span
from reprune.core.plan import Diagnostics, Plan
from tests.helpers.builders import stack

HUGE = 10**300


def full_plan():
    """A plan with something in every field."""
    structure = stack((4, 3, 3), index_coupled=[["a"], ["b", "c"]], count_coupled=[["b", "c"]], pinned=["a"]).structure
    structure = replace(
        structure,
        sizes=(SizeAttribute("net", ("sizes", 1), Extent(1, (("b", 2),)), 3, 2),),
        outside_states=("c",),
        buffers=("c.bias",),
        states=(CarriedState(Port(("state", 0), 1, 5, ((Span(1, "b", 0, 3),),)), None),),
        kept_states=(Port(("net", "h"), 2, 3, ((Span(0, "b", 0, 3),), (Span(0, "c", 0, 3),)), 0),),
    )
    return Plan(
        structure,
        {"a": [0, 1, 2, 3], "b": [0, 2], "c": [0, 2]},
        "iss-gm",
        0.25,
        "macs",
        Diagnostics({"b": [3.0, 1.5, 2.0], "c": []}, {"b": [1.0, 0.1, 1e-12]}),
        (Fold.of("out.weight", 1, None, np.array([[0.5, -1.0]]), np.array([0.0])),),
        LatencyTable(
            "torch 0",
            1,
            ((1, 7, 5),),
            {"a": 4, "b": 3, "c": 3},
            9.0,
            {"a": 4, "b": 1, "c": 1},
            5.0,
            (TimedPart("b", 0, Extent(4), Extent(0, (("b", 1),))),),
            (TimeGrid("lstm", 1, 7, (4,), (1, 3), ((1.0, 3.0),)),),
            ((1, 1.1), (2, 1.0)),
        ),
        refits=(Refit.of("out.weight", np.array([[0.5, 1.0], [2.0, -1.0]])),),
    )


DOCUMENT = json.loads(full_plan().to_json())


def places(value):
    """Every place in a document, as (container, key)."""
    for key, inner in list(value.items()) if isinstance(value, dict) else list(enumerate(value)):
        yield value, key
        if isinstance(inner, dict | list):
            yield from places(inner)


def changed(path, change):
    document = deepcopy(DOCUMENT)
    if not path:
        return change(document)
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = change(place[path[-1]])
    return document


def put(path, value):
    return changed(path, lambda _: value)


def refused(document):
    with pytest.raises(PlanError) as caught:
        Plan.from_json(json.dumps(document))
    return str(caught.value)


def test_round_trip():
    plan = full_plan()
    assert Plan.from_json(plan.to_json()) == plan
    assert Plan.from_json(plan.to_json().encode()) == plan
    assert Plan.from_json(plan.to_json()).to_json() == plan.to_json()


def test_counts_and_removed():
    plan = full_plan()
    assert plan.counts() == {"a": 4, "b": 2, "c": 2}
    assert plan.removed() == {"a": [], "b": [1], "c": [1]}
    assert repr(plan) == "Plan(iss-gm: 8 of 10 units stay)"
    whole = Plan(plan.structure, {name: list(range(units)) for name, units in plan.structure.counts().items()})
    assert repr(whole) == "Plan(custom: 10 of 10 units stay)"
    assert whole.small_shapes() == plan.structure.shapes


def test_what_is_left_of_tensors():
    plan = full_plan()
    shapes = {"a.w_ih": (16, 5), "b.w_ih": (8, 4), "b.w_hh": (8, 2), "c.w_ih": (8, 2), "c.bias": (8,)}
    assert {name: plan.small_shapes()[name] for name in shapes} == shapes
    rows, columns = plan.stays("b.w_hh", (12, 3))
    assert (rows.tolist(), columns.tolist()) == ([0, 2, 3, 5, 6, 8, 9, 11], [0, 2])
    assert [places.tolist() for places in plan.stays("other", (2, 3))] == [[0, 1], [0, 1, 2]]
    for name, shape in plan.small_shapes().items():
        assert tuple(map(len, plan.stays(name, plan.structure.shapes[name]))) == shape


def test_a_plan_knows_the_weights_it_was_made_from():
    corrected = replace(full_plan(), fitted_to="crc32c:1")
    bare = replace(corrected, folds=(), refits=())
    assert corrected.corrects
    assert replace(corrected, folds=()).corrects
    assert replace(corrected, refits=()).corrects
    assert not bare.corrects
    assert bare.decisions() is bare
    assert corrected.decisions() == replace(bare, folded=True)
    assert corrected.decisions().cut_only() == corrected.cut_only() == replace(bare, fitted_to=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for plan in (corrected, bare):
            plan.check_weights("crc32c:1")
            replace(plan, fitted_to=None).check_weights("crc32c:2")
            plan.cut_only().check_weights("crc32c:2")
    for found in ("crc32c:2", None):
        with pytest.raises(PlanError, match="fitted to other weights"):
            corrected.check_weights(found)
        with pytest.warns(PlanWarning, match="made from other weights"):
            bare.check_weights(found)
    with pytest.raises(PlanError, match="saved with it, not in its text"):
        corrected.decisions().check_weights("crc32c:1")


def timed(units):
    """The plan's latency table, as if it was measured for a model with so many units in the last layer."""
    table = full_plan().latency
    return replace(table, layers={**table.layers, "c": units})


def least(units):
    """A plan of one layer of three units that must keep some, of which the first few stay."""
    structure = stack((3,)).structure
    return lambda number: Plan(
        replace(structure, layers={"a": replace(structure.layers["a"], least=units)}), {"a": list(range(number))}
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: replace(full_plan(), of="flops"), "of='flops' is not one of units, parameters, macs, latency"),
        (lambda: replace(full_plan(), latency=None, of="latency"), "needs the latency table"),
        (lambda: replace(full_plan(), refits=full_plan().refits * 2), "refits must name every tensor once"),
        (lambda: replace(full_plan(), refits=(Refit.of("out.weight", np.ones((2, 3))),)), "does not fit the units"),
        (lambda: replace(full_plan(), refits=(Refit.of("out.weight", np.full((2, 2), np.nan)),)), "NaN"),
        (lambda: replace(full_plan(), refits=(Refit("out.weight", (2, 2), bytes(12)),)), "3 values, expected"),
        (lambda: replace(full_plan(), kept={"a": [0, 1, 2, 3], "b": [np.int64(0)], "c": [np.int64(0)]}), "not a unit"),
        (lambda: replace(full_plan(), kept={"a": [0, 1, 2, 3], "b": [0], "c": [1]}), "must keep the same units"),
        (
            lambda: Plan(stack((3, 3), count_coupled=["ab"]).structure, {"a": [0], "b": [0, 1]}),
            "equal numbers of units: {'a': 1, 'b': 2}",
        ),
        (lambda: replace(full_plan(), diagnostics=Diagnostics({"b": [1.0, np.inf, 2.0]})), "NaN or infinite"),
        (lambda: replace(full_plan(), latency=timed(9)), "measured for a model"),
        (
            lambda: Plan(
                replace(
                    stack((3,)).structure,
                    slots=(Slot("w", 0, 6, "reads", (Span(0, "a", 0, 2, 2), Span(3, "a", 2, 1))),),
                    shapes={"w": (6,)},
                    consumers=(),
                ),
                {"a": [0]},
            ),
            "overlaps",
        ),
        (lambda: Plan(stack((3,)).structure, {"a": [0, 1.0, 2]}), "holds 1.0: not a unit"),
        (lambda: least(2)(1), "keeps 1 of the 2 units that it must"),
        (lambda: least(4)(2), "keeps 2 of the 4 units that it must"),
    ],
)  # fmt: skip
def test_plans_of_parts_that_do_not_fit_are_refused(make, message):
    with pytest.raises(PlanError, match=message):
        make()


def test_plans_of_parts_that_just_fit():
    single = replace(stack((1,)).structure, kept_states=(Port(("h",), 0, 1, ((Span(0, "a", 0, 1),),)),))
    assert Plan(single, {"a": [0]}).counts() == {"a": 1}
    assert least(2)(2).counts() == {"a": 2}
    assert least(4)(3).counts() == {"a": 3}
    assert Plan(stack((3, 3), count_coupled=["ab"]).structure, {"a": [0], "b": [2]}).counts() == {"a": 1, "b": 1}
    # A weight that reads the last three of four units, of which one goes.
    structure = stack((4,)).structure
    *others, reads = structure.slots
    part = replace(structure, slots=(*others, replace(reads, size=3, spans=(Span(0, "a", 1, 3),))))
    part = replace(part, shapes=part.shapes | {"out.weight": (2, 3)})
    assert Plan(part, {"a": [0, 1, 3]}, folds=(Fold.of("out.weight", 1, None, np.ones((1, 2)), np.ones(1)),)).corrects
    # A tensor of another part of the model, in single precision.
    values = np.array([[0.1], [7]], "f4")
    held = replace(full_plan(), refits=(Refit.of("head.weight", values),)).refits[0]
    assert held.array().dtype == np.float32
    np.testing.assert_array_equal(held.array(), values)
    np.testing.assert_array_equal(Refit.of("w", np.array([0.1, 1e300])).array(), [0.1, 1e300])
    assert not held.array().flags.writeable


def test_other_units_may_be_kept():
    plan = full_plan().decisions().with_kept({"b": np.array([1]), "c": (1,)})
    assert not plan.folded
    assert plan.kept == {"a": [0, 1, 2, 3], "b": [1], "c": [1]}
    assert plan.method == "custom"
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"b": [1]}, "must keep the same units"),
        ({"z": [1]}, "kept must name the layers"),
        ({"b": [1.0], "c": [1.0]}, "unit indices"),
        ({"b": 1}, "unit indices"),
        ({"b": [False, True], "c": [False, True]}, "False is no index"),
        ({"a": [0]}, "must stay whole: returned"),
    ],
)
def test_other_units_must_fit(kept, message):
    with pytest.raises(PlanError, match=message):
        full_plan().with_kept(kept)


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ([], "empty"),
        ([0, 3], "not a unit from 0 to 2"),
        ([-1, 0], "not a unit from 0 to 2"),
        ([2, 0], "sorted and without duplicates"),
        ([0, 0], "sorted and without duplicates"),
        ([HUGE], "not a unit"),
        ([0.0], "valid integer"),
        ([True], "valid integer"),
        (["0"], "valid integer"),
        ([None], "valid integer"),
        ([float("nan")], "valid integer"),
        ({"0": 0}, "valid array"),
        (None, "valid array"),
    ],
)
def test_units_that_cannot_be_kept(units, message):
    document = put(("kept", "b"), units)
    document["kept"]["c"] = units
    assert message in refused(document)


STATE = ("structure", "states", 0, "given")  # units of b after one other position
SLOT = ("structure", "slots", 4)  # b.w_ih, rows of b: spans of its four gates


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("format",), "other", "format 'other' version 1"),
        (("version",), 2, "format 'reprune-plan' version 2"),
        (("version",), True, "version"),
        (("version",), 1.0, "version"),
        (("ratio",), 1.0, "ratio=1.0"),
        (("ratio",), -0.5, "ratio=-0.5"),
        (("ratio",), float("nan"), "ratio: Input should be a finite number"),
        (("ratio",), "0.5", "valid number"),
        (("of",), "flops", "of: Input should be"),
        (("method",), None, "method"),
        (("kept",), {"a": [0, 1, 2, 3]}, "kept must name the layers"),
        (("kept", "b"), [1], "must keep the same units"),
        (("structure", "layers", "b", "units"), 0, "with 0 units"),
        (("structure", "layers", "b", "units"), HUGE, "equal numbers of units"),
        (("structure", "layers", "b", "name"), "c", "layer 'b': named 'c'"),
        (("structure", "index_coupled"), [["a"], ["b"]], "every layer exactly once"),
        (("structure", "index_coupled"), [["a"], ["b", "c"], ["b"]], "every layer exactly once"),
        (("structure", "index_coupled"), [["a", "b", "c"]], "equal numbers of units"),
        (("structure", "index_coupled"), [["a"], ["b", "c"], []], "equal numbers of units"),
        (("structure", "count_coupled"), [["b", "z"]], "names 'z'"),
        (("structure", "count_coupled"), [["a", "b"]], "equal numbers of units"),
        (("structure", "outside_states"), ["z"], "names 'z'"),
        (("structure", "buffers"), ["z"], "names 'z'"),
        ((*STATE, "pieces", 0, 0, 1), "z", "names 'z'"),
        ((*STATE, "pieces", 0, 0, 3), HUGE, "outside"),
        ((*STATE, "pieces"), [], "do not fit units"),
        ((*STATE, "pieces"), [[], []], "2 pieces along axis None do not fit units"),
        ((*STATE, "along"), 1, "do not fit units"),
        ((*STATE, "axis"), -1, "none of a tensor"),
        ((*STATE, "along"), -1, "none of a tensor"),
        ((*STATE, "size"), HUGE, "none of a tensor"),
        ((*STATE, "size"), (1 << 24) + 1, "none of a tensor"),
        ((*STATE, "size"), 0, "none of a tensor"),
        ((*STATE, "size"), 3, "leaves the axis"),
        ((*STATE, "pieces", 0, 0, 2), -1, "outside"),
        (("structure", "kept_states", 0, "pieces", 1, 0, 1), "z", "names 'z'"),
        (("structure", "kept_states", 0, "along"), 2, "do not fit units"),
        (("structure", "steps"), 0, "steps=0.0"),
        (("structure", "steps"), float("inf"), "finite"),
        (("structure", "shapes", "b.bias"), [-12], "negative"),
        (("structure", "shapes", "b.bias"), [13], "does not fit the shape"),
        (("structure", "shapes"), {}, "does not fit the shape"),
        ((*SLOT, "axis"), -1, "does not fit the shape"),
        ((*SLOT, "axis"), 2, "does not fit the shape"),
        ((*SLOT, "size"), HUGE, "does not fit the shape"),
        ((*SLOT, "role"), "writes", "role"),
        ((*SLOT, "spans", 0, 0), -1, "outside"),
        ((*SLOT, "spans", 1, 0), 2, "overlaps"),
        ((*SLOT, "spans", 3, 0), 10, "leaves the axis"),
        ((*SLOT, "spans", 0, 1), "z", "names 'z'"),
        ((*SLOT, "spans", 0, 2), 1, "outside"),
        ((*SLOT, "spans", 0, 3), HUGE, "outside"),
        ((*SLOT, "spans", 0, 4), HUGE, "leaves the axis"),
        ((*SLOT, "spans", 0, 4), 0, "outside"),
        ((*SLOT, "tensor"), "b.w_hh", "every axis of a tensor once"),
        (("structure", "consumers", 0, "axis"), 7, "no such slot"),
        (("structure", "contractions", 0, "rows"), -1, "rows"),
        (("structure", "contractions", 0, "rows"), float("inf"), "finite"),
        (("structure", "contractions", 0, "extents", 0, "layers", 0, 0), "z", "names 'z'"),
        (("structure", "contractions", 0, "extents", 0, "fixed"), -3, "no length"),
        (("structure", "sizes", 0, "extent", "layers", 0, 0), "z", "names 'z'"),
        (("structure", "contractions", 0, "extents", 0, "layers", 0, 1), 0, "no length"),
        (("structure", "sizes", 0, "extent", "fixed"), -1, "no length"),
        (("structure", "sizes", 0, "divisor"), 0, "divisor 0"),
        (("structure", "sizes", 0, "times"), 0, "times 0"),
        (("diagnostics", "scores", "b"), [1.0], "1 values for 3 units"),
        (("diagnostics", "scores"), {"z": []}, "names 'z'"),
        (("diagnostics", "spectra", "b", 1), float("nan"), "finite"),
        (("folds", 0, "tensor"), "b.bias", "no such consumer"),
        (("folds", 0, "bias"), "out.bias", "no such consumer"),
        (("folds", 0, "coefficients"), "AAAA", "coefficients"),
        (("folds", 0, "coefficients"), "é", "coefficients"),
        (("folds", 0, "coefficients"), [1.5], "coefficients: Value error, expected base64"),
        (("folds", 0, "offsets"), "", "0 offsets"),
        (("folds", 0, "offsets"), "AAAA!AAAAAAA=", "offsets: Value error"),
        (("folds", 0, "offsets"), base64.b64encode(np.array([np.nan]).tobytes()).decode(), "NaN"),
        (("folds",), DOCUMENT["folds"] * 2, "folded twice"),
    ],
)
def test_contradictions_are_refused_with_their_place(path, value, message):
    assert message in refused(put(path, value))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("ratio",), 0),
        (("structure", "contractions", 0, "rows"), 0),
        (("structure", "contractions", 0, "extents", 0, "fixed"), 0),
        (("structure", "contractions", 0, "extents", 0, "layers"), []),
        (("structure", "steps"), 0.25),
        (("structure", "sizes", 0, "divisor"), 1),
        (("structure", "sizes", 0, "times"), 1),
        (("structure", "shapes"), DOCUMENT["structure"]["shapes"] | {"empty": [0, 2], "scalar": []}),
        ((*STATE, "size"), 1 << 24),
        ((*STATE, "size"), 4),
        ((*STATE, "axis"), 0),
        ((*STATE, "along"), 0),
        ((*STATE,), None),
        (("structure", "kept_states", 0, "axis"), 1),
        (("structure", "kept_states", 0, "pieces"), [[]]),
        (("structure", "outside_states"), []),
        (("diagnostics", "scores"), {"b": []}),
        (("folds",), []),
    ],
)
def test_what_just_fits_is_taken(path, value):
    plan = Plan.from_json(json.dumps(put(path, value)))
    assert Plan.from_json(plan.to_json()) == plan


def test_another_version_is_named_whatever_it_holds():
    for document in ({"format": "reprune-plan", "version": 2, "new": 1}, DOCUMENT | {"version": 2, "new": 1}):
        assert "format 'reprune-plan' version 2, expected 'reprune-plan' version 1" in refused(document)
    assert "Unexpected keyword" in refused(DOCUMENT | {"new": 1})


def test_claimed_sizes_allocate_nothing(monkeypatch):
    # A fold is checked against sizes that the file only claims: they are compared, never counted through.
    document = deepcopy(DOCUMENT)
    structure = document["structure"]
    for name in "bc":
        structure["layers"][name]["units"] = HUGE
    slot = next(slot for slot in structure["slots"] if slot["tensor"] == "out.weight")
    structure["slots"] = [slot | {"size": HUGE, "axis": 0, "spans": [[0, "c", 0, HUGE, 1]]}]
    structure["shapes"] = {"out.weight": [HUGE]}
    structure["consumers"] = [{"tensor": "out.weight", "axis": 0, "bias": None}]
    structure["buffers"] = []
    document["diagnostics"] = {"scores": {}, "spectra": {}}
    document["folds"][0]["axis"] = 0
    assert "2 coefficients, expected" in refused(document)
    # Nor are those of a plan that corrects nothing.
    monkeypatch.setattr(Plan, "removed", lambda _: pytest.fail("counted through"))
    document["folds"], document["refits"], document["latency"] = [], [], None
    assert Plan.from_json(json.dumps(document)).structure.layers["b"].units == HUGE


@pytest.mark.parametrize(
    "path",
    [
        (),
        ("structure",),
        ("structure", "layers", "a"),
        ("structure", "layers", "a", "pin"),
        ("structure", "layers", "a", "pin", "site"),
        ("structure", "slots", 0),
        ("structure", "consumers", 0),
        ("structure", "contractions", 0),
        ("structure", "contractions", 0, "extents", 0),
        ("structure", "sizes", 0),
        ("diagnostics",),
        ("folds", 0),
    ],
)
def test_unknown_fields_are_refused(path):
    assert "unknown: Unexpected keyword" in refused(changed(path, lambda value: {**value, "unknown": 1}))


@pytest.mark.parametrize("path", [("kept",), ("structure",), ("structure", "slots", 0, "spans"), ("diagnostics",)])
def test_missing_fields_are_refused(path):
    document = deepcopy(DOCUMENT)
    place = document
    for key in path[:-1]:
        place = place[key]
    del place[path[-1]]
    assert "Field required" in refused(document)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{",
        "{}",
        "[" * 100_000,
        '{"format":' * 100_000,
        '{"format": "reprune-plan", "version": 1, "kept": ' + "[" * 100_000,
        '{"format": "reprune-plan", "version": ' + "9" * 5000 + "}",
        '{"format": "reprune-plan", "version": 1}',
        "\ud800",
        "\x00",
        b"\xff\xfe",
        full_plan().to_json()[:-3],
        full_plan().to_json() + "x",
    ],
    ids=range(15),
)
def test_text_that_is_no_plan(text):
    with pytest.raises(PlanError):
        Plan.from_json(text)


HOSTILE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 14),
    st.sampled_from([HUGE, -HUGE, 2**63, 2**64, 10**4000]),
    st.floats(),
    st.sampled_from(["", "a", "b", "c", "b.bias", "out.weight", "own", "reads", "units", "\x00", "é"]),
    st.text(max_size=5),
    st.lists(st.integers(-2, 5), max_size=4),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
    st.lists(st.lists(st.integers() | st.text(max_size=1), max_size=5), max_size=2),
)


@st.composite
def damages(draw):
    """The document with one to three places replaced, deleted or repeated."""
    document = deepcopy(DOCUMENT)
    for _ in range(draw(st.integers(1, 3))):
        container, key = draw(st.sampled_from(list(places(document))))
        action = draw(st.sampled_from(["put", "put", "delete", "repeat"]))
        if action == "delete":
            del container[key]
        elif action == "repeat" and isinstance(container, list):
            container.append(container[key])
        else:
            container[key] = draw(HOSTILE)
    return document


@settings(max_examples=300)
@given(damages())
def test_damaged_documents_are_plans_or_plan_errors(document):
    try:
        plan = Plan.from_json(json.dumps(document))
    except PlanError:
        return
    assert Plan.from_json(plan.to_json()) == plan


@settings(max_examples=200)
@given(st.integers(0, len(full_plan().to_json()) - 1), st.binary(max_size=3), st.integers(0, 3))
def test_damaged_bytes_are_plans_or_plan_errors(start, inserted, dropped):
    text = full_plan().to_json().encode()
    try:
        plan = Plan.from_json(text[:start] + inserted + text[start + dropped :])
    except PlanError:
        return
    assert Plan.from_json(plan.to_json()) == plan


@given(st.integers(1, 30), st.integers(1, 30), st.floats(0, 0.999), st.text(), st.data())
def test_any_valid_plan_survives_the_round_trip(first, second, ratio, method, data):
    structure = stack((first, second)).structure
    kept = {
        name: sorted(data.draw(st.sets(st.integers(0, units - 1), min_size=1)))
        for name, units in structure.counts().items()
    }
    finite = st.floats(allow_nan=False, allow_infinity=False)
    scores = {"a": data.draw(st.lists(finite, min_size=first, max_size=first))}
    plan = Plan(structure, kept, method, ratio, "parameters", Diagnostics(scores))
    assert Plan.from_json(plan.to_json()) == plan
