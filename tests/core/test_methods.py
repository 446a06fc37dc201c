from __future__ import annotations

import pytest

from reprune.core.allocation import ALLOCATIONS, Uniform
from reprune.core.criteria import CRITERIA, IssNorm
from reprune.core.errors import RepruneError
from reprune.core.methods import METHODS, TRAINING_METHODS, Method, check_training_method, get_method


@pytest.mark.parametrize("name", METHODS)
def test_every_name_resolves(name):
    allocation, criterion = get_method(name).resolve()
    assert type(allocation) in ALLOCATIONS.values()
    assert type(criterion) in CRITERIA.values()


def test_what_needs_responses():
    assert {name for name, kind in ALLOCATIONS.items() if kind.needs_statistics} == {"energy", "kl", "measured"}
    assert {name for name, kind in ALLOCATIONS.items() if kind.per_cost} == {"cost", "measured"}
    assert METHODS["iss-gm"].needs_statistics
    assert not METHODS["magnitude"].needs_statistics
    assert not METHODS["random"].needs_statistics


def test_what_else_a_method_needs_is_what_its_criterion_and_its_compensation_do():
    assert {name for name, method in METHODS.items() if method.needs_labels} == {"class-separability", "fsdp"}
    assert {name for name, method in METHODS.items() if method.needs_loss} == {"taylor"}
    assert {name for name, method in METHODS.items() if method.needs_readings} == {"reconstruct"}
    assert {name for name, method in METHODS.items() if method.refits} == {"reconstruct"}
    assert get_method("random+mean").needs_readings
    assert get_method("random+mean").needs_statistics
    assert not get_method("random+mean").refits
    assert Method("uniform", "reconstruction").needs_readings


def test_parts_may_be_objects():
    method = Method(Uniform(), IssNorm())
    assert get_method(method) is method
    assert method.resolve() == (Uniform(), IssNorm())


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("iss", r"'iss' is not a known method.*Give one of .*iss-gm"),
        (Method("even", "iss-norm"), r"'even' is not a known allocation.*Give one of .*uniform"),
        (Method("uniform", "size"), r"'size' is not a known criterion.*Give one of .*random"),
    ],
)
def test_unknown_names_list_the_known_ones(method, message):
    with pytest.raises(RepruneError, match=message):
        get_method(method).resolve()


def test_what_a_pruner_runs_is_any_method_and_those_that_act_on_training_without_a_compensation():
    for known in (*METHODS, *TRAINING_METHODS, "iss-gm+mean", "magnitude+reconstruct", Method("uniform", "iss-norm")):
        check_training_method(known)
    for wrong, message in (
        ("neuron-selection+mean", r"takes no compensation: leave '\+mean' out"),
        ("iss-gn+mean", r"'iss-gn' is not a known method.*iss-gm.*neuron-selection"),
        ("iss-gm+median", r"'iss-gm\+median' is not a known method"),
        (None, "'None' is not a known method"),
    ):
        with pytest.raises(RepruneError, match=message):
            check_training_method(wrong)


def test_a_compensation_is_added_to_a_preset():
    assert get_method("iss-gm+mean") == Method("energy", "geometric-median", "mean")
    assert get_method("magnitude+reconstruct") == Method("uniform", "iss-norm", "reconstruction")
    with pytest.raises(RepruneError, match=r"acts while a model trains: give it to reprune\.torch\.Pruner"):
        get_method("iss-group-lasso")
