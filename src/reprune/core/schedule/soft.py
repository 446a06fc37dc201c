"""Soft: units are silenced again and again, and may grow back in between.

He et al., "Soft Filter Pruning for Accelerating Deep Convolutional Neural Networks", IJCAI 2018; the schedule of ISS-GM
(Gkalelis and Mezaris, IEEE ISM 2020).
"""

from __future__ import annotations

from dataclasses import dataclass

from reprune.core.schedule.base import Schedule


@dataclass(frozen=True)
class Soft(Schedule):
    """Every `every` steps the whole ratio is selected and silenced."""

    kind = "soft"
