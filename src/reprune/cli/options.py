"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

ModelOption = Annotated[
    str, typer.Option("--model", metavar="MODULE:NAME", help="A function that builds the dense model, or the model.")
]
Of = Annotated[str, typer.Option(metavar="units|parameters|macs", help="What the fraction is of.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
