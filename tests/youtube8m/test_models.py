"""The classifiers of videos: padding does not count, frames are features as the paper defines them."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch

from reprune.youtube8m.model import MeanPoolClassifier, VideoClassifier

LENGTHS = [3, 7, 1]
FRAMES = np.random.default_rng(0).integers(0, 256, (3, 7, 5), np.uint8)


def features(video: int, normalize: bool) -> torch.Tensor:
    """What a model reads of one video."""
    values = FRAMES[video, : LENGTHS[video]].astype(float) * 4 / 255 + 4 / 512 - 2
    return torch.tensor(values / np.linalg.norm(values, axis=1, keepdims=True) ** normalize, dtype=torch.float32)


@pytest.mark.parametrize("normalize", [True, False])
@torch.no_grad()
def test_each_video_is_classified_as_if_it_were_alone(normalize: bool) -> None:
    torch.manual_seed(0)
    model, baseline = VideoClassifier(5, 4, 6, normalize=normalize), MeanPoolClassifier(5, 4, 6, normalize=normalize)
    given = torch.tensor(FRAMES), torch.tensor(LENGTHS)
    logits, means = model(*given), baseline(*given)
    assert logits.shape == means.shape == (3, 4)
    for video in range(3):
        x = features(video, normalize)
        last = model.recurrent(model.bidirectional(x)[0])[0][-1]
        torch.testing.assert_close(logits[video], last @ model.output.weight.T + model.output.bias)
        hidden = (baseline.hidden.weight @ x.mean(0) + baseline.hidden.bias).clamp(min=0)
        torch.testing.assert_close(means[video], baseline.output.weight @ hidden + baseline.output.bias)


def test_sizes() -> None:
    model = VideoClassifier(5, 4, 2)
    both, second = model.bidirectional, model.recurrent
    assert (both.input_size, both.hidden_size, both.bidirectional) == (5, 1, True)
    assert (second.input_size, second.hidden_size, second.bidirectional) == (2, 2, False)
    assert model.normalize
    assert MeanPoolClassifier(5, 4).normalize
    for build in (VideoClassifier, MeanPoolClassifier):
        assert inspect.signature(build).parameters["hidden"].default == 1024  # As in the paper.
    for hidden in (0, 1, 7):
        with pytest.raises(ValueError, match=f"hidden={hidden} must be even"):
            VideoClassifier(5, 4, hidden)
