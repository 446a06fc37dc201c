"""A plan knows the weights it was fitted to, and a folder knows its content: alike in every framework."""

from __future__ import annotations

import json
import random
import shutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reprune
from reprune.core.errors import PlanWarning
from reprune.core.plan import Plan
from tests.contract.damage import PLAN, WEIGHTS
from tests.contract.suite import RELATIVE, Contract, error

Array = Any


class TrustContract(Contract, ABC):
    """What the verbs do about other weights and other files."""

    @abstractmethod
    def set_weights(self, model: Any, values: Sequence[Array]) -> None:
        """Put arrays in the places of all parameters, in the order of `weights`."""

    def other(self, change: float = 1.0) -> Any:
        """A `chain` of which one number is another."""
        model = self.chain()
        values = self.weights(model)
        values[0].flat[0] += change
        self.set_weights(model, values)
        return model

    @pytest.mark.parametrize("verb", [reprune.apply, reprune.mask], ids=["apply", "mask"])
    def test_corrections_are_for_the_weights_they_were_fitted_to(self, verb: Any) -> None:
        plan = reprune.plan(self.chain(), self.batches(), ratio=0.5, verify=False)
        assert plan.folds
        verb(self.chain(), Plan.from_json(plan.to_json()))  # Another model of the same values.
        with pytest.raises(reprune.PlanError, match="other weights"):
            verb(self.other(1e-3), plan)

    def test_cutting_only(self) -> None:
        plan = reprune.plan(self.chain(), self.batches(), ratio=0.5, verify=False)
        model, batch = self.other(), self.batches()[0]
        small, masked = (verb(model, plan, compensate=False) for verb in (reprune.apply, reprune.mask))
        assert error(self.outputs(masked, batch), self.outputs(small, batch)) < RELATIVE
        # No weight of the smaller model is anything but one of the dense model's.
        held = np.concatenate([weight.ravel() for weight in self.weights(model)])
        for weight in self.weights(small):
            assert np.isin(weight, held).all()
        corrected = reprune.apply(self.chain(), plan)
        assert not all(np.isin(weight, held).all() for weight in self.weights(corrected))

    def test_a_plan_without_corrections_only_warns(self) -> None:
        plan = reprune.plan(self.chain(), self.batches(), ratio=0.5, method="magnitude", verify=False)
        model, batch = self.other(), self.batches()[0]
        with pytest.warns(PlanWarning, match="other weights") as caught:
            small = reprune.apply(model, plan)
        assert [warning.filename for warning in caught if warning.category is PlanWarning] == [__file__]
        silent = reprune.apply(model, plan, compensate=False)
        assert error(self.outputs(silent, batch), self.outputs(small, batch)) == 0

    def test_a_model_that_changed_since_it_was_calibrated(self) -> None:
        model = self.chain()
        calibration = reprune.calibrate(model, self.batches(), methods=["reconstruct"], verify=False)
        calibration.prune(0.5)
        self.set_weights(model, self.weights(self.other()))
        with pytest.raises(reprune.PlanError, match="other weights"):
            calibration.prune(0.5)

    def test_the_saved_plan_is_decisions_only(self, saved: Path) -> None:
        text = (saved / PLAN).read_text()
        assert json.loads(text)["folds"] == []
        assert len(text) < 20_000
        plan = Plan.from_json(text)
        with pytest.raises(reprune.PlanError, match=r"reprune.load\(\) reads both"):
            reprune.apply(self.chain(), plan)
        cut, loaded = reprune.apply(self.chain(), plan, compensate=False), reprune.load(self.chain(), saved)
        assert [w.shape for w in self.weights(cut)] == [w.shape for w in self.weights(loaded)]

    def test_load_looks_at_no_weight_of_the_dense_model(self, saved: Path) -> None:
        one, other = reprune.load(self.chain(), saved), reprune.load(self.other(), saved)
        for first, second in zip(self.weights(one), self.weights(other), strict=True):
            assert np.array_equal(first, second)

    def test_flipped_bits(self, saved: Path, tmp_path: Path) -> None:
        rng, folder, dense = random.Random(0), tmp_path / "small", self.chain()
        shutil.copytree(saved, folder)
        for name in (PLAN, WEIGHTS):
            content = (folder / name).read_bytes()
            for _ in range(20):
                flipped = bytearray(content)
                flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
                (folder / name).write_bytes(flipped)
                with pytest.raises(reprune.PlanError, match=name):
                    reprune.load(dense, folder)
            (folder / name).write_bytes(content)
        reprune.load(dense, folder)

    @pytest.mark.parametrize("name", [PLAN, WEIGHTS])
    def test_files_of_two_runs(self, name: str, saved: Path, tmp_path: Path) -> None:
        # The same units of the same model, with one number changed: nothing but the digest can tell.
        result = reprune.prune(self.chain(), self.batches(), ratio=0.5, verify=False)
        values = self.weights(result.model)
        values[0].flat[0] += 1
        self.set_weights(result.model, values)
        result.save(tmp_path)
        shutil.copy(saved / name, tmp_path / name)
        with pytest.raises(reprune.PlanError, match=WEIGHTS):
            reprune.load(self.chain(), tmp_path)

    def test_folders_of_before_there_were_digests(self, tmp_path: Path) -> None:
        result = reprune.prune(self.chain(), self.batches(), ratio=0.5, verify=False)
        result.save(tmp_path)
        document = json.loads(result.plan.to_json())
        for name in ("fitted_to", "folded"):
            del document[name]
        (tmp_path / PLAN).write_text(json.dumps(document))
        loaded, batch = reprune.load(self.chain(), tmp_path), self.batches()[0]
        assert error(self.outputs(result.model, batch), self.outputs(loaded, batch)) == 0

    def test_nan_is_not_saved(self, saved: Path, tmp_path: Path) -> None:
        folder = tmp_path / "small"
        shutil.copytree(saved, folder)
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        result = reprune.prune(self.chain(), self.batches(), ratio=0.5, verify=False)
        values = self.weights(result.model)
        values[-1].flat[0] = np.nan
        self.set_weights(result.model, values)
        for place in (folder, tmp_path / "new"):
            with pytest.raises(reprune.PlanError, match="NaN"):
                result.save(place)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
        assert not (tmp_path / "new").exists()

    def test_another_model_is_not_saved(self, tmp_path: Path) -> None:
        plan = reprune.plan(self.chain(), self.batches(), ratio=0.5, method="magnitude", verify=False)
        with pytest.raises(reprune.PlanError, match="the plan of this result"):
            reprune.Result(self.chain(), plan).save(tmp_path / "new")
        assert not (tmp_path / "new").exists()

    def test_all_files_are_readable_alike(self, saved: Path) -> None:
        assert len({path.stat().st_mode for path in saved.iterdir()}) == 1
