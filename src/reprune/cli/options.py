"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

from reprune.core.layers import SCOPES

ModelOption = Annotated[
    str, typer.Option("--model", metavar="MODULE:NAME", help="A function that builds the dense model, or the model.")
]
Of = Annotated[str, typer.Option(metavar="units|parameters|macs", help="What the fraction is of.")]
ScopeOption = Annotated[
    str,
    typer.Option(
        "--scope", metavar="|".join(SCOPES), help="Units: those of recurrent layers, or all widths, as channels too."
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
