from __future__ import annotations

import pytest

from reprune.core.allocation import ALLOCATIONS, Uniform
from reprune.core.criteria import CRITERIA, IssNorm
from reprune.core.errors import RepruneError
from reprune.core.methods import METHODS, Method, get_method


@pytest.mark.parametrize("name", METHODS)
def test_every_name_resolves(name):
    allocation, criterion = get_method(name).resolve()
    assert type(allocation) in ALLOCATIONS.values()
    assert type(criterion) in CRITERIA.values()


def test_what_needs_responses():
    assert METHODS["iss-gm"].needs_statistics
    assert not METHODS["magnitude"].needs_statistics
    assert not METHODS["random"].needs_statistics


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
