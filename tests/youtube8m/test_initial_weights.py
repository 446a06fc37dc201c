"""The paper's model starts alike in both frameworks: TensorFlow's initial weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from reprune.youtube8m.model import VideoClassifier


def test_as_tensorflow_starts_them() -> None:
    torch.manual_seed(0)
    model = VideoClassifier(20, 7, 32)
    for name, parameter in model.named_parameters():
        value = parameter.detach().double().numpy()
        if "weight_hh" in name:
            np.testing.assert_allclose(value.T @ value, np.eye(value.shape[1]), atol=1e-6)
        elif "weight" in name:
            limit = math.sqrt(6 / sum(value.shape))
            assert 0.9 * limit < np.abs(value).max() <= limit
            assert value.std() == pytest.approx(limit / math.sqrt(3), rel=0.1)
        else:
            # Gates are i, f, g, o.
            forget = np.repeat([0.0, 1.0, 0.0, 0.0], len(value) // 4) if "bias_ih" in name else np.zeros(len(value))
            np.testing.assert_array_equal(value, forget)


def test_as_keras_starts_its_own() -> None:
    keras = pytest.importorskip("keras")
    from reprune.keras.tracing.graph import array
    from reprune.youtube8m.keras_model import video_classifier

    keras.utils.set_random_seed(0)
    for weight in video_classifier(20, 7, 32).weights:
        value = array(weight).astype("float64")
        if weight.name == "recurrent_kernel":
            np.testing.assert_allclose(value @ value.T, np.eye(len(value)), atol=1e-5)
        elif weight.name == "kernel":
            limit = math.sqrt(6 / sum(value.shape))
            assert 0.9 * limit < np.abs(value).max() <= limit
        elif len(value) > 7:
            np.testing.assert_array_equal(value, np.repeat([0.0, 1.0, 0.0, 0.0], len(value) // 4))
        else:
            np.testing.assert_array_equal(value, 0)
