"""The command `reprune compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from reprune.cli.options import (
    BatchesOrData,
    ForwardOption,
    LabelsOption,
    LossOption,
    ModelOption,
    Of,
    ScopeOption,
    Seed,
)
from reprune.cli.references import build, function, value
from reprune.core.budget.cost import Measure
from reprune.core.errors import RepruneError
from reprune.core.layers import checked_scope

compare_app = typer.Typer(rich_markup_mode="markdown")


@compare_app.command("compare")
def compare_command(
    model: ModelOption,
    batches: BatchesOrData,
    evaluate: Annotated[str, typer.Option(metavar="MODULE:NAME", help="A function of a model that returns a number.")],
    out: Annotated[Path, typer.Option(help="Folder for the numbers, the table and the plot.")] = Path("comparison"),
    methods: Annotated[str, typer.Option(help="Methods, separated by commas.")] = "reconstruct,iss-gm,magnitude,random",
    ratios: Annotated[str, typer.Option(help="Fractions to remove, separated by commas.")] = "0.25,0.5,0.75",
    of: Of = "units",
    scope: ScopeOption = "recurrent",
    finetune: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:NAME",
            help="A function of a model and a number of steps; if not given, the dense model is distilled into it.",
        ),
    ] = None,
    finetune_steps: Annotated[
        str, typer.Option(help="Steps of it for every pruned model; several, separated by commas, are measured each.")
    ] = "0",
    metric: Annotated[
        str | None, typer.Option(help="Name of what --evaluate returns; the function's name if not given.")
    ] = None,
    labels: LabelsOption = None,
    loss: LossOption = None,
    forward: ForwardOption = None,
    seed: Seed = 0,
) -> None:
    """Measure methods over a grid of ratios; the same command goes on where it was interrupted.

    Example: `reprune compare --model shop.models:trained --batches shop.data:batches --evaluate shop.data:score
    --out cmp`
    """
    from reprune.recipes.compare import compare
    from reprune.recipes.run.folder import held
    from reprune.recipes.run.interrupts import InterruptedRunError, stopped_by_user
    from reprune.report.compare_table import markdown

    try:
        with held(out):
            functions = {
                "finetune": function("--finetune", finetune, "a model", "a number of steps"),
                "labels": function("--labels", labels, "a batch"),
                "loss": function("--loss", loss, "a model", "a batch"),
                "forward": function("--forward", forward, "a model", "a batch"),
            }
            score = function("--evaluate", evaluate, "a model")
            cells = compare(
                build(model),
                value(batches),
                score,
                out,
                methods=[name.strip() for name in methods.split(",")],
                ratios=_fractions(ratios),
                of=cast(Measure, of),
                scope=checked_scope(scope),
                metric=metric or evaluate.rpartition(":")[2],
                seed=seed,
                finetune_steps=_steps(finetune_steps),
                say=typer.echo,
                **functions,
            )
    except (KeyboardInterrupt, SystemExit) as error:
        if not stopped_by_user(error):
            raise
        raise InterruptedRunError(
            f"Stopped: what was measured is kept in {out}, the same command goes on with what is missing."
        ) from None
    typer.echo(markdown(cells))


def _steps(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise RepruneError(
            f"--finetune-steps {text}: give whole numbers separated by commas, such as 100,400."
        ) from None


def _fractions(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise RepruneError(f"--ratios {text}: give numbers separated by commas, such as 0.25,0.5.") from None
