"""Change the code in small ways, one at a time, and see whether its tests notice: `make mutants`.

A change that no test notices survives: either a test is missing, or the change makes no difference. Without arguments,
the files of `src/` that differ from `main` are changed, only in the lines that differ.

    python benchmarks/mutants.py src/reprune/core/saving/digest.py --tests tests/core/test_digest.py
    python benchmarks/mutants.py src/reprune/torch/surgery --tests tests/torch/surgery tests/torch/tracing --sample 200

The tests run once, to see that they pass and which of them reach which line. Then every change is tried in a process of
its own that starts with everything imported, by the tests that reach its statement, quick ones first.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
# Before anything reads them: one thread, so that processes can be forked, and the tests' processes import this source.
os.environ.update(OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT / "src"))
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

import pytest  # noqa: E402
from forked import Hunt  # noqa: E402
from mutations import mutations  # noqa: E402


def changed_lines() -> dict[Path, set[int] | None]:
    """Files of `src/` that differ from `main`, and their lines that do."""
    diff = subprocess.run(
        ["git", "diff", "-U0", "main", "--", "src"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    found: dict[Path, set[int]] = {}
    for line in diff.splitlines():
        if line.startswith("+++ b/"):
            lines = found.setdefault(ROOT / line[6:], set())
        elif match := re.match(r"@@ -\S+ \+(\d+)(?:,(\d+))? @@", line):
            start, count = int(match[1]), int(match[2] or 1)
            lines.update(range(start, start + count))
    return {path: lines for path, lines in found.items() if path.suffix == ".py" and path.exists()}


def tests_of(path: Path) -> str:
    """The test file that is named after a module, in the folder that mirrors its room or above, or else that folder."""
    room = ROOT / "tests" / path.relative_to(ROOT / "src" / "reprune").parent
    rooms = [folder for folder in (room, *room.parents) if folder.exists() and folder.is_relative_to(ROOT / "tests")]
    named = (folder / f"test_{path.stem}.py" for folder in rooms)
    return str(next((file for file in named if file.exists()), rooms[0]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "files", nargs="*", type=Path, help="files or folders to change; by default what differs from main"
    )
    parser.add_argument("--tests", nargs="+", help="what should notice; by default the tests of each file's room")
    parser.add_argument("--sample", type=int, help="change this many places, chosen at random, in place of all")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default: 0)")
    parser.add_argument("--seconds", type=float, default=20, help="of tests for one change (default: 20)")
    given = parser.parse_args()
    named = {file.resolve(): None for path in given.files for file in (path.rglob("*.py") if path.is_dir() else [path])}
    chosen = named or changed_lines()
    tried = [(path, change) for path in sorted(chosen) for change in mutations(path.read_text(), chosen[path])]
    if given.sample is not None and given.sample < len(tried):
        tried = random.Random(given.seed).sample(tried, given.sample)
    if not tried:
        print("nothing to change")
        return 0
    tests = given.tests or sorted({tests_of(path) for path, _ in tried})
    return pytest.main(
        ["-q", "-p", "no:cacheprovider", "--capture=no", *tests], plugins=[Hunt(ROOT, tried, given.seconds)]
    )


if __name__ == "__main__":
    sys.exit(main())
