"""Measured numbers of a run, before and after: their names, what they mean and which way is better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal

from reprune.report.numbers import measured, percent

Verdict = Literal["better", "worse", "same", ""]


@dataclass(frozen=True)
class Known:
    """What is known about a metric.

    Attributes:
        name: As people call it.
        higher: Whether higher is better; None when that is not known.
        meaning: In one sentence.
        fraction: Whether it lives between 0 and 1, so that its change is told in points.
    """

    name: str
    higher: bool | None
    meaning: str = ""
    fraction: bool = False


KNOWN: dict[str, Known] = {
    "gap": Known(
        "GAP@20", True, "Global average precision of the 20 best guesses per example, over all examples.", True
    ),
    "map": Known("mAP", True, "Average precision per class, averaged over the classes.", True),
    "hit_at_1": Known("Hit@1", True, "Share of examples whose best guess is right.", True),
    "perr": Known(
        "PERR", True, "Precision at equal recall: right guesses among as many as an example has labels.", True
    ),
    "accuracy": Known("Accuracy", True, "Share of right answers.", True),
    "top1": Known("Top-1 accuracy", True, "Share of examples whose best guess is right.", True),
    "f1": Known("F1", True, "Harmonic mean of precision and recall.", True),
    "auc": Known("AUC", True, "Chance that a positive example is ranked above a negative one.", True),
    "bleu": Known("BLEU", True, "Overlap with reference translations."),
    "loss": Known("Loss", False, "What training minimises."),
    "perplexity": Known("Perplexity", False, "Among how many words the model hesitates, on average."),
    "bits_per_character": Known("Bits per character", False, "Information that the model lacks to know the next one."),
    "wer": Known("Word error rate", False, "Share of words that are wrong.", True),
    "cer": Known("Character error rate", False, "Share of characters that are wrong.", True),
    "mse": Known("Mean squared error", False),
    "rmse": Known("Root mean squared error", False),
    "mae": Known("Mean absolute error", False),
    "parameters": Known("Parameters", False, "Numbers that the model stores."),
    "macs": Known("MACs per time step", False, "Multiplications that one step of the input costs."),
    "latency_ms": Known("Latency (ms)", False, "Time for one run of the model on the machine that wrote this."),
    "bytes": Known("Size in bytes", False, "Space the model's file takes."),
}
_SIZES = ("parameters", "macs", "latency_ms", "bytes")


@dataclass(frozen=True)
class MetricRow:
    """One metric before and after, as text, with the raw numbers beside it."""

    key: str
    known: Known
    dense: float | None
    pruned: float | None
    change: str
    verdict: Verdict

    @property
    def texts(self) -> tuple[str, str]:
        """Before and after as text."""
        return _text(self.dense, self.known), _text(self.pruned, self.known)

    @property
    def is_quality(self) -> bool:
        """Whether it says how good the model is, with a known direction, before and after."""
        return self.key not in _SIZES and self.known.higher is not None and bool(self.change)


def metric_rows(summary: Mapping[str, Any]) -> list[MetricRow]:
    """A row for every number under `dense` or `pruned`: quality first, then size and cost."""
    dense, pruned = _numbers(summary.get("dense")), _numbers(summary.get("pruned"))
    keys = list(dict.fromkeys([*dense, *pruned]))
    keys.sort(key=lambda key: key in _SIZES)
    return [_row(key, dense.get(key), pruned.get(key)) for key in keys]


def duration_rows(summary: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Name and seconds of every part of the run."""
    return [(_spoken(key), value) for key, value in _numbers(summary.get("seconds")).items()]


def _row(key: str, dense: float | None, pruned: float | None) -> MetricRow:
    known = KNOWN.get(key) or Known(_spoken(key), None)
    if dense is None or pruned is None or not isfinite(pruned - dense):
        return MetricRow(key, known, dense, pruned, "", "")
    delta = pruned - dense
    if delta == 0:
        return MetricRow(key, known, dense, pruned, "unchanged", "same")
    sign = "+" if delta > 0 else "−"
    if known.fraction:
        change = f"{sign}{abs(delta):.4f}"
    elif dense > 0:
        change = f"{sign}{percent(abs(delta / dense))}"
    else:
        change = f"{sign}{measured(float(f'{abs(delta):.4g}'))}"
    verdict: Verdict = "" if known.higher is None else "better" if (delta > 0) == known.higher else "worse"
    return MetricRow(key, known, dense, pruned, change, verdict)


def _numbers(values: Any) -> dict[str, float]:
    if not isinstance(values, Mapping):
        return {}
    return {
        str(key): value for key, value in values.items() if isinstance(value, int | float) and type(value) is not bool
    }


def _spoken(key: str) -> str:
    words = key.replace("_", " ").strip()
    return words[:1].upper() + words[1:]


def _text(value: float | None, known: Known) -> str:
    if value is None:
        return "not measured"
    return f"{value:.4f}" if known.fraction else measured(value)
