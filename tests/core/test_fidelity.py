"""docs/fidelity.md holds what benchmarks/fidelity.py prints."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def printed():
    return runpy.run_path(str(ROOT / "benchmarks" / "fidelity.py"))["tables"]()


@pytest.fixture(scope="module")
def page():
    return (ROOT / "docs" / "fidelity.md").read_text()


def test_the_block_is_what_the_command_prints(page, printed):
    (block,) = re.findall(r"```text\n(.*?)```", page, flags=re.DOTALL)
    assert block == printed


def test_percentages_in_the_text_are_in_the_block(page, printed):
    text = re.sub(r"```text\n.*?```", "", page, flags=re.DOTALL)
    exact = re.findall(r"\d+\.\d%", text)
    assert len(exact) >= 6
    assert all(number in printed for number in exact)
