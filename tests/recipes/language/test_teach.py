"""Fine-tuning that learns from the dense model's answers as well: its loss, its dropout, and that it can be resumed."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch.nn import functional

import reprune.torch as verbs
from reprune.core.errors import RecipeError
from reprune.core.saving.arrays import StoredArrays
from reprune.recipes.language import recipe as language_model
from reprune.recipes.language.options import LanguageOptions
from reprune.recipes.language.torch_recipe import LanguageModel
from reprune.recipes.language.word_model import LanguageModule
from reprune.recipes.language.written import text_of
from tests.recipes.run.test_resume import CrashError, assert_same

CRASH = 52  # An epoch of training and one of fine-tuning have some thirty windows each.


@pytest.mark.parametrize("written", [0, 5000])
def test_the_loss_is_shared_between_the_text_and_the_dense_model(
    talk: LanguageOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    """It reads each window once, with the state that it carries, before the small model's first step.

    Of what the dense model wrote, only its answers count. It comes in streams of two windows.
    """
    monkeypatch.setattr("reprune.recipes.language.written.LENGTH", 2 * talk.unroll)
    options = replace(talk, teach=0.25, dropout=0.0, init=1.0, written=written)
    recipe = LanguageModel(options)
    data, dense = recipe.data(), recipe.build()
    small = verbs.prune(dense, [data.example()], 0.5, method="random").model
    asked = Mock(return_value=dense)
    data.answer(asked, tmp_path, torch.device("cpu"))
    data.answer(asked, tmp_path, torch.device("cpu"))
    assert asked.call_count == (2 if written else 1)
    module = recipe.module(small, finetune=True)
    module.log = lambda *_, **__: None
    data.learn(asked, tmp_path, torch.device("cpu"))
    carried: list[Any] = [None, None]
    stored = StoredArrays(tmp_path / "0-written")
    for number, window in enumerate(list(data.train_dataloader())[:3]):
        loss = module.training_step(window, 0)
        with torch.no_grad():
            answers = [model.eval()(window.words, state) for model, state in zip((small, dense), carried, strict=True)]
        carried = [state for _, state in answers]
        own, wanted = (logits.flatten(0, 1) for logits, _ in answers)
        text = functional.cross_entropy(own, window.following.flatten(), reduction="sum")
        taught = functional.cross_entropy(own, wanted.softmax(1), reduction="sum")
        expected = (0.75 * text + 0.25 * taught) / window.words.shape[1]
        if written:
            group, piece = divmod(number, 2)
            streams = slice(group * talk.batch_size, (group + 1) * talk.batch_size)
            words = torch.from_numpy(stored["words"][: (piece + 1) * talk.unroll, streams].astype("int64"))
            with torch.no_grad():
                own = small(words)[0][piece * talk.unroll :].flatten(0, 1)
            classes, logs = (torch.from_numpy(stored[name][:, streams].copy()) for name in ("classes", "logs"))
            kept = [part[piece * talk.unroll :][: talk.unroll].flatten(0, 1) for part in (classes.long(), logs.float())]
            wanted = torch.zeros_like(own).scatter(-1, kept[0], kept[1].exp())
            expected = (expected + functional.cross_entropy(own, wanted, reduction="sum") / talk.batch_size) / 2
        assert loss.item() == pytest.approx(expected.item(), rel=2e-4)
    assert asked.call_count == (2 if written else 1)


def test_the_dense_model_writes_what_it_finds_likely(talk: LanguageOptions) -> None:
    """Its answers are those to the words before; words come as often as they say, within four standard deviations."""
    recipe = LanguageModel(replace(talk, init=1.0))
    dense, start = recipe.build(), next(iter(recipe.data().train_dataloader())).words
    parts = list(text_of(dense, start, 25_000, talk.batch_size, talk.unroll, torch.device("cpu")))
    words, classes, logs = (
        torch.from_numpy(np.concatenate([part[name] for part in parts])) for name in ("words", "classes", "logs")
    )
    assert len(words) % talk.unroll == 0
    assert words.shape[1] % talk.batch_size == 0
    assert words.numel() >= 25_000
    found = torch.zeros(*words.shape, len(recipe.vocabulary)).scatter(-1, classes.long(), logs.float().exp())
    with torch.no_grad():
        wanted = dense.eval()(words.long())[0].softmax(-1)
    # How the streams were begun is forgotten by then.
    torch.testing.assert_close(found[200:], wanted[200:], rtol=2e-3, atol=1e-3)
    came = functional.one_hot(words[1:].long(), found.shape[-1])
    deviation = (found[:-1] * (1 - found[:-1])).sum((0, 1)).sqrt()
    assert ((came - found[:-1]).sum((0, 1)).abs() < 4 * deviation).all()
    assert found.max(-1).values.mean() < 0.9


def test_a_smaller_model_takes_less_dropout(talk: LanguageOptions) -> None:
    recipe = LanguageModel(replace(talk, dropout=0.4))
    dense = recipe.build()
    small = verbs.prune(dense, [recipe.data().example()], 0.75, method="random").model
    recipe.module(small, finetune=True)
    assert small.dropout.p == pytest.approx(0.2)
    recipe.module(dense)
    assert dense.dropout.p == 0.4
    LanguageModel(replace(talk, dropout=0.4, finetune_dropout=0.3)).module(small, finetune=True)
    assert small.dropout.p == 0.3
    with pytest.raises(RecipeError, match=r"--finetune-dropout 1\.0 is a fraction"):
        replace(talk, finetune_dropout=1.0)


def crashing_at(step_number: int, patch: pytest.MonkeyPatch) -> None:
    """Let one training step fail, counted from here."""
    steps, original = count(), LanguageModule.training_step

    def step(*given: Any) -> Any:
        if next(steps) == step_number:
            raise CrashError
        return original(*given)

    patch.setattr(LanguageModule, "training_step", step)


def test_crash_and_resume(talk: LanguageOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = replace(talk, teach=0.5, epochs=1, method="iss-gm", written=3000)
    language_model.run(options, tmp_path / "undisturbed")
    with monkeypatch.context() as patch:
        crashing_at(CRASH, patch)
        with pytest.raises(CrashError):
            language_model.run(options, tmp_path / "run")
    assert (tmp_path / "run" / "answers").exists()
    said: list[str] = []
    language_model.run(options, tmp_path / "run", resume=True, say=said.append)
    assert_same(tmp_path / "run", tmp_path / "undisturbed")
    assert not any("Asking the dense model" in line for line in said)
    assert not (tmp_path / "run" / "answers").exists()


def test_units_leave_in_stages_and_are_taught_between(
    talk: LanguageOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The teacher is the other run's dense model throughout, not what the run itself calls dense at its end."""
    language_model.run(replace(talk, epochs=1, finetune_epochs=0), tmp_path / "dense")
    options = replace(
        talk, teach=0.5, dense=str(tmp_path / "dense"), schedule="gradual:4", method="reconstruct", epochs=1
    )
    seen: list[tuple[int, Any]] = []
    original = LanguageModule.training_step

    def step(module: LanguageModule, window: Any, index: int) -> Any:
        seen.append((sum(layer.hidden_size for layer in module.model.recurrent), window.answers))
        return original(module, window, index)

    with monkeypatch.context() as patch:
        patch.setattr(LanguageModule, "training_step", step)
        language_model.run(options, tmp_path / "undisturbed")
    sizes = [size for size, _ in seen]
    assert sizes[0] == 24
    assert sizes[-1] == 12
    assert len(set(sizes)) > 3
    recipe = LanguageModel(options)
    dense = recipe.load(recipe.build(), tmp_path / "dense" / "dense.safetensors").eval()
    window = next(iter(recipe.data().train_dataloader()))
    with torch.no_grad():
        wanted = dense(window.words)[0].log_softmax(-1)
    for _, answers in (seen[0], seen[recipe.data().training_batches()]):
        torch.testing.assert_close(answers.logs, wanted.gather(-1, answers.classes), rtol=1e-3, atol=1e-3)
    with monkeypatch.context() as patch:
        crashing_at(9, patch)
        with pytest.raises(CrashError):
            language_model.run(options, tmp_path / "run")
    language_model.run(options, tmp_path / "run", resume=True)
    assert_same(tmp_path / "run", tmp_path / "undisturbed")


def test_stages_need_a_dense_model(talk: LanguageOptions) -> None:
    with pytest.raises(RecipeError, match=r"--teach 0\.5 with --schedule gradual:4.* Give --dense"):
        replace(talk, teach=0.5, schedule="gradual:4")


def test_a_share_is_one(talk: LanguageOptions) -> None:
    with pytest.raises(RecipeError, match=r"--teach 1\.5 is a share"):
        replace(talk, teach=1.5)
