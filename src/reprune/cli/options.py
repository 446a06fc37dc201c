"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

from reprune.core.layers import SCOPES

ModelOption = Annotated[
    str, typer.Option("--model", metavar="MODULE:NAME", help="A function that builds the dense model, or the model.")
]
_BATCHES: dict[str, str] = {"metavar": "MODULE:NAME", "help": "Calibration batches, or a function that returns them."}
BatchesOption = Annotated[str, typer.Option("--batches", **_BATCHES)]
# What commands called it before all called it the same.
BatchesOrData = Annotated[str, typer.Option("--batches", "--data", **_BATCHES)]
BatchesOrExample = Annotated[str, typer.Option("--batches", "--example", **_BATCHES)]
Of = Annotated[str, typer.Option(metavar="units|parameters|macs", help="What the fraction is of.")]
ScopeOption = Annotated[
    str,
    typer.Option(
        "--scope", metavar="|".join(SCOPES), help="Units: those of recurrent layers, or all widths, as channels too."
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Ratio = Annotated[float, typer.Option(help="Fraction to remove, from 0 to under 1.")]
LabelsOption = Annotated[
    str | None, typer.Option("--labels", metavar="MODULE:NAME", help="A function of a batch: its classes, for fsdp.")
]
LossOption = Annotated[
    str | None, typer.Option("--loss", metavar="MODULE:NAME", help="A function of model and batch, for taylor.")
]
ForwardOption = Annotated[
    str | None,
    typer.Option("--forward", metavar="MODULE:NAME", help="A function of model and batch in place of model(batch)."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs in place of a table.")]
