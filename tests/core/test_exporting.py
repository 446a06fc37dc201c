"""What an export compares, reports and refuses, against NumPy and by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reprune.core.exporting import (
    Comparison,
    EightBits,
    ExportError,
    ExportReport,
    StatePair,
    beyond_calibration,
    checked_path,
    checked_way,
    chosen_axes,
    compare,
    require_close,
    worst,
)

NAN, INF = float("nan"), float("inf")


def test_the_largest_difference_and_the_largest_output_are_found() -> None:
    rng = np.random.default_rng(0)
    inputs = [np.zeros((2, 3), np.float32), np.zeros((), np.int64)]
    expected = [rng.normal(size=(3, 4)).astype("f4"), rng.normal(size=5).astype("f4"), np.zeros((0, 2), "f4")]
    for place in (0, 1):  # The largest of either may lie in either output.
        actual = [array.copy() for array in expected]
        actual[place].flat[2] -= 3
        actual[1 - place].flat[1] += 2
        actual[place].flat[3] = expected[place].flat[3] = -9
        found = compare(inputs, expected, actual)
        assert found.shapes == ((2, 3), ())
        assert (found.difference, found.scale, found.calls) == (pytest.approx(3), 9, 1)
        assert found.relative == found.difference / 9
    # Whole numbers are compared as numbers, without going round.
    assert compare([], [np.array([250], "u1")], [np.array([3], "u1")]).difference == 247
    assert compare([], [np.array([0.5, NAN, INF])], [np.array([0.25, NAN, -INF])]) == Comparison((), 0.25, 0.5)
    assert compare([], [np.array([NAN])], [np.array([NAN])]) == Comparison((), 0.0, 0.0)
    assert Comparison((), 1e-3, 1e-9).relative == pytest.approx(1e3)
    with pytest.raises(ExportError, match="NaN or infinite values where the model does not"):
        compare([], [np.array([0.5, 1])], [np.array([0.5, INF])])
    with pytest.raises(ExportError, match=r"returns shapes \[\(2,\)\], the model \[\(1, 2\)\]"):
        compare([], [np.zeros((1, 2))], [np.zeros(2)])


@pytest.mark.parametrize(
    ("difference", "scale", "refused"),
    [
        (0.5, 4, False),  # Exactly the tolerance.
        (0.51, 4, True),
        (1e-6, 0, False),  # Rounding, of outputs that are zero.
        (1.1e-6, 0, True),
        (5e-7, 1e-6, False),
        (3.0, 1e6, False),
    ],
)
def test_a_difference_is_measured_by_the_outputs(difference: float, scale: float, refused: bool) -> None:
    comparison = Comparison(((2, 3),), difference, scale)
    if refused:
        with pytest.raises(ExportError, match=r"x\.onnx differs from the model by"):
            require_close(Path("x.onnx"), comparison, 0.125)
    else:
        require_close(Path("x.onnx"), comparison, 0.125)


def test_a_thousandth_is_what_a_file_may_differ_by() -> None:
    require_close(Path("x.onnx"), Comparison((), 0.0009, 1.0))
    with pytest.raises(ExportError, match="differs"):
        require_close(Path("x.onnx"), Comparison((), 0.0011, 1.0))


def test_calls_in_a_row_count_as_the_worst_of_them() -> None:
    calls = [Comparison(((1,),), 2.0, 8.0), Comparison(((2,),), 1.0, 2.0), Comparison(((3,),), 0.5, 4.0)]
    assert worst(calls) == Comparison(((1,),), 1.0, 2.0, 3)


def test_a_report_says_all_there_is(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(bytes(1_230_000))
    report = ExportReport(
        path,
        "runtime 1",
        {"x": ("batch", 8), "n": ()},
        {"y": ("batch", 2)},
        (Comparison(((3, 8), ()), 0.25, 2.0), Comparison(((1, 8), ()), 0.5, 2.0, 2)),
        (Comparison(((3, 8), ()), 1.0, 2.0),),
        {"float": 0.5, "int8": 0.25},
        ("mind this",),
        (StatePair("h", "h_n"),),
        EightBits(3, 4, 30, 40, ("a norm",)),
    )
    assert (report.difference, report.quantised_difference) == (0.5, 1.0)
    assert str(report).splitlines() == [
        f"{path} (1.23 MB)",
        "  in  x [batch, 8]",
        "  in  n []",
        "  out y [batch, 2]",
        "  state h_n → h, at first zeros",
        "  runtime 1 on 3×8, scalar: largest difference 2.50e-01 (1.2e-01 of the largest output)",
        "  runtime 1 on 1×8, scalar, 2 calls in a row: largest difference 5.00e-01 (2.5e-01 of the largest output)",
        "  runtime 1 in 8 bits on 3×8, scalar: largest difference 1.00e+00 (5.0e-01 of the largest output)",
        "  8 bits: 3 of 4 tensors, 30 of 40 weights (75%)",
        "  single precision: a norm",
        "  float: 0.5",
        "  int8: 0.25",
        "  note: mind this",
    ]
    (tmp_path / "package" / "inner").mkdir(parents=True)
    for name in ("a", "inner/b"):
        (tmp_path / "package" / name).write_bytes(bytes(20_000))
    bare = ExportReport(tmp_path / "package", "", {}, {}, ())
    assert str(bare) == f"{tmp_path / 'package'} (0.04 MB)"
    assert np.isnan([bare.difference, bare.quantised_difference]).all()
    assert str(EightBits(0, 4, 0, 0)) == "  8 bits: 0 of 4 tensors, 0 of 0 weights (0%)"


def test_where_a_file_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in ("x.pt2", "x.mlpackage"):
        (tmp_path / name).mkdir()
    assert checked_path(str(tmp_path / "x.mlpackage"), [".pt2", ".mlpackage"]) == tmp_path / "x.mlpackage"
    assert checked_path(tmp_path / "new" / "x.pt2", [".pt2"]) == tmp_path / "new" / "x.pt2"
    for name, message in [("x.pt2", "is a folder"), ("file/a/x.pt2", "is a file, not a folder"), ("x.pb", "unknown")]:
        with pytest.raises(ExportError, match=message):
            checked_path(tmp_path / name, [".pt2"])


def test_ways_to_quantise() -> None:
    known, batches = ("dynamic", "static"), [[np.zeros(1)]]
    assert checked_way(False, None, known) is None
    assert checked_way(False, None, ()) is None
    assert checked_way(True, None, known) == "dynamic"
    assert checked_way("static", batches, known) == "static"
    for way, calibration, message in [
        ("other", None, 'are "dynamic", "static"'),
        (True, batches, "go together"),
        (False, batches, "go together"),
        ("static", None, "go together"),
        ("static", {"x": 1}, "one batch"),
        ("static", np.zeros(1), "one batch"),
    ]:
        with pytest.raises(ExportError, match=message):
            checked_way(way, calibration, known)
    with pytest.raises(ExportError, match=r"none; \.onnx files take some"):
        checked_way(True, None, ())


@pytest.mark.parametrize(
    ("value", "noted"), [(-7.0, False), (-6.0, False), (-7.25, True), (15.0, False), (15.25, True), (6.0, False)]
)
def test_what_calibration_does_not_reach_is_noted(value: float, noted: bool) -> None:
    """From -6 to 14 over all batches: as much as a twentieth of that may lie outside on either side."""
    names, rows = ["ids", "x", "nothing"], np.array([[14.5, value, 5.0]], "f4")
    batches = [
        [np.array([0]), np.array(held, "f4"), np.zeros((0, 2), "f4")] for held in ([1.0, 14], [-6.0, 2], [0.0, 3])
    ]
    notes = beyond_calibration(names, [np.array([99]), rows, np.zeros((0, 2), "f4")], batches)
    assert len(notes) == noted
    if noted:
        assert notes[0].startswith(f"x reaches {value:.3g} in the example and -6 to 14 in calibration=")


def test_axes_are_those_that_were_named() -> None:
    inputs: dict[str, Any] = {"x": ("batch", "time", 8), "h": (1, "batch", 4)}
    everything = {(name, axis) for name in inputs for axis in range(3)}
    assert chosen_axes(None, None, inputs) == (None, set())
    assert chosen_axes(["batch", "time"], False, inputs) == ({("x", 0), ("h", 1), ("x", 1)}, set())
    assert chosen_axes({"x": [0, 2], "h": 1}, {"h": [0]}, inputs) == ({("x", 0), ("x", 2), ("h", 1)}, {("h", 0)})
    assert chosen_axes("time", None, inputs) == ({("x", 1)}, set())
    assert chosen_axes(True, True, inputs) == (None, everything)
    assert chosen_axes([], [], inputs) == (set(), set())
    for dynamic, message in [
        ({"x": [3]}, r"dynamic=: there is no axis 3 of 'x'; the inputs are x \(3 axes\), h \(3 axes\)"),
        ({"y": [0]}, "there is no axis 0 of 'y'"),
        (["steps"], r"dynamic=: no size of the inputs is called 'steps'; those that can be free are: batch, time\."),
    ]:
        with pytest.raises(ExportError, match=message):
            chosen_axes(dynamic, None, inputs)
    with pytest.raises(ExportError, match="those that can be free are: none"):
        chosen_axes(["batch"], None, {"x": (1, 2)})
    with pytest.raises(ExportError, match="both name axis 0 of x"):
        chosen_axes({"x": [0]}, True, inputs)
