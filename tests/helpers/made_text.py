"""Text made by a chain: each word follows from the one before, so that a model has something to learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def write_text(path: Path, lines: int, seed: int = 0) -> None:
    chain = np.random.default_rng(0).dirichlet(np.full(26, 0.08), size=26)
    rng = np.random.default_rng([seed, 1])
    word, text = 0, []
    for _ in range(lines):
        line = []
        for _ in range(int(rng.integers(4, 9))):
            word = int(rng.choice(26, p=chain[word]))
            line.append("abcdefghijklmnopqrstuvwxyz"[word])
        text.append(" ".join(line) + "\n")
    path.write_text("".join(text))
