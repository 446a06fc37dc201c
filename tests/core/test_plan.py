from __future__ import annotations

import base64
import json
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reprune.core.budget.latency import LatencyTable, TimedPart, TimeGrid
from reprune.core.errors import PlanError
from reprune.core.folding.fold import Fold, Refit
from reprune.core.layers import CarriedState, Extent, Port, SizeAttribute, Span
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
        ((*STATE, "size"), HUGE, "none of a tensor"),
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
        (("folds", 0, "offsets"), base64.b64encode(np.array([np.nan]).tobytes()).decode(), "NaN"),
        (("folds",), DOCUMENT["folds"] * 2, "folded twice"),
    ],
)
def test_contradictions_are_refused_with_their_place(path, value, message):
    assert message in refused(put(path, value))


def test_claimed_sizes_allocate_nothing():
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
