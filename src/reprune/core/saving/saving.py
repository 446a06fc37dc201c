"""The folder that `Result.save` writes and `load` reads: weights and the plan that belongs to them.

`plan.json` ends with two digests: that of the weights file beside it, and that of everything in `plan.json` before. So
`load` sees a change of any byte of either file, and a file of another run in the place of one. Folders written before
there were digests have neither.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from reprune.core.errors import PlanError, SaveError
from reprune.core.plan import Plan
from reprune.core.saving.digest import digest_of_bytes, digest_of_file
from reprune.core.saving.files import part_of, reason, sole_writer, sync_folder, writing

WEIGHTS, PLAN, REPORT = "model.safetensors", "plan.json", "report.html"

Shapes = Mapping[str, tuple[int, ...]]
T = TypeVar("T")

_SEAL = re.compile(rb',\n"weights_file": "([^"]+)",\n"digest": "([^"]+)"\n}\n\Z')
_READS = 5


Read = Callable[[Plan, Path, bool], T]
"""Makes something of a plan and the weights file that belongs to it; the last argument says whether digests have shown
that both are as they were saved. Those of older versions have none."""


def write_folder(folder: Path, plan: Plan, writers: Mapping[str, Callable[[Path], object]]) -> None:
    """Write weights, plan and whatever else there is; all are complete on disk before the first takes its place.

    Stopped at any moment, the folder holds what it held or what it was to hold, and `read_folder` gives that.

    Args:
        folder: Where to write; it is made if need be.
        plan: The plan.
        writers: What writes each other file, by name; that of the weights among them.

    Raises:
        SaveError: When the folder cannot be written, or another process is writing there.
    """
    from safetensors import SafetensorError

    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with sole_writer(folder):
            _finish_interrupted(folder)
            _write(folder, plan, writers)
    except SaveError:
        raise
    except (OSError, SafetensorError) as error:
        why = reason(error) if isinstance(error, OSError) else f"{error}: make room there, or give another place"
        raise SaveError(f"{folder} cannot be written. {why}. What it held is as it was.") from error
    finally:
        if made and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _finish_interrupted(folder: Path) -> None:
    """Put the plan in its place of a save that was stopped when only its weights were: no other belongs to them."""
    text, weights = part_of(folder / PLAN), folder / WEIGHTS
    if text.exists() and weights.exists() and _sealed_for(text) == digest_of_file(weights):
        text.replace(folder / PLAN)


def _write(folder: Path, plan: Plan, writers: Mapping[str, Callable[[Path], object]]) -> None:
    parts = {name: part_of(folder / name) for name in (*writers, PLAN)}
    try:
        for name, write in writers.items():
            with writing(parts[name]):
                write(parts[name])
        with writing(parts[PLAN]):
            parts[PLAN].write_bytes(_sealed(plan, parts[WEIGHTS]))
        sync_folder(folder)
    except BaseException:
        for part in parts.values():
            part.unlink(missing_ok=True)
        raise
    for name in (WEIGHTS, PLAN, *(name for name in writers if name != WEIGHTS)):
        parts[name].replace(folder / name)
    sync_folder(folder)


def _sealed(plan: Plan, weights: Path) -> bytes:
    """The content of `plan.json`; see the top of this file."""
    body = plan.decisions().to_json().removesuffix("\n}\n")
    body += f',\n"weights_file": "{digest_of_file(weights)}",\n"digest": "'
    return f'{body}{digest_of_bytes(body.encode())}"\n}}\n'.encode()


def _sealed_for(path: Path) -> str | None:
    """The digest of the weights that a plan was saved with; None when the file is not one, or not whole."""
    text = path.read_bytes()
    seal = _SEAL.search(text)
    if seal is None or digest_of_bytes(text[: seal.start(2)]) != seal[2].decode(errors="replace"):
        return None
    return seal[1].decode(errors="replace")


def read_folder(directory: str | Path, read: Read[T]) -> T:
    """What `read` makes of the plan in a folder and the weights file beside it, both as they were saved.

    Raises:
        PlanError: When one of them is missing, cannot be read or is damaged, or they do not belong together.
    """
    return read_pair(Path(directory) / PLAN, Path(directory) / WEIGHTS, read)


def read_pair(plan: Path, weights: Path, read: Read[T]) -> T:
    """Like `read_folder`, of two files wherever they are."""
    for path in (plan, weights):
        if not path.is_file() and not (path == plan and part_of(plan).is_file()):
            raise PlanError(f"{path} does not exist: give the directory that Result.save() wrote.")
    for _ in range(_READS):
        before = _state(plan, weights)
        try:
            found = _read(plan, weights, read)
        except PlanError:
            if _state(plan, weights) == before:
                raise
        else:
            if _state(plan, weights) == before:
                return found
    raise PlanError(f"{weights.parent} is being written to again and again: load it when that is over.")


def _state(*paths: Path) -> list[tuple[int, int, int] | None]:
    """What changes when another process replaces a file."""
    found = [path.stat() if path.exists() else None for path in paths]
    return [status and (status.st_ino, status.st_size, status.st_mtime_ns) for status in found]


def _read(plan: Path, weights: Path, read: Read[T]) -> T:
    problem = None if plan.is_file() else PlanError(f"{plan} does not exist: give what Result.save() wrote.")
    try:
        lies_there = digest_of_file(weights)
        # The second one is there when saving was stopped after the weights had taken their place.
        for path in (plan, part_of(plan)):
            if not path.is_file():
                continue
            try:
                found, belongs_to = _plan_of(path)
            except PlanError as error:
                problem = problem or error
                continue
            if belongs_to == lies_there or (belongs_to is None and path == plan):
                return read(found, weights, belongs_to is not None)
            problem = problem or _stranger(found, weights, read)
    except OSError as error:
        raise PlanError(f"{error.filename or weights} cannot be read: {error.strerror or error}.") from None
    assert problem is not None
    raise problem


def _stranger(plan: Plan, weights: Path, read: Read[T]) -> PlanError:
    """What is wrong with a weights file that is not the one a plan was saved with."""
    try:
        read(plan, weights, False)
    except PlanError as error:
        return error  # It says more.
    return PlanError(
        f"{weights} is not the file that {PLAN} was saved with: one of the two is damaged, or of another run. Save the "
        "result again."
    )


def _plan_of(path: Path) -> tuple[Plan, str | None]:
    """A plan, and the digest of the weights it was saved with; None where the file is of before there were any."""
    text = path.read_bytes()
    try:
        plan = Plan.from_json(text)
    except PlanError as error:
        raise PlanError(f"{path}: {error}") from None
    belongs_to = _sealed_for(path)
    if belongs_to is None and b'"weights_file"' in text:
        raise PlanError(
            f"{path} is damaged: it is not what was saved. A plan can be changed in memory (Plan.from_json, with_kept) "
            "and applied; this file belongs to the weights beside it."
        )
    return plan, belongs_to


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


def check_savable(
    name: str,
    kind: object,
    shape: tuple[int, ...],
    planned: tuple[int, ...] | None,
    *,
    fits: bool,
    finite: bool,
) -> None:
    """Raise a `PlanError` for a weight that could be saved, but not loaded.

    Args:
        name: Its name.
        kind: Its type.
        shape: Its shape.
        planned: The shape that the plan gives it; None for a weight that the plan does not know.
        fits: Whether the type is one that `load` takes.
        finite: Whether it holds no NaN.
    """
    if planned not in (None, shape):
        raise PlanError(f"{name!r} has shape {shape}, the plan of this result gives {planned}: nothing was saved.")
    if not fits:
        raise PlanError(f"{name!r} holds {kind}, which load() would refuse: save the model in floating point.")
    if not finite:
        raise PlanError(
            f"{name!r} holds NaN, which load() would refuse: nothing was saved. Did training diverge? Go back to "
            "weights from before."
        )
