"""Models from files, those of Keras 2 included where Keras 3 can take them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras

from reprune.core.errors import UnsupportedModelError


def load_model(path: str | Path) -> Any:
    """A model from a `.keras` file, or from a `.h5` file of Keras 2 or 3. It is not compiled.

    Args:
        path: The file.

    Raises:
        UnsupportedModelError: When the file cannot be opened; the message tells how to convert it.

    Example:
        >>> model = reprune.keras.load_model("trained.h5")              # doctest: +SKIP
        >>> small = reprune.prune(model, batches, ratio=0.5).model      # doctest: +SKIP
    """
    path = Path(path)
    if not path.exists():
        raise UnsupportedModelError(f"{path} does not exist.")
    if path.is_dir():
        raise UnsupportedModelError(
            f"{path} is a folder: a SavedModel holds computations, not layers, so there is nothing that could be made "
            f"smaller. {_convert(path)}"
        )
    try:
        with keras.saving.custom_object_scope({kind.__name__: _tolerant(kind) for kind in _LAYERS}):
            return keras.models.load_model(str(path), compile=False)
    except Exception as error:
        # Whatever a file of another version, or a class that is not known, leads to.
        raise UnsupportedModelError(
            f"{path} cannot be opened with Keras {keras.__version__}: {str(error).strip().splitlines()[0]}. Custom "
            f"classes must be registered first (keras.saving.register_keras_serializable). {_convert(path)}"
        ) from error


_LAYERS = (keras.layers.LSTM, keras.layers.GRU, keras.layers.SimpleRNN, keras.layers.RNN)


def _tolerant(kind: Any) -> Any:
    class Tolerant:
        """Makes the layer of Keras 3 from what Keras 2 wrote: an option that is gone was rarely used."""

        @classmethod
        def from_config(cls, config: dict[str, Any]) -> Any:
            config = dict(config)
            if config.pop("time_major", False):
                raise ValueError(f"{kind.__name__} {config.get('name')!r} has time first (time_major=True)")
            return kind.from_config(config)

    return Tolerant


def _convert(path: Path) -> str:
    return (
        "Where it opens (for Keras 2: pip install tf_keras), save what it holds: "
        f"python -c \"import tf_keras; m = tf_keras.models.load_model('{path}'); m.save('model.h5'); "
        "m.save_weights('model.weights.h5')\". Then open model.h5; or, if that fails, build the same architecture from "
        "keras.layers of Keras 3 and call its load_weights('model.weights.h5')."
    )
