"""`python tests/docs/archives.py dist`: what a wheel and a source archive must and must not hold."""

from __future__ import annotations

import sys
import tarfile
import zipfile
from pathlib import Path


def check(folder: Path) -> None:
    (wheel,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert any(name.endswith("reprune/py.typed") for name in names), "the wheel lacks py.typed"
    assert any(name.endswith(".jinja") for name in names), "the wheel lacks the report's template"
    assert not [name for name in names if name.startswith(("tests", "benchmarks"))], "the wheel holds tests"
    with tarfile.open(source) as archive:
        names = ["/".join(name.split("/")[1:]) for name in archive.getnames()]
    for wanted in ("README.md", "CHANGELOG.md", "CITATION.cff", "docs/api.md", "examples/prune_torch.py"):
        assert wanted in names, f"the source archive lacks {wanted}"
    assert not [name for name in names if name.startswith("tests/")], "the source archive holds tests"


if __name__ == "__main__":
    check(Path(sys.argv[1]))
