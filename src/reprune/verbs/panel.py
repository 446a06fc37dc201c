"""What small models are judged by: their answers to a sample of the calibration batches, beside the dense model's."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf
from operator import itemgetter
from typing import Any

import numpy as np

from reprune.core.answers.answers import Answers, Fidelity, Sample
from reprune.core.answers.divergence import check_name
from reprune.core.answers.gates import refit_gates
from reprune.core.answers.gauss_newton import Tensors, refit
from reprune.core.decide import CONTENDERS
from reprune.core.evidence.passes import Forward
from reprune.core.folding.fold import Refit
from reprune.core.plan import Plan
from reprune.core.training.shrink import shrunk
from reprune.verbs.adapter import Recorded, adapter_of

ROUNDS = 2
"""How often gates are refitted, and consumers after them: from states that are nearer to the dense model's."""


class Panel:
    """Judges models of plans, and refits them.

    Args:
        model: The dense model.
        found: Its trace.
        sample: Batches, the first of which comes first, and answers to them that are known.
        divergence: A divergence's name, or None.
        forward: Replaces `model(batch)`.
        refits: Whether consumers are refitted.
    """

    def __init__(
        self,
        model: Any,
        found: Recorded,
        sample: Sample,
        divergence: str | None,
        forward: Forward | None,
        *,
        refits: bool,
    ) -> None:
        self.refits = refits
        check_name(divergence)
        self._adapter = adapter_of(model)
        self._model, self._found, self._forward = model, found, forward
        meaning = self._adapter.meaning(found, model, sample.batches[0], forward)
        self._judged: deque[tuple[tuple[Refit, ...], Fidelity | None]] = deque(maxlen=CONTENDERS + ROUNDS)
        dense = self._adapter.planned(found, model, None, forward)
        self._answers = Answers(sample.batches, dense, divergence, meaning, known=sample.answers)

    def divergence(self, plan: Plan) -> float:
        """How far the model of a plan is from the dense one, on a few batches."""
        return self._answers.divergence(self._running(plan), self._answers.some, "all")

    def refitted(self, plan: Plan) -> tuple[float, Plan]:
        """The plan, with its consumers refitted to the dense model's answers, and how far its model is then."""
        if not plan.folds:
            return 0.0, plan
        return self._refitted(plan, self._adapter.apply(self._model, plan), {})

    def regated(self, value: float, plan: Plan) -> Plan:
        """The plan with its gates refitted, and its consumers after them, if its model is less far then."""
        if not plan.folds:
            return plan
        best, changed, bare = (value, plan), Tensors(), replace(plan, refits=())
        small = self._adapter.apply(self._model, bare)
        learner = self._adapter.gates(self._model, small, bare, self._answers, self._forward, self._narrowed(bare))
        for _ in range(ROUNDS):
            gates = refit_gates(learner, self._answers)
            if not gates:
                break
            changed |= gates
            best = min(best, self._refitted(bare, small, changed), key=itemgetter(0))
        return best[1]

    def _refitted(self, plan: Plan, small: Any, changed: Tensors) -> tuple[float, Plan]:
        """The plan with the consumers of its model refitted, given what else has changed there; that takes them in."""
        pupil = self._adapter.pupil(small, shrunk(plan.structure, plan.kept), self._answers, self._narrowed(plan))
        value, found = refit(pupil, self._answers, np.random.default_rng(0))
        changed |= found
        refits = tuple(Refit.of(name, held) for name, held in changed.items())
        self._judged.append((refits, self._answers.fidelity(pupil.run, self._answers.places, "judged")))
        return value, replace(plan, refits=refits)

    def fidelity(self, plan: Plan, small: Any = None) -> Fidelity | None:
        """How near the answers of a plan's model are, on rows that its consumers were not refitted to."""
        for refits, found in self._judged:
            if refits and refits is plan.refits:
                return found
        run, answers = self._running(plan, small), self._answers
        return answers.fidelity(run, *((answers.places, "judged") if plan.refits else (answers.some, "all")))

    def within(self, tolerance: float) -> Callable[[Plan], bool]:
        """Whether the model of a plan diverges no further than this."""

        def tell(plan: Plan) -> bool:
            found = self.fidelity(plan)
            return (inf if found is None else found.divergence) <= tolerance

        return tell

    def _running(self, plan: Plan, small: Any = None) -> Callable[[int], Sequence[Any]]:
        if small is None:
            run = self._adapter.planned(self._found, self._model, plan, self._forward)
        else:
            run = self._adapter.answering(small, self._narrowed(plan))
        return lambda place: run(self._answers.batches[place])

    def _narrowed(self, plan: Plan) -> Forward | None:
        return self._adapter.narrowed(self._found, self._model, plan, self._forward)
