"""What docs and docstrings name is there: modules, files, and in the reference every public name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src"
TEXTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((SOURCE / "reprune").rglob("*.py"))]
ROOMS = "|".join(path.name for path in (SOURCE / "reprune").iterdir() if (path / "__init__.py").exists())
MODULES = {".".join(path.relative_to(SOURCE).with_suffix("").parts) for path in (SOURCE / "reprune").rglob("*.py")}
MODULES |= {name.removesuffix(".__init__") for name in MODULES}


def dangling(text: str) -> Iterator[str]:
    """Modules and files of reprune that a text names between backticks, and that are not there."""
    for name in re.findall(r"`(?:reprune\.)?((?:core|report|runtimes|verbs|recipes)\.[\w.]*\w)", text):
        parts = ["reprune", *name.split(".")]
        home = next(parts[:size] for size in range(len(parts), 0, -1) if ".".join(parts[:size]) in MODULES)
        file = SOURCE.joinpath(*home)
        code = (file / "__init__.py" if file.is_dir() else file.with_suffix(".py")).read_text(encoding="utf-8")
        if len(home) < len(parts) and not re.search(rf"\b{parts[len(home)]}\b", code):
            yield name
    for name in re.findall(rf"`((?:src/)?(?:reprune/)?(?:{ROOMS})/[\w/.]+)`", text):
        path = SOURCE / "reprune" / name.removeprefix("src/").removeprefix("reprune/")
        if "NAME" not in name and not path.exists():
            yield name


def test_a_name_that_is_not_there_is_found() -> None:
    said = "see `core.nothing`, `core.plan.Plan`, `core.plan.nobody` and `keras/rules/no.py`"
    assert list(dangling(said)) == ["core.nothing", "core.plan.nobody", "keras/rules/no.py"]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_are_there(path: Path) -> None:
    assert list(dangling(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("module", ["reprune", "reprune.torch", "reprune.keras"])
def test_the_reference_has_every_public_name(module: str) -> None:
    if module == "reprune.keras" and find_spec("keras") is None:
        pytest.skip("keras is not installed")
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"^::: [\w.]*?(\w+)$", text, re.MULTILINE))
    shown |= {name for line in re.findall(r"members: \[(.*)\]", text) for name in line.split(", ")}
    shown |= set(dir(import_module("reprune.core.errors")))
    assert set(import_module(module).__all__) <= shown
