"""Criteria: which units go. One file each; adding one takes its file and its line in `CRITERIA`."""

from __future__ import annotations

from reprune.core.criteria.base import Criterion, Ranking
from reprune.core.criteria.geometric_median import GeometricMedian
from reprune.core.criteria.iss_norm import IssNorm
from reprune.core.criteria.random import Random
from reprune.core.criteria.reconstruction import Reconstruction

CRITERIA: dict[str, type[Criterion]] = {
    "geometric-median": GeometricMedian,
    "iss-norm": IssNorm,
    "random": Random,
    "reconstruction": Reconstruction,
}

__all__ = ["CRITERIA", "Criterion", "GeometricMedian", "IssNorm", "Random", "Ranking", "Reconstruction"]
