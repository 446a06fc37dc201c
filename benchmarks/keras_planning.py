"""What calibration and planning of a Keras model cost, beside its own plain passes over the same batches.

python benchmarks/keras_planning.py [--batches 8] [--methods reconstruct,iss-gm]

Times are of the processor, as other programs of the machine do not lengthen them. Asked: at most 1.5 times the plain
passes plus 5 seconds for a calibration.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import reprune.keras
from reprune.core.errors import CalibrationWarning

TIMES, SECONDS = 1.5, 5.0


def denoiser() -> tuple[Any, tuple[int, int, int]]:
    x = frames = keras.Input((500, 64))
    for _ in range(3):
        x = keras.layers.GRU(256, return_sequences=True)(x)
    return keras.Model(frames, keras.layers.Dense(64, activation="sigmoid")(x)), (16, 500, 64)


def tagger() -> tuple[Any, tuple[int, int, int]]:
    x = frames = keras.Input((None, 64))
    for layer in range(2):
        x = keras.layers.Bidirectional(keras.layers.LSTM(128, return_sequences=layer == 0))(x)
    return keras.Model(frames, keras.layers.Dense(16, activation="softmax")(x)), (32, 100, 64)


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.process_time()
    found = work()
    return time.process_time() - started, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="denoiser,tagger")
    parser.add_argument("--methods", default="reconstruct,iss-gm")
    parser.add_argument("--batches", type=int, default=8)
    options = parser.parse_args()
    warnings.simplefilter("ignore", CalibrationWarning)
    rng = np.random.default_rng(0)
    for name in options.models.split(","):
        keras.utils.set_random_seed(0)
        model, shape = {"denoiser": denoiser, "tagger": tagger}[name]()
        batches = [rng.normal(size=shape).astype("float32") for _ in range(options.batches)]
        model.predict_on_batch(batches[0])
        plain, _ = seconds(lambda: [model.predict_on_batch(batch) for batch in batches])  # noqa: B023
        print(f"{name}: {options.batches} plain passes {plain:.1f} s, asked {TIMES * plain + SECONDS:.1f} s")
        for method in options.methods.split(","):
            taken, found = seconds(lambda: reprune.keras.calibrate(model, batches, methods=[method]))  # noqa: B023
            planned, _ = seconds(lambda: found.plan(0.5, method=method))  # noqa: B023
            print(f"  {method}: calibrated in {taken:.1f} s ({taken / plain:.1f} times), planned in {planned:.1f} s")


if __name__ == "__main__":
    main()
