"""Warnings at the caller's line, and words that were nearly right."""

from __future__ import annotations

import warnings
from pathlib import Path

import reprune
from reprune.core.errors import PlanWarning, UnsupportedModelError, did_you_mean, keras_2_error, warn


def test_warnings_name_the_line_that_called_the_package() -> None:
    """Also where the package calls back into the program and is called from there again."""
    inside: dict[str, object] = {}
    source = "def run(call):\n    return call()\n"
    exec(compile(source, str(Path(reprune.__file__).parent / "verbs" / "made_up.py"), "exec"), inside)
    run = inside["run"]
    assert callable(run)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn("mind", PlanWarning)
        run(lambda: warn("mind", PlanWarning))
        run(lambda: run(lambda: [warn("mind", PlanWarning)]))
    assert {(warning.filename, warning.category) for warning in caught} == {(__file__, PlanWarning)}
    start = caught[0].lineno
    assert [warning.lineno - start for warning in caught] == [0, 1, 2]


def test_what_belongs_to_keras_2_is_told_the_way() -> None:
    error = keras_2_error("This model")
    assert isinstance(error, UnsupportedModelError)
    assert str(error).startswith("This model is not of Keras 3, which reprune needs")


def test_the_nearest_word_is_named_if_one_is_near() -> None:
    assert did_you_mean("recontsruct", iter(["random", "reconstruct"])) == " Did you mean 'reconstruct'?"
    assert did_you_mean("zebra", ["random"]) == ""
