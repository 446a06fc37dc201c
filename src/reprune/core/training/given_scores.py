"""The decision of methods that learn a number for every unit while the model trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from reprune.core.budget.budget import Budget
from reprune.core.criteria.given import Given
from reprune.core.decide import decide
from reprune.core.evidence.evidence import Evidence
from reprune.core.layers import Structure
from reprune.core.methods import Method
from reprune.core.plan import Plan


def decide_by(
    scores: Mapping[str, np.ndarray[Any, Any]],
    structure: Structure,
    tensors: Mapping[str, Any],
    budget: Budget,
    method: str | Method,
    seed: int,
) -> Plan:
    """A plan in which the units with the smallest scores go, over all layers at once; it bears the method's name."""
    plan = decide(Evidence(structure, tensors), budget, Method("cost", Given(scores)), seed=seed)
    return replace(plan, method=str(method))
