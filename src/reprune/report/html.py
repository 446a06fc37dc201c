"""`report.html`: one file that shows what was pruned, why, and what it cost."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reprune.core.answers.answers import POOR, Fidelity
from reprune.core.errors import RepruneError
from reprune.core.extras import lacking
from reprune.core.methods import get_method
from reprune.core.plan import Plan
from reprune.core.saving.files import replacing
from reprune.report import figures, metrics, numbers
from reprune.report.overview import Change, Overview, overview

if TYPE_CHECKING:
    from jinja2 import Environment

TITLE = "What was pruned, and what it cost"

# How the known methods decide, for somebody who meets them for the first time.
METHODS = {
    "reconstruct": (
        "Step by step, the unit goes whose loss the weights that read it can best make up for, from what the other "
        "units carry. Those weights are then fitted anew, so that they compute from the units that stay what they "
        "computed from all."
    ),
    "iss-gm": (
        "How many units each layer loses follows from the spectrum of its responses. Which ones follows from the "
        "geometric median: units whose weights lie closest to those of all the others go first, because the others can "
        "stand in for them best."
    ),
    "magnitude": (
        "Every layer loses the same share of its units. Those that weigh least go first: the ones whose weights, "
        "incoming and outgoing together, are the shortest."
    ),
    "random": "Every layer loses the same share of its units, chosen at random: a baseline that others have to beat.",
}


SCORES = {
    "reconstruct": (
        "The score is the error that removing the unit leaves in the weights that read it, once the others make up for "
        "it as well as they can, at the moment it goes."
    ),
    "iss-gm": "The score is the sum of the distances between the unit's weights and those of every other unit.",
    "magnitude": "The score is the length of all weights that belong to the unit.",
    "random": "The score is a random number.",
}


def write_report(
    path: str | Path,
    plan: Plan,
    summary: Mapping[str, Any] | None = None,
    fidelity: Fidelity | None = None,
    *,
    title: str = TITLE,
) -> None:
    """Write a report of a plan as one HTML file that needs nothing else: no network, no scripts.

    Args:
        path: The file, replaced as a whole or not at all.
        plan: The plan.
        summary: What a run measured: `dense` and `pruned` map metrics to numbers, `seconds` the parts of the run to
            their durations. Everything in it is optional.
        fidelity: How near the answers of the pruned model are to the dense one's.
        title: Heading of the page.

    Raises:
        RepruneError: When jinja2 is not installed.

    Example:
        >>> write_report("out/report.html", plan, {"dense": {"gap": 0.98}, "pruned": {"gap": 0.97}})  # doctest: +SKIP
    """
    overall, measured = overview(plan), metrics.metric_rows(summary or {})
    template = _environment().get_template("report.html.jinja")
    page = template.render(
        title=title,
        plan=plan,
        overview=overall,
        tiles=_tiles(overall, measured),
        how=METHODS.get(plan.method.partition("+")[0], ""),
        score_meaning=_score_meaning(plan.method),
        made=_made(),
        fidelity=fidelity,
        warning=POOR if fidelity is not None and fidelity.poor else "",
        threshold=figures.energy_threshold(plan),
        spectra=figures.spectra(plan),
        scores=figures.scores(plan),
        metrics=measured,
        quality=next((row for row in measured if row.is_quality), None),
        durations=metrics.duration_rows(summary or {}),
    )
    with replacing(Path(path)) as part:
        part.write_text(page, encoding="utf-8")


def _score_meaning(method: str) -> str:
    """What the scores of a method are, in words or else as the formula of its criterion."""
    if method.partition("+")[0] in SCORES:
        return SCORES[method.partition("+")[0]]
    try:
        criterion = get_method(method).resolve()[1]
    except RepruneError:  # One of the user's own, recorded by its representation.
        return ""
    return f"Scores are computed by {(type(criterion).__doc__ or '').strip().splitlines()[0]}"


def _made() -> str:
    """When, with which versions and by which command a report is written."""
    names = {"reprune": "reprune", "torch": "PyTorch", "keras": "Keras", "tensorflow": "TensorFlow"}
    versions = [
        f"{label} {sys.modules[name].__version__}"
        for name, label in names.items()
        if hasattr(sys.modules.get(name), "__version__")
    ]
    started = Path(sys.argv[0])
    words = ["python", "-m", "reprune"] if started.parts[-2:] == ("reprune", "__main__.py") else [started.name]
    command = f" by: {shlex.join([*words, *sys.argv[1:]])}" if words[-1] == "reprune" else ""
    return f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}, {', '.join(versions)}{command}"


def _tiles(overall: Overview, rows: Sequence[metrics.MetricRow]) -> list[tuple[str, Change, str]]:
    """Label, change and meaning of the sizes that open the page."""
    tiles = [
        ("Hidden units", overall.units, "the memory of the network"),
        ("Parameters", overall.parameters, "numbers that the model stores"),
        ("MACs per time step", overall.macs, "multiplications that one step of the input costs"),
    ]
    for row in rows:
        if row.key == "latency_ms" and row.dense and row.pruned:
            tiles.append((row.known.name, Change(row.dense, row.pruned), "time for one run of the model"))
    return tiles


def check_installed() -> None:
    """Raise a `RepruneError` unless a report can be written at the end of what is about to begin."""
    _environment()


def _environment() -> Environment:
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError:
        raise RepruneError(lacking("jinja2", "The HTML report")) from None
    environment = Environment(
        loader=PackageLoader("reprune.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        count=numbers.count,
        short=numbers.short,
        percent=numbers.percent,
        measured=numbers.measured,
        ranges=numbers.ranges,
        duration=numbers.duration,
    )
    return environment
