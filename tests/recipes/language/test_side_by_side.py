"""Models that are taught side by side, as `benchmarks/penn_treebank.py` does it, learn what each would alone."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from reprune.core.saving.arrays import StoredArrays
from reprune.recipes.language.data import Windows, answers_to
from reprune.recipes.language.word_model import WordModel
from reprune.recipes.language.written import text_of

sys.path.append(str(Path(__file__).parents[3] / "benchmarks"))
from side_by_side import STREAMS, UNROLL, Setting, SideBySide, Streams

SHARE, RATE, CPU = 0.3, 0.7, torch.device("cpu")


def test_each_learns_as_it_would_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside `nn.LSTM`, autograd and steps written out; one of two models does not read what the dense one wrote."""
    monkeypatch.setattr("reprune.recipes.language.written.LENGTH", 3 * UNROLL)
    torch.manual_seed(0)
    dense, start = WordModel(30, 6, init=0.8).eval(), WordModel(30, 5, init=0.8)
    words = torch.randint(0, 30, (2 * UNROLL + 8, STREAMS))
    windows = Windows(words[:-1], words[1:], UNROLL)
    answers, written = StoredArrays(tmp_path / "answers"), StoredArrays(tmp_path / "written")
    answers.write(answers_to(windows, dense, CPU))
    written.write(text_of(dense, words, 18 * UNROLL * STREAMS, STREAMS, UNROLL, CPU))
    own = torch.from_numpy(written["words"].astype(np.int64))
    texts = Streams(words[:-1], words[1:], answers, "cpu"), Streams(own, None, written, "cpu")
    assert [text.count for text in texts] == [2, 18]

    settings = Setting(0.0, 1.0, 1e-2), Setting(0.0, 0.5, 0.0, written=False)
    copies, alone = SideBySide(start, settings, "cpu"), [copy.deepcopy(start) for _ in settings]
    states: list[list[Any]] = [[None, None], [None, None]]
    copies.rate.fill_(RATE)
    for number in range(4):
        for part, text in enumerate(texts):
            if text.go_to(number):
                copies.begin(part)
                for state in states:
                    state[part] = None
        copies.learn(*texts, SHARE)
        for model, setting, state in zip(alone, settings, states, strict=True):
            _step(model, setting, state, texts)
    for index, model in enumerate(alone):
        for (name, value), wanted in zip(copies.model(index).named_parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-6, msg=name)
    losses = [sum(_losses(model, windows)) / (words.numel() - STREAMS) for model in alone]
    assert copies.perplexities(windows) == pytest.approx(np.exp(losses), rel=1e-5)


def _step(model: WordModel, setting: Setting, state: list[Any], texts: tuple[Streams, Streams]) -> None:
    loss = torch.zeros(())
    for part, text in enumerate(texts[: 1 + setting.written]):
        words, following, answers = text.read()
        logits, after = model(words, state[part])
        state[part] = tuple(tuple(value.detach() for value in layer) for layer in after)
        chances = logits.log_softmax(-1)
        taught = -(answers.logs.softmax(-1) * chances.gather(-1, answers.classes)).sum()
        told = functional.cross_entropy(logits.flatten(0, 1), following.flatten(), reduction="sum")
        loss = loss + (taught if part else SHARE * taught + (1 - SHARE) * told)
    model.zero_grad()
    (loss / (STREAMS * (1 + setting.written))).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 10.0)
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(1 - RATE * setting.rate * setting.decay).sub_(value.grad, alpha=RATE * setting.rate)


@torch.no_grad()
def _losses(model: WordModel, windows: Windows) -> list[float]:
    found, state = [], None
    for window in windows:
        logits, state = model(window.words, state)
        found.append(float(functional.cross_entropy(logits.flatten(0, 1), window.following.flatten(), reduction="sum")))
    return found
