"""Everything reprune raises on purpose, under one base class.

A message says what was wrong, where (layer path, file and byte offset, source line) and what to do about it.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable
from difflib import get_close_matches
from itertools import count
from pathlib import Path
from types import FrameType

_PACKAGE = str(Path(__file__).parent.parent)


class RepruneError(Exception):
    """Base class of all errors that reprune raises on purpose."""


class UnsupportedModelError(RepruneError):
    """The model has nothing that can be pruned, or holds a construct that cannot be handled."""


def keras_2_error(what: str) -> UnsupportedModelError:
    """The error for what belongs to Keras 2, with the way to Keras 3."""
    return UnsupportedModelError(
        f"{what} is not of Keras 3, which reprune needs (TensorFlow 2.16 or later). In Keras 2, save the model with "
        "model.save('model.h5'); with Keras 3, open it with reprune.keras.load_model('model.h5'). If that fails, save "
        "its weights with model.save_weights('model.weights.h5'), build the same architecture from keras.layers of "
        "Keras 3, and call its load_weights('model.weights.h5'). A SavedModel holds no layers and cannot be pruned."
    )


class BudgetError(RepruneError, ValueError):
    """No plan meets the budget under the given bounds. The message names the nearest possible one."""


class PlanError(RepruneError, ValueError):
    """A plan is malformed, or does not belong to the model it is applied to."""


class SaveError(RepruneError, OSError):
    """A file cannot be written: no room, no permission, or another process is writing there."""


class StatisticsError(RepruneError, ValueError):
    """The calibration responses cannot be used: none at all, NaN or infinite values, or wrong sizes."""


class VerificationError(RepruneError):
    """The pruned model would not compute what the masked one does. Nothing is returned rather than a wrong model."""


class RecordError(RepruneError, ValueError):
    """A record file is damaged or does not hold what was asked for. The message names file, record and byte offset."""


class RecipeError(RepruneError, ValueError):
    """A training run cannot start or resume with the options it was given."""


class InternalError(RepruneError):
    """reprune's own code failed. The message says where, and how to go on without that part of the model."""


class BatchError(RepruneError, ValueError):
    """The model does not run on the batches. The message says what was passed and what would run."""


class BatchWarning(UserWarning):
    """Only a part of each batch is given to the model. The message has the `forward=` that says so."""


class CalibrationWarning(UserWarning):
    """The calibration batches are too few for what is estimated from them."""


class PlanWarning(UserWarning):
    """A plan is applied to other weights than it was made from."""


def warn(message: str, category: type[Warning]) -> None:
    """Warn of what the caller gave, at the line of his program that called reprune."""
    frame: FrameType | None = sys._getframe()
    level = 1
    for depth in count(1):
        if frame is None:
            break
        if frame.f_code.co_filename.startswith(_PACKAGE):
            level = depth + 1
        frame = frame.f_back
    warnings.warn(message, category, stacklevel=level)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence that names the known word nearest to one that is not known; empty when none is near.

    Example:
        >>> did_you_mean("recontsruct", ["reconstruct", "random"])
        " Did you mean 'reconstruct'?"
    """
    near = get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
