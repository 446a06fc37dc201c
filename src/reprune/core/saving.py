"""The folder that `Result.save` writes and `load` reads: weights and the plan that belongs to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from reprune.core.errors import PlanError
from reprune.core.plan import Plan

WEIGHTS, PLAN, REPORT = "model.safetensors", "plan.json", "report.html"

Shapes = Mapping[str, tuple[int, ...]]


def write_folder(folder: Path, plan: Plan, write_weights: Callable[[Path], object]) -> None:
    """Write weights and plan; both are complete on disk before either takes its place."""
    folder.mkdir(parents=True, exist_ok=True)
    weights, text = folder / f"{WEIGHTS}.partial", folder / f"{PLAN}.partial"
    write_weights(weights)
    text.write_text(plan.to_json(), encoding="utf-8")
    weights.replace(folder / WEIGHTS)
    text.replace(folder / PLAN)


def read_folder(directory: str | Path) -> tuple[Plan, Path]:
    """The plan in a folder, and the path of the weights beside it.

    Raises:
        PlanError: When one of them is missing or cannot be read, or the plan is damaged.
    """
    folder = Path(directory)
    for name in (PLAN, WEIGHTS):
        if not (folder / name).is_file():
            raise PlanError(f"{folder / name} does not exist: give the directory that Result.save() wrote.")
    try:
        text = (folder / PLAN).read_bytes()
    except OSError as error:
        raise PlanError(f"{folder / PLAN} cannot be read: {error.strerror}.") from None
    return Plan.from_json(text), folder / WEIGHTS


def unreadable(path: Path, error: Exception) -> PlanError:
    """The error for weights that their reader refuses."""
    return PlanError(f"{path} cannot be read ({error}): it is damaged, or not a safetensors file.")


def check_tensors(path: Path, found: Shapes, expected: Shapes, missing: Iterable[str]) -> None:
    """Raise a `PlanError` unless a file holds the tensors of a model, in their shapes.

    Args:
        path: The file.
        found: Shapes of its tensors.
        expected: Shapes of the model's.
        missing: Names among these that the file should hold and does not.
    """
    absent, unexpected = sorted(missing), sorted(set(found) - set(expected))
    if absent or unexpected:
        raise PlanError(
            f"{path} belongs to another model: missing {absent or 'none'}, not known {unexpected or 'none'}."
        )
    for name, shape in found.items():
        if shape != expected[name]:
            raise PlanError(
                f"{path}: {name!r} has shape {shape}, the plan beside it gives {expected[name]}: the two files do not "
                "belong together."
            )


def check_values(path: Path, name: str, found: object, expected: object, *, fits: bool, finite: bool) -> None:
    """Raise a `PlanError` for a tensor of another type than the model's, or a weight that is not finite."""
    if not fits:
        raise PlanError(f"{path}: {name!r} holds {found}, the model {expected}.")
    if not finite:
        raise PlanError(f"{path}: {name!r} holds NaN: the file is damaged.")
