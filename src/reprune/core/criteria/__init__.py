"""Criteria: which units go. One file each; adding one takes its file and its line in `CRITERIA`."""

from __future__ import annotations

from reprune.core.criteria.base import Criterion, Ranking
from reprune.core.criteria.class_separability import ClassSeparability, Discriminant
from reprune.core.criteria.correlation import Correlation
from reprune.core.criteria.geometric_median import GeometricMedian
from reprune.core.criteria.iss_median import IssMedian
from reprune.core.criteria.iss_norm import IssNorm
from reprune.core.criteria.medoid import Medoid
from reprune.core.criteria.random import Random
from reprune.core.criteria.reconstruction import Reconstruction
from reprune.core.criteria.response_median import ResponseMedian
from reprune.core.criteria.taylor import Taylor
from reprune.core.criteria.variance import Variance
from reprune.core.criteria.weiszfeld import Weiszfeld

CRITERIA: dict[str, type[Criterion]] = {
    "class-separability": ClassSeparability,
    "correlation": Correlation,
    "discriminant": Discriminant,
    "geometric-median": GeometricMedian,
    "iss-median": IssMedian,
    "iss-norm": IssNorm,
    "medoid": Medoid,
    "random": Random,
    "reconstruction": Reconstruction,
    "response-median": ResponseMedian,
    "taylor": Taylor,
    "variance": Variance,
    "weiszfeld": Weiszfeld,
}

__all__ = [
    "CRITERIA",
    "ClassSeparability",
    "Correlation",
    "Criterion",
    "Discriminant",
    "GeometricMedian",
    "IssMedian",
    "IssNorm",
    "Medoid",
    "Random",
    "Ranking",
    "Reconstruction",
    "ResponseMedian",
    "Taylor",
    "Variance",
    "Weiszfeld",
]
