"""YouTube-8M: records, metrics, and feeding them to a training loop."""

from pathlib import Path
from typing import Any

from reprune.core.extras import imported


def __getattr__(name: str) -> Any:
    """A module of this package is imported when it is first asked for: `reprune.youtube8m.records`."""
    if not name.startswith("_") and (Path(__file__).parent / f"{name}.py").is_file():
        return imported(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
