"""Small models of every wiring that people write, each with batches of any size and with what a trace must find."""

from . import attention, cells, convolutions, handwritten, interfaces, modules, norms, sharing, states, wirings
from .case import CASES, Case

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
