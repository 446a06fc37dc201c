"""Methods: named triples of an allocation, a criterion and a compensation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from reprune.core.allocation import ALLOCATIONS, Allocation
from reprune.core.criteria import CRITERIA, Criterion
from reprune.core.errors import RepruneError

T = TypeVar("T")


@dataclass(frozen=True)
class Method:
    """How to decide: how many units go where, and which.

    Attributes:
        allocation: Splits the budget over layers: a name in `ALLOCATIONS` or an `Allocation`.
        criterion: Scores units: a name in `CRITERIA` or a `Criterion`.

    Example:
        >>> Method(allocation="energy", criterion="iss-norm").needs_statistics
        True
    """

    allocation: str | Allocation
    criterion: str | Criterion

    def resolve(self) -> tuple[Allocation, Criterion]:
        """The allocation and the criterion as objects.

        Raises:
            RepruneError: When a name is not registered.
        """
        allocation, criterion = self.allocation, self.criterion
        if isinstance(allocation, str):
            allocation = _look_up(allocation, ALLOCATIONS, "allocation")()
        if isinstance(criterion, str):
            criterion = _look_up(criterion, CRITERIA, "criterion")()
        return allocation, criterion

    @property
    def needs_statistics(self) -> bool:
        """Whether responses must be observed on calibration batches."""
        return any(part.needs_statistics for part in self.resolve())


METHODS: dict[str, Method] = {
    "iss-gm": Method(allocation="energy", criterion="geometric-median"),
    "magnitude": Method(allocation="uniform", criterion="iss-norm"),
    "random": Method(allocation="uniform", criterion="random"),
}


def get_method(method: str | Method) -> Method:
    """The method of this name, or the method itself.

    Raises:
        RepruneError: When the name is unknown; the known ones are listed.
    """
    return method if isinstance(method, Method) else _look_up(method, METHODS, "method")


def _look_up(name: str, registry: dict[str, T], kind: str) -> T:
    if name not in registry:
        raise RepruneError(f"{name!r} is not a known {kind}: give one of {', '.join(sorted(registry))}.")
    return registry[name]
