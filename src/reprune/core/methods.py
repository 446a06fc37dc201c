"""Methods: named triples of an allocation, a criterion and a compensation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from reprune.core.allocation import ALLOCATIONS, Allocation, Energy
from reprune.core.criteria import CRITERIA, Criterion
from reprune.core.errors import RepruneError, did_you_mean
from reprune.core.evidence.readings import Reading
from reprune.core.folding.compensation import COMPENSATIONS, Ridges
from reprune.core.folding.fold import Fold
from reprune.core.layers import Structure

T = TypeVar("T")


@dataclass(frozen=True)
class Method:
    """How to decide: how many units go where, and which.

    Attributes:
        allocation: Splits the budget over layers: a name in `ALLOCATIONS` or an `Allocation`.
        criterion: Scores units: a name in `CRITERIA` or a `Criterion`.
        compensation: What makes up for the removed units in their consumers: a name in `COMPENSATIONS`, or None.

    Example:
        >>> Method(allocation="energy", criterion="iss-norm").needs_statistics
        True
    """

    allocation: str | Allocation
    criterion: str | Criterion
    compensation: str | None = None

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
        return any(part.needs_statistics for part in self.resolve()) or self.needs_readings

    @property
    def needs_readings(self) -> bool:
        """Whether what the consumers read must be observed, too."""
        return self.compensation is not None or self.resolve()[1].needs_readings

    @property
    def needs_labels(self) -> bool:
        """Whether the criterion looks at the classes of the calibration sequences."""
        return self.resolve()[1].needs_labels

    @property
    def needs_loss(self) -> bool:
        """Whether the criterion looks at gradients of a loss."""
        return self.resolve()[1].needs_loss

    @property
    def refits(self) -> bool:
        """Whether consumers are refitted to the dense model's answers after their folds."""
        return self.compensation == "reconstruction"

    def compensate(
        self,
        structure: Structure,
        kept: Mapping[str, Sequence[int]],
        readings: Sequence[Reading],
        ridges: Ridges | None = None,
    ) -> tuple[Fold, ...]:
        """The corrections that make up for the units that are not kept; `ridges` of a similar plan save time."""
        if self.compensation is None:
            return ()
        return _look_up(self.compensation, COMPENSATIONS, "compensation")(
            structure, kept, readings, {} if ridges is None else ridges
        )


METHODS: dict[str, Method] = {
    "reconstruct": Method(allocation="measured", criterion="reconstruction", compensation="reconstruction"),
    "iss-gm": Method(allocation="energy", criterion="geometric-median"),
    "iss-gm-structure": Method(allocation="energy", criterion="iss-median"),
    "iss-gm-responses": Method(allocation="energy", criterion="response-median"),
    "iss-gm-medoid": Method(allocation="energy", criterion="medoid"),
    "iss-gm-weiszfeld": Method(allocation="energy", criterion="weiszfeld"),
    "iss-norm": Method(allocation="uniform", criterion="iss-norm"),
    "magnitude": Method(allocation="uniform", criterion="iss-norm"),
    "pfa-en": Method(allocation=Energy(threshold=0.95), criterion="correlation"),
    "pfa-kl": Method(allocation="kl", criterion="correlation"),
    "fsdp": Method(allocation="uniform", criterion="discriminant"),
    "class-separability": Method(allocation="uniform", criterion="class-separability"),
    "taylor": Method(allocation="uniform", criterion="taylor"),
    "variance": Method(allocation="uniform", criterion="variance"),
    "random": Method(allocation="uniform", criterion="random"),
}
DEFAULT = "reconstruct"
TRAINING_METHODS: dict[str, str] = {
    "iss-group-lasso": "a penalty on the length of every unit's weights drives some of them to zero (Wen et al. 2018)",
    "neuron-selection": "a gate on every unit learns to open or to close (Wen et al. 2020; Louizos et al. 2018)",
}
"""Methods that act on the training itself, with what they do: only a `Pruner` can run them."""
_ADDED = {"+reconstruct": "reconstruction", "+mean": "mean"}


def get_method(method: str | Method) -> Method:
    """The method of this name, or the method itself.

    A compensation can be added to any preset: `iss-gm+reconstruct`, `magnitude+mean`.

    Raises:
        RepruneError: When the name is unknown; the known ones are listed.
    """
    if isinstance(method, Method):
        return method
    if method in TRAINING_METHODS:
        raise RepruneError(f"{method!r} acts while a model trains: give it to reprune.torch.Pruner.")
    for suffix, compensation in _ADDED.items():
        if method.endswith(suffix):
            preset = _look_up(method.removesuffix(suffix), METHODS, "method")
            return replace(preset, compensation=compensation)
    return _look_up(method, METHODS, "method")


def check_training_method(method: str | Method) -> None:
    """Raise unless a `Pruner` knows this method.

    Raises:
        RepruneError: When the name is unknown; the known ones are listed.
    """
    if isinstance(method, Method) or method in TRAINING_METHODS:
        return
    added = next((suffix for suffix in _ADDED if str(method).endswith(suffix)), "")
    preset = str(method).removesuffix(added)
    if preset in TRAINING_METHODS:
        raise RepruneError(f"{preset!r} acts on the training itself, and takes no compensation: leave {added!r} out.")
    _look_up(preset, {**METHODS, **TRAINING_METHODS}, "method")


def _look_up(name: str, registry: Mapping[str, T], kind: str) -> T:
    if name not in registry:
        near = did_you_mean(name, registry)
        raise RepruneError(f"{name!r} is not a known {kind}.{near} Give one of {', '.join(sorted(registry))}.")
    return registry[name]
