"""One trace and one pass over the calibration batches, any number of plans."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from operator import length_hint
from typing import Any, Generic, Literal, TypeVar

from reprune.core.answers.answers import MOST, ONCE, Sample
from reprune.core.budget.budget import RATIO, Budget, Request, most_within
from reprune.core.budget.cost import Measure
from reprune.core.budget.latency import LatencyTable
from reprune.core.decide import decide, left_out
from reprune.core.errors import StatisticsError
from reprune.core.evidence.evidence import Evidence
from reprune.core.evidence.passes import Forward, Labels, Loss, several_passes
from reprune.core.evidence.readings import Reading, Statistics, readings
from reprune.core.layers import Scope, Structure, checked_scope
from reprune.core.methods import DEFAULT, Method, get_method
from reprune.core.plan import Plan
from reprune.core.progress import log, tell, told
from reprune.core.rehearsal import held_back
from reprune.verbs.adapter import Recorded, adapter_of, fitting
from reprune.verbs.panel import Panel
from reprune.verbs.progress import shown
from reprune.verbs.result import Result

Model = TypeVar("Model")
NEEDS = {"statistics": "calibration batches", "readings": "calibration batches", "labels": "labels=", "loss": "loss="}


class Calibration(Generic[Model]):
    """What planning needs to know of a model: made once by `calibrate`, used for any number of plans.

    Do not train the model in between: plans are made from the weights and responses at the time of calibration.

    Attributes:
        structure: What can be pruned, what is pinned and why.
        gathered: What was gathered: `statistics` of the units' responses, `readings` of what weights get from them,
            `labels`, gradients of a `loss`.

    Example:
        >>> calibration = reprune.calibrate(model, batches)                          # doctest: +SKIP
        >>> half = calibration.prune(0.5).model                                      # doctest: +SKIP
        >>> quarter = calibration.prune(0.75, method="iss-gm").model                 # doctest: +SKIP
    """

    def __init__(
        self,
        model: Model,
        private: Model,
        found: Recorded,
        evidence: Evidence,
        gathered: Iterable[str],
        sample: Sample,
        forward: Forward | None,
        check: bool,
        digest: str,
        divergence: str | None,
        again: bool,
    ) -> None:
        self.structure: Structure = evidence.structure
        self.gathered = frozenset(gathered)
        self._adapter = adapter_of(model)
        self._model, self._found, self._evidence = model, found, evidence
        self._example, self._forward, self._check, self._digest = sample.batches[0], forward, check, digest
        self._table: LatencyTable | None = None
        self._panel = Panel(private, found, sample, divergence, forward, refits=again)

    def plan(
        self,
        ratio: float | None = RATIO,
        of: Measure = "units",
        method: str | Method = DEFAULT,
        *,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        counts: Mapping[str, float] | None = None,
        min_units: int = 1,
        round_to: int | Literal["auto"] = 1,
        target_ms: float | None = None,
        latency: LatencyTable | None = None,
        tolerance: float | None = None,
        seed: int = 0,
    ) -> Plan:
        """Decide which units go. The arguments are those of `reprune.plan`.

        Latency is measured by the first plan that needs it.

        Raises:
            StatisticsError: When the method needs what was not gathered.
            BudgetError: When the budget cannot be met.
        """
        request = Request(ratio, of, min_units, round_to, target_ms, tolerance)
        missing = needs(get_method(method)) - self.gathered
        if missing:
            given = " and ".join(sorted({NEEDS[kind] for kind in missing}))
            raise StatisticsError(
                f"method={method!r} looks at what was not gathered: give {given}. "
                "A calibration gathers what its methods= look at."
            )
        table = (latency or self._measured()) if request.needs_table else None
        excluded = left_out(self.structure, include, exclude)

        def planned(budget: Budget) -> Plan:
            decided = decide(
                self._evidence, budget, method, exclude=excluded, counts=counts, seed=seed, judge=self._panel
            )
            return replace(decided, fitted_to=self._digest)

        budget = request.budget(table)
        with shown():
            if tolerance is None:
                return planned(budget)
            return most_within(lambda share: planned(replace(budget, ratio=share)), self._panel.within(tolerance))

    def _measured(self) -> LatencyTable:
        if self._table is None:
            self._table = self._adapter.measure_latency(
                self._model, self._example, runtime=None, threads=1, forward=self._forward, structure=self.structure
            )
        return self._table

    def prune(self, ratio: float | None = RATIO, **options: Any) -> Result[Model]:
        """Decide which units go and return a smaller model. The options are those of `plan`.

        Raises:
            VerificationError: When the smaller model does not compute what the masked one does.
            PlanError: When the model has other weights than at the time of calibration.
        """
        with shown():
            decided = self.plan(ratio, **options)
            tell("cutting")
            small: Model = self._adapter.apply(self._model, fitting(self._adapter, self._model, decided))
            if self._check:
                self._adapter.verify(decided, self._found, self._model, small, self._example, self._forward)
            fidelity = self._panel.fidelity(decided, small)
        if fidelity is not None and not self._panel.refits and get_method(options.get("method", DEFAULT)).refits:
            fidelity = replace(fidelity, note=ONCE)
        log.info("kept %s; %s", decided.counts(), fidelity or "nothing to compare answers by")
        return Result(small, decided, fidelity)


def log_pins(structure: Structure) -> None:
    """Let the log know which layers stay whole, and why."""
    for name, layer in structure.layers.items():
        if layer.pin is not None:
            log.info("pinned %s: %s", name, layer.pin)


def needs(method: Method) -> set[str]:
    """Kinds of evidence that a method looks at."""
    return {kind for kind in NEEDS if getattr(method, f"needs_{kind}")}


def calibrate(
    model: Model,
    batches: Iterable[Any],
    *,
    methods: Sequence[str | Method] | None = None,
    labels: Labels | None = None,
    loss: Loss | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    uniform: bool = False,
    scope: Scope = "recurrent",
    divergence: str | None = None,
    forward: Forward | None = None,
    verify: bool = True,
) -> Calibration[Model]:
    """Look at a model and at what it does with calibration batches, once for a whole grid of ratios and methods.

    Args:
        model: The model; it is left as it was.
        batches: Calibration inputs as the model takes them. Iterated once, and once more for labels and for a loss.
        methods: Gather only what these look at; everything by default.
        labels: Classes of a batch's sequences, for methods that look at them: a function of a batch that returns class
            numbers (sequences) or ones and zeros (sequences × classes).
        loss: Mean loss, for methods that look at its gradient: a function of model and batch.
        include: Globs of layers; all others are left alone.
        exclude: Globs of layers to leave alone.
        uniform: Keep equal sizes in all layers and directions of one recurrent module, so that it stays plain.
        scope: What counts as units: those of recurrent layers, or `all` widths of the model.
        divergence: How outputs are compared with the dense model's: `kl`, `bce`, `mse` or `cosine`
            (`core.answers.divergence`); what they look like by default.
        forward: Replaces `model(batch)`: a function of model and batch.
        verify: Try on the first batch whether the model runs with fewer units, and check every pruned model there.

    Example:
        >>> calibration = calibrate(model, batches)                                # doctest: +SKIP
        >>> plans = [calibration.plan(ratio) for ratio in (0.25, 0.5, 0.75)]       # doctest: +SKIP

    Raises:
        BatchError: When the model does not run on the first batch.
        UnsupportedModelError: When there is no recurrent layer.
        VerificationError: When something reads units and was not found.
    """
    adapter = adapter_of(model)
    original = adapter.checked(model)
    model = adapter.private(original)
    wanted = set(NEEDS) if methods is None else {kind for method in methods for kind in needs(get_method(method))}
    wanted -= ({"labels"} if labels is None else set()) | ({"loss"} if loss is None else set())
    example, passes = several_passes(batches, adapter.is_tensor, len(wanted - {"readings"}))
    forward = adapter.accepted(model, example, forward)
    # Of batches that come only once, none is kept but the first.
    once = isinstance(batches, Iterator)
    sample = Sample(most=1 if once else MOST)
    size = length_hint(batches) or None
    watched = (told("observing batches", sample.watch(given), size) for given in passes)
    with shown():
        tell("tracing")
        found = adapter.record(model, example, forward, uniform=uniform, scope=checked_scope(scope))
        # The model itself, as passes over the private copy may write weights in it.
        digest = adapter.digest(original, found.structure())
        exclude = left_out(found.structure(), include, exclude)
        if verify:
            tell("rehearsing")
            structure = adapter.rehearse(found, model, example, forward, exclude)
        else:
            structure = found.structure(held_back(found.structure(), exclude))
        arrays = adapter.arrays(found, model, structure)
        statistics: Statistics | None = None
        read: list[Reading] = []
        classes = gradients = None
        if "readings" in wanted:
            statistics, importance = adapter.observe_readings(
                found, model, structure, next(watched), forward, sample.answered
            )
            read = readings(structure, arrays, statistics, statistics.readings, importance, statistics.fed)
        elif "statistics" in wanted:
            statistics = adapter.observe(model, structure, next(watched), forward)
        if "labels" in wanted and labels is not None:
            classes = adapter.observe_classes(
                model, structure, told("observing classes", next(passes), size), labels, forward
            )
        if "loss" in wanted and loss is not None:
            gradients = adapter.loss_gradients(
                found, model, structure, told("gradients of the loss", next(passes), size), loss
            )
    log_pins(structure)
    evidence = Evidence(structure, arrays, statistics, read, classes=classes, gradients=gradients)
    if not sample.batches:
        sample.add(example)
    return Calibration(original, model, found, evidence, wanted, sample, forward, verify, digest, divergence, not once)
