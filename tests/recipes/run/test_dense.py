"""A run that takes the dense model of another one: nothing is trained twice, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from reprune.core.errors import RecipeError
from reprune.recipes.language import recipe as language_model
from reprune.recipes.language.options import LanguageOptions
from reprune.recipes.language.word_model import LanguageModule
from reprune.recipes.run.torch_recipe import TorchRecipe
from tests.recipes.run.test_resume import assert_same


@pytest.fixture(scope="module")
def trained(talk: LanguageOptions, tmp_path_factory: pytest.TempPathFactory) -> Any:
    options, folder = replace(talk, epochs=2, finetune_epochs=1), tmp_path_factory.mktemp("dense") / "run"
    language_model.run(options, folder)
    return options, folder


def test_ends_as_the_run_that_trained_it(trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options, folder = trained
    fitted: list[str] = []
    original = TorchRecipe._fit
    monkeypatch.setattr(
        TorchRecipe, "_fit", lambda self, run, part, *a: (fitted.append(part), original(self, run, part, *a))
    )
    language_model.run(replace(options, dense=str(folder)), tmp_path / "run")
    assert fitted == ["finetune"]
    assert_same(tmp_path / "run", folder)


def test_methods_that_act_on_training_start_from_it(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, folder = trained
    options = replace(options, dense=str(folder), method="neuron-selection", epochs=1, finetune_epochs=0)
    seen: list[dict[str, torch.Tensor]] = []
    step = LanguageModule.training_step

    def first(self: LanguageModule, batch: Any, batch_idx: int) -> torch.Tensor:
        if not seen:
            seen.append({name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()})
        return step(self, batch, batch_idx)

    monkeypatch.setattr(LanguageModule, "training_step", first)
    language_model.run(options, tmp_path / "run")
    before, after = load_file(folder / "dense.safetensors"), load_file(tmp_path / "run" / "dense.safetensors")
    assert all(torch.equal(tensor, before[name]) for name, tensor in seen[0].items())
    assert not torch.equal(before["output.weight"], after["output.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": 10}, "other sizes"),
        ({"vocabulary": 20}, "another vocabulary.txt"),
        ({"dense": "x"}, "no dense model"),
    ],
)
def test_what_does_not_fit(change: dict[str, Any], message: str, trained: Any, tmp_path: Path) -> None:
    options, folder = trained
    with pytest.raises(RecipeError, match=message):
        language_model.run(replace(options, **{"dense": str(folder), **change}), tmp_path / "run")
