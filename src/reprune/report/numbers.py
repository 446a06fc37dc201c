"""Numbers as people read them."""

from __future__ import annotations

from math import isfinite


def count(value: float) -> str:
    """A count with its thousands set apart; fractions of a count are kept to one digit.

    Example:
        >>> count(1053696), count(2.5)
        ('1,053,696', '2.5')
    """
    return f"{value:,.0f}" if value == round(value) else f"{value:,.1f}"


def short(value: float) -> str:
    """A count in three significant digits, small ones exactly.

    Example:
        >>> short(1053696), short(6490), short(2536.25), short(999_999)
        ('1.05 M', '6,490', '2,536', '1 M')
    """
    if abs(value) < 1e4:
        return f"{value:,.0f}" if value == round(value) or abs(value) >= 999.5 else f"{value:.3g}"
    for unit, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= 0.9995 * scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value:.3g}"


def percent(fraction: float) -> str:
    """A fraction in per cent, with as many digits as it takes not to be mistaken for none or for all.

    Example:
        >>> percent(0.5), percent(1), percent(0.99997)
        ('50.0%', '100%', '99.997%')
    """
    if fraction in (0, 1):
        return f"{fraction:.0%}"
    for digits in range(1, 6):
        text = f"{100 * fraction:.{digits}f}"
        if float(text) not in (0, 100):
            return f"{text}%"
    return f"{'under 0.00001' if fraction < 0.5 else 'over 99.99999'}%"


def measured(value: float) -> str:
    """A measured number in four significant digits, counts exactly.

    Example:
        >>> measured(0.98123), measured(12.5), measured(100_000)
        ('0.9812', '12.5', '100,000')
    """
    if not isfinite(value):
        return str(value)
    if value == round(value) and abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def ranges(indices: list[int]) -> str:
    """Sorted indices with their runs drawn together.

    Example:
        >>> ranges([0, 1, 2, 5, 7, 8])
        '0–2, 5, 7–8'
    """
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ", ".join(f"{first}–{last}" if last > first else str(first) for first, last in runs)


def duration(seconds: float) -> str:
    """A duration in the units in which it is short.

    Example:
        >>> duration(0.82), duration(61.5), duration(7322)
        ('0.82 s', '1 min 2 s', '2 h 2 min')
    """
    if seconds < 59.95:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
