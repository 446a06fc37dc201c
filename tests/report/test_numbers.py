import doctest

import pytest

from reprune.report import numbers


def test_examples() -> None:
    assert doctest.testmod(numbers).failed == 0


@pytest.mark.parametrize(
    ("fraction", "text"),
    [(0.0, "0%"), (1.0, "100%"), (0.5, "50.0%"), (0.0004, "0.04%"), (0.9999, "99.99%"), (1e-9, "under 0.00001%"),
     (1 - 1e-9, "over 99.99999%"), (1.25, "125.0%")],
)  # fmt: skip
def test_percent_never_claims_none_or_all(fraction: float, text: str) -> None:
    assert numbers.percent(fraction) == text


@pytest.mark.parametrize(
    ("value", "text"), [(float("nan"), "nan"), (0, "0"), (1e-7, "1e-07"), (12345.6, "12,346"), (3.0, "3")]
)
def test_measured(value: float, text: str) -> None:
    assert numbers.measured(value) == text
