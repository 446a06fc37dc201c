"""What is not installed is named by its package and by the extra that brings it."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest

from reprune.core.extras import _PACKAGES, imported, lacking


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lacking("google.protobuf", "This") == "This needs protobuf: pip install 'reprune[youtube8m]'"
    assert lacking("litert_torch", "This") == "This needs litert-torch: pip install litert-torch"
    assert lacking("shop", "This") is lacking(None, "This") is None
    assert imported("reprune.core.extras") is sys.modules["reprune.core.extras"]
    monkeypatch.setitem(sys.modules, "reprune.core.made_up", None)
    with pytest.raises(ModuleNotFoundError, match=r"import of reprune\.core\.made_up halted"):
        imported("reprune.core.made_up")
    monkeypatch.setitem(sys.modules, "google_crc32c", None)
    monkeypatch.delitem(sys.modules, "reprune.youtube8m.records", raising=False)
    monkeypatch.delitem(sys.modules, "reprune.youtube8m.framing", raising=False)
    with pytest.raises(
        ModuleNotFoundError, match=r"reprune.youtube8m.records needs google-crc32c: pip install 'reprune"
    ):
        imported("reprune.youtube8m.records")


def test_the_extras_bring_what_is_said() -> None:
    extras = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    extras = extras["optional-dependencies"]
    for package, extra in _PACKAGES.values():
        brought = "executorch" if package == "torchao" else package  # ExecuTorch needs torchao itself.
        assert not extra or any(line.startswith(brought) for line in extras[extra]), package
