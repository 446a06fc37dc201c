"""Fine-tuning that learns from the dense model's answers as well: its loss, its dropout, and that it can be resumed."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

import reprune.torch as verbs
from reprune.core.errors import RecipeError
from reprune.recipes.language import recipe as language_model
from reprune.recipes.language.options import LanguageOptions
from reprune.recipes.language.torch_recipe import LanguageModel
from reprune.recipes.language.word_model import LanguageModule
from tests.recipes.run.test_resume import CrashError, assert_same

CRASH = 52  # An epoch of training and one of fine-tuning have some thirty windows each.


def test_the_loss_is_shared_between_the_text_and_the_teacher(talk: LanguageOptions) -> None:
    options = replace(talk, teach=0.25, dropout=0.0)
    recipe = LanguageModel(options)
    data, dense = recipe.data(), recipe.build()
    small = verbs.prune(dense, [data.example()], 0.5, method="random").model
    module = recipe.module(small, finetune=True, teacher=dense)
    module.log = lambda *_, **__: None
    carried: list[Any] = [None, None]
    for window in list(data.train_dataloader())[:2]:
        loss = module.training_step(window, 0)
        with torch.no_grad():
            answers = [model.eval()(window.words, state) for model, state in zip((small, dense), carried, strict=True)]
        carried = [state for _, state in answers]
        own, wanted = (logits.flatten(0, 1) for logits, _ in answers)
        text = functional.cross_entropy(own, window.following.flatten(), reduction="sum")
        taught = functional.cross_entropy(own, wanted.softmax(1), reduction="sum")
        expected = (0.75 * text + 0.25 * taught) / window.words.shape[1]
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert not any(name.startswith("teacher") for name in module.state_dict())
    assert all(weight.grad is None for weight in dense.parameters())


def test_a_smaller_model_takes_less_dropout(talk: LanguageOptions) -> None:
    recipe = LanguageModel(replace(talk, teach=0.5, dropout=0.4))
    dense = recipe.build()
    small = verbs.prune(dense, [recipe.data().example()], 0.75, method="random").model
    assert isinstance(recipe.module(small, finetune=True, teacher=dense), LanguageModule)
    assert small.dropout.p == pytest.approx(0.2)
    assert dense.dropout.p == 0.4


def test_crash_and_resume(talk: LanguageOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = replace(talk, teach=0.5, epochs=1, method="iss-gm")
    language_model.run(options, tmp_path / "undisturbed")
    steps, original = count(), LanguageModule.training_step

    def step(*given: Any) -> Any:
        if next(steps) == CRASH:
            raise CrashError
        return original(*given)

    with monkeypatch.context() as patch:
        patch.setattr(LanguageModule, "training_step", step)
        with pytest.raises(CrashError):
            language_model.run(options, tmp_path / "run")
    language_model.run(options, tmp_path / "run", resume=True)
    assert_same(tmp_path / "run", tmp_path / "undisturbed")


def test_a_share_is_one(talk: LanguageOptions) -> None:
    with pytest.raises(RecipeError, match=r"--teach 1\.5 is a share"):
        replace(talk, teach=1.5)
