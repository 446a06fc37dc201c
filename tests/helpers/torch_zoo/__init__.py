"""Small models of every wiring that people write, each with batches of any size and with what a trace must find."""

from tests.helpers.torch_zoo import (
    attention,
    cells,
    convolutions,
    handwritten,
    interfaces,
    modules,
    norms,
    sharing,
    states,
    wirings,
)
from tests.helpers.torch_zoo.case import CASES, Case

__all__ = [
    "CASES",
    "Case",
    "attention",
    "cells",
    "convolutions",
    "handwritten",
    "interfaces",
    "modules",
    "norms",
    "sharing",
    "states",
    "wirings",
]
