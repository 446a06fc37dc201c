"""Every Python block of README and docs runs, each page in a fresh process.

The blocks of a page run one after the other, as a reader would type them. What they take for granted (a model, data)
stands in a comment of the page, `<!-- setup … -->`, which runs before the block that follows it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^<!-- setup\n(.*?)^-->$|^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def program(page: str) -> str:
    """The page's blocks as one program whose lines have the numbers that they have in the page."""
    lines = [""] * page.count("\n")
    for found in BLOCK.finditer(page):
        start = page.count("\n", 0, found.start()) + 1
        for offset, line in enumerate((found[1] or found[2]).splitlines()):
            lines[start + offset] = line
    return "\n".join(lines)


def test_blocks_are_found() -> None:
    text = "a\n<!-- setup\nx = 1\n-->\n```python\ny = x\n```\n```sh\nls\n```\n"
    assert program(text).split("\n")[2:6:3] == ["x = 1", "y = x"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page(page: Path, tmp_path: Path) -> None:
    code = program(page.read_text(encoding="utf-8"))
    if not code.strip():
        pytest.skip("no Python on this page")
    script = tmp_path / f"page_{page.stem}.py"
    script.write_text(code, encoding="utf-8")
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
