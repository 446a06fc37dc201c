"""ISS norm: the length of everything a unit touches.

Wen et al., "Learning Intrinsic Sparse Structures within Long Short-Term Memory", ICLR 2018, eq. 3: the intrinsic sparse
structure of a unit is its rows in every gate and its columns in every consumer; units whose structure is short matter
least. Often called magnitude pruning.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from reprune.core.criteria.base import Criterion, Group, Ranking, rank_by
from reprune.core.evidence.evidence import LayerEvidence
from reprune.core.evidence.moments import to_numpy


@dataclass(frozen=True)
class IssNorm(Criterion):
    """score(u) = ‖ISS_u‖₂: gate rows, recurrent column and consumer columns of unit u together."""

    def rank(self, group: Group, rng: np.random.Generator) -> Ranking:
        """Rank by the norm of the whole structure. See `Criterion.rank`."""
        return rank_by([_norms(layer) for layer in group])


def _norms(layer: LayerEvidence) -> NDArray[np.float64]:
    xp = array_namespace(layer.incoming)
    squares = xp.sum(layer.incoming**2, axis=1) + xp.sum(layer.outgoing**2, axis=1)
    return to_numpy(xp.sqrt(squares))
