"""What Keras is fed, against the PyTorch loader and NumPy."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reprune.youtube8m.epochs import Epochs
from reprune.youtube8m.records import find_files, write_records
from reprune.youtube8m.torch_loader import RecordDataset, RecordLoader
from tests.youtube8m.tfrecord_reference import FEATURES, random_records

keras = pytest.importorskip("keras")
pytest.importorskip("tensorflow")
keras_batches = pytest.importorskip("reprune.youtube8m.keras_batches")
video_classifier = pytest.importorskip("reprune.youtube8m.keras_model").video_classifier

FRAMES = np.random.default_rng(0).integers(0, 256, (2, 3, 4), np.uint8)
FRAMES[1, 0] = 128  # Close to nothing, and scaled to length 1 all the same.
LENGTHS = np.array([2, 3], "int32")


def test_batches_are_those_of_the_pytorch_loader(tmp_path: Path) -> None:
    write_records(tmp_path / "a", random_records(11), FEATURES)
    ours = keras_batches.RecordBatches(Epochs(find_files(tmp_path / "a"), 16, FEATURES, max_frames=4), 4)
    theirs = RecordLoader(RecordDataset(tmp_path / "a", classes=16, batch_size=4, features=FEATURES, max_frames=4))

    def same(found: list[Any], expected: list[Any]) -> bool:
        assert [labels.dtype for _, labels in found] == [np.float32] * len(found)
        assert all(inputs["frames"].dtype == np.uint8 for inputs, _ in found)
        assert all(inputs["lengths"].dtype == np.int32 for inputs, _ in found)
        return [
            (inputs["frames"].tolist(), inputs["lengths"].tolist(), labels.tolist()) for inputs, labels in found
        ] == [(batch.frames.tolist(), batch.lengths.tolist(), batch.labels.int().tolist()) for batch in expected]

    epochs = [list(theirs) for _ in range(3)]
    assert [len(epoch) for epoch in epochs] == [3] * 3
    assert same(list(ours), epochs[0])
    assert ours.epoch == 1
    next(iter(ours))  # A pass that is given up is one all the same.
    assert same(list(ours), epochs[2])
    ours.start(1, skip=2)
    assert (ours.epoch, ours.skip) == (1, 2)
    assert same(list(ours), epochs[1][2:])
    assert (ours.epoch, ours.skip) == (2, 0)
    assert same([(inputs, labels) for inputs, labels in ours.dataset().as_numpy_iterator()], epochs[2])
    ours.start(0)
    assert ours.skip == 0
    ours.answered = lambda inputs, labels: labels.sum(1) + inputs["lengths"]
    expected = [batch.labels.sum(1) + batch.lengths for batch in epochs[0]]
    assert [answers.tolist() for _, answers in ours] == [answers.tolist() for answers in expected]


@pytest.mark.parametrize("normalize", [True, False])
def test_bytes_become_features(normalize: bool) -> None:
    values = FRAMES.astype(float) * 4 / 255 + 4 / 512 - 2
    expected = values / np.linalg.norm(values, axis=-1, keepdims=True) ** normalize
    expected[0, 2:] = 0
    layer = keras_batches.Dequantize(normalize)
    np.testing.assert_allclose(np.asarray(layer(FRAMES, LENGTHS)), expected, rtol=1e-4, atol=1e-6)
    again = keras_batches.Dequantize.from_config(layer.get_config())
    assert again.normalize == normalize
    half = np.asarray(keras_batches.Dequantize(normalize, dtype="float16")(FRAMES, LENGTHS))
    assert half.dtype == np.float16
    np.testing.assert_allclose(half, expected, rtol=2e-3)
    assert layer.compute_output_shape((None, None, 4), (None,)) == (None, None, 4)
    assert keras_batches.Dequantize().normalize


def test_the_classifier_s_layers_and_its_penalty() -> None:
    model = video_classifier(4, 3, 2, output_decay=0.5)
    kernel = np.asarray(model.get_layer("output").kernel)
    np.testing.assert_allclose(float(sum(model.losses)), 0.25 * (kernel**2).sum(), rtol=1e-6)
    assert not video_classifier(4, 3, 2).losses
    assert model.get_layer("bidirectional").forward_layer.units == 1
    assert model.get_layer("recurrent").units == 2
    assert inspect.signature(video_classifier).parameters["hidden"].default == 1024
    assert model.get_layer("dequantize").normalize
    assert not video_classifier(4, 3, 2, normalize=False).get_layer("dequantize").normalize
    # A video that is padded gives the same as one that is not.
    padded = model.predict_on_batch({"frames": FRAMES, "lengths": LENGTHS})
    alone = model.predict_on_batch({"frames": FRAMES[:1, :2], "lengths": LENGTHS[:1]})
    np.testing.assert_allclose(padded[:1], alone, rtol=1e-5, atol=1e-6)
    for hidden in (0, 1, 7):
        with pytest.raises(ValueError, match=f"hidden={hidden} must be even"):
            video_classifier(4, 3, hidden)
