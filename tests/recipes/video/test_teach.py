"""Fine-tuning of the video classifier with the dense model's answers, which are found again by a video's frames."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from reprune.core.saving.arrays import StoredArrays
from reprune.recipes.run.options import Options
from reprune.recipes.video import recipe as youtube8m
from reprune.recipes.video.answers import VideoAnswers, digests, store
from reprune.recipes.video.tagger import Tagger
from reprune.recipes.video.torch_recipe import YouTube8M
from tests.recipes.run.test_resume import CrashError, assert_same

RNG = np.random.default_rng(0)
FRAMES = RNG.integers(0, 256, (6, 5, 3), dtype=np.uint8)
LENGTHS = np.array([5, 2, 4, 5, 1, 3])


def ask(frames: Any, lengths: Any) -> Any:
    """A model of which every frame counts, but no padding."""
    valid = np.arange(frames.shape[1]) < lengths[:, None]
    return (frames * valid[..., None]).sum((1, 2))[:, None] / np.array([512.0, 64.0])


def test_answers_are_found_again_in_any_batch(tmp_path: Path) -> None:
    parts = [StoredArrays(tmp_path / name) for name in "ab"]
    assert store(parts[0], [(FRAMES[:2], LENGTHS[:2]), (FRAMES[2:3], LENGTHS[2:3])], ask, 5) == (3, 1)
    assert store(parts[1], [(FRAMES[3:5], LENGTHS[3:5])], ask, 5) == (2, 1)
    asked: list[Any] = []

    def noted(frames: Any, lengths: Any) -> Any:
        asked.extend(lengths)
        return ask(frames, lengths)

    answers = VideoAnswers([*parts, StoredArrays(tmp_path / "of a process elsewhere")], noted)
    order = np.array([4, 5, 0, 2, 1, 3])
    longer = np.pad(FRAMES, ((0, 0), (0, 2), (0, 0)))  # by padding that other videos of the batch need
    np.testing.assert_allclose(answers(longer[order], LENGTHS[order]), ask(FRAMES, LENGTHS)[order], rtol=1e-3)
    assert asked == [LENGTHS[5]]


def test_a_frame_more_is_another_video() -> None:
    assert len(set(digests(FRAMES[[0, 0, 0]], np.array([3, 4, 5])).tolist())) == 3


def test_a_share_of_each_label_is_what_the_dense_model_answers(tiny: Options, tmp_path: Path) -> None:
    options = replace(tiny, teach=0.25, output_decay=0.0)
    recipe = YouTube8M(options)
    data, model, dense = recipe.data(), recipe.build().eval(), YouTube8M(replace(options, seed=1)).build().eval()
    assert data.answer(lambda: dense, tmp_path, torch.device("cpu")) == ""
    data.learn(lambda: dense, tmp_path, torch.device("cpu"))
    share = next(iter(data.train_dataloader()))
    module = Tagger(model, options)
    module.log = lambda *_, **__: None
    with torch.no_grad():
        own, wanted = (net(share.batch.frames, share.batch.lengths) for net in (model, dense))
        labels = 0.75 * share.batch.labels + 0.25 * wanted.sigmoid()
        expected = functional.binary_cross_entropy_with_logits(own, labels, reduction="sum") / len(labels)
        assert module.training_step(share, 0).item() == pytest.approx(expected.item(), rel=1e-4)


def test_longer_videos_are_told(tiny: Options, tmp_path: Path) -> None:
    data = YouTube8M(replace(tiny, teach=0.25, max_frames=3)).data()
    said = data.answer(YouTube8M(tiny).build, tmp_path, torch.device("cpu"))
    assert said.startswith("90 of 90 videos have 3 frames or more (--max-frames)")


def test_crash_and_resume(tiny: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the videos, some are longer than what is used of them, and asked about anew in every pass."""
    options = replace(tiny, teach=0.5, epochs=1, max_frames=24)
    said: list[str] = []
    youtube8m.run(options, tmp_path / "undisturbed", say=said.append)
    assert any("videos have 24 frames or more" in line for line in said)
    steps, original = count(), Tagger.training_step

    def step(*given: Any) -> Any:
        if next(steps) == 9:  # the fourth of fine-tuning
            raise CrashError
        return original(*given)

    with monkeypatch.context() as patch:
        patch.setattr(Tagger, "training_step", step)
        with pytest.raises(CrashError):
            youtube8m.run(options, tmp_path / "run")
    youtube8m.run(options, tmp_path / "run", resume=True)
    assert_same(tmp_path / "run", tmp_path / "undisturbed")
