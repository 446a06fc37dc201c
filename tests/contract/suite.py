"""What every adapter must do alike. A test class inherits `Contract` and says how its framework builds and runs models.

Three small models: `chain`, a bidirectional layer, a recurrent layer above it and a linear head; `residual`, two
recurrent layers of equal size whose outputs are added before a head; `open_end`, whose last recurrent layer's units are
the model's output, above another recurrent layer.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reprune
from reprune import Method
from reprune.core.budget.cost import CostModel
from reprune.core.plan import Plan
from tests.contract.damage import DAMAGE, random_damages

Array = Any
RELATIVE = 1e-5


def error(first: Sequence[Array], second: Sequence[Array]) -> float:
    """The largest difference relative to the largest value."""
    return max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in zip(first, second, strict=True))


class Contract(ABC):
    """The verbs, on any framework."""

    @abstractmethod
    def chain(self) -> Any:
        """Bidirectional recurrent layer, recurrent layer, linear head; random weights, biases included."""

    @abstractmethod
    def residual(self) -> Any:
        """Two recurrent layers of equal size, added, and a linear head."""

    @abstractmethod
    def open_end(self) -> Any:
        """Two recurrent layers, the second one's sequence being the output."""

    @abstractmethod
    def batches(self) -> list[Any]:
        """Inputs that all three take, at least twenty sequences in all."""

    @abstractmethod
    def outputs(self, model: Any, batch: Any) -> list[Array]:
        """All outputs of a model in inference, as NumPy arrays."""

    @abstractmethod
    def weights(self, model: Any) -> list[Array]:
        """Copies of all parameters as NumPy arrays."""

    def sized(self, plan: Plan) -> tuple[int, int]:
        """Units before and after."""
        return sum(plan.structure.counts().values()), sum(plan.counts().values())

    @pytest.mark.parametrize("method", ["iss-gm", "magnitude", "random", "reconstruct", "iss-gm+reconstruct"])
    @pytest.mark.filterwarnings("ignore::reprune.core.evidence.readings.CalibrationWarning")
    def test_pruned_equals_masked(self, method: str) -> None:
        model = self.chain()
        plan = reprune.plan(model, self.batches(), ratio=0.5, method=method, verify=False)
        small, masked = reprune.apply(model, plan), reprune.mask(model, plan)
        batch = self.batches()[0]
        assert error(self.outputs(masked, batch), self.outputs(small, batch)) < RELATIVE
        assert error(self.outputs(model, batch), self.outputs(masked, batch)) > 1e-4
        before, after = self.sized(plan)
        assert abs(after - before / 2) <= 1

    def test_verified_result(self, tmp_path: Path) -> None:
        model = self.chain()
        result = reprune.prune(model, self.batches(), ratio=0.5)
        assert sum(w.size for w in self.weights(result.model)) < sum(w.size for w in self.weights(model))
        text = str(result)
        assert all(name in text for name in result.plan.kept)
        result.save(tmp_path)
        assert {p.name for p in tmp_path.iterdir()} == {"model.safetensors", "plan.json", "report.html"}
        loaded = reprune.load(self.chain(), tmp_path)
        batch = self.batches()[0]
        assert error(self.outputs(result.model, batch), self.outputs(loaded, batch)) == 0

    @pytest.fixture(scope="class")
    @classmethod
    def saved(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """What `Result.save` wrote of a pruned `chain`; to be copied, not damaged."""
        folder, suite = tmp_path_factory.mktemp("saved"), cls()
        reprune.prune(suite.chain(), suite.batches(), ratio=0.5).save(folder)
        return folder

    @pytest.mark.parametrize("name", DAMAGE)
    def test_damaged_folders_are_refused(self, name: str, saved: Path, tmp_path: Path) -> None:
        folder = tmp_path / "small"
        shutil.copytree(saved, folder)
        DAMAGE[name](folder)
        with pytest.raises(reprune.PlanError):
            reprune.load(self.chain(), folder)

    def test_folders_damaged_at_random_are_refused_or_load_whole(self, saved: Path, tmp_path: Path) -> None:
        dense, folder = self.chain(), tmp_path / "small"
        shutil.copytree(saved, folder)
        before = self.weights(dense)
        for _ in random_damages(folder, int(os.environ.get("REPRUNE_FUZZ", 60))):
            try:
                loaded = reprune.load(dense, folder)
            except reprune.RepruneError:
                continue
            assert all(np.isfinite(weight).all() for weight in self.weights(loaded))
        assert all(np.array_equal(one, other) for one, other in zip(before, self.weights(dense), strict=True))

    def test_original_is_untouched(self) -> None:
        model = self.chain()
        before, batch = self.weights(model), self.batches()[0]
        answers = self.outputs(model, batch)
        result = reprune.prune(model, self.batches(), ratio=0.5)
        for weight in self.weights(result.model):
            assert np.isfinite(weight).all()
        assert all(np.array_equal(a, b) for a, b in zip(before, self.weights(model), strict=True))
        assert error(answers, self.outputs(model, batch)) == 0

    def test_ratio_zero_is_the_same_model(self) -> None:
        model = self.chain()
        result = reprune.prune(model, self.batches(), ratio=0.0)
        batch = self.batches()[0]
        assert error(self.outputs(model, batch), self.outputs(result.model, batch)) < 1e-6
        before, after = self.sized(result.plan)
        assert before == after

    @pytest.mark.parametrize("of", ["units", "parameters", "macs"])
    def test_budget(self, of: Any) -> None:
        model = self.chain()
        plan = reprune.plan(model, self.batches(), ratio=0.4, of=of, method="magnitude", verify=False)
        cost = CostModel(plan.structure)
        whole, left = cost(of, plan.structure.counts()), cost(of, plan.counts())
        # Within half of what the largest step, one unit of one block, is worth.
        counts = plan.counts()
        steps = [left - cost(of, {**counts, name: count - 1}) for name, count in counts.items() if count > 1]
        assert abs(1 - left / whole - 0.4) * whole <= 1.5 * max(steps)
        small = reprune.apply(model, plan)
        assert sum(w.size for w in self.weights(small)) == cost("parameters", plan.counts())

    def test_json_round_trip(self) -> None:
        model = self.chain()
        plan = reprune.plan(model, self.batches(), ratio=0.5, verify=False)
        again = Plan.from_json(plan.to_json())
        assert again == plan
        assert json.loads(plan.to_json())["kept"] == dict(plan.kept)
        batch = self.batches()[0]
        first, second = reprune.apply(model, plan), reprune.apply(model, again)
        assert error(self.outputs(first, batch), self.outputs(second, batch)) == 0

    def test_added_layers_are_coupled(self) -> None:
        model = self.residual()
        plan = reprune.plan(model, self.batches(), ratio=0.5, method="random", seed=3)
        (group,) = [group for group in plan.structure.index_coupled if len(group) > 1]
        assert plan.kept[group[0]] == plan.kept[group[1]]
        small, masked = reprune.apply(model, plan), reprune.mask(model, plan)
        batch = self.batches()[0]
        assert error(self.outputs(masked, batch), self.outputs(small, batch)) < RELATIVE
        with pytest.raises(reprune.PlanError, match="coupled"):
            plan.with_kept({group[0]: [0]})

    def test_output_is_pinned(self) -> None:
        info = reprune.inspect(self.open_end(), self.batches())
        assert len(info.pinned) == 1
        assert len(info.prunable) == len(info.layers) - 1
        assert "output" in str(next(iter(info.pinned.values())))
        assert next(iter(info.pinned)) in str(info)
        with pytest.raises(reprune.UnsupportedModelError, match="strict"):
            reprune.inspect(self.open_end(), self.batches(), strict=True)

    def test_exclude(self) -> None:
        model = self.chain()
        names = list(reprune.inspect(model, self.batches(), verify=False).layers)
        plan = reprune.plan(model, self.batches(), ratio=0.3, exclude=[names[-1]], verify=False)
        counts = plan.structure.counts()
        assert len(plan.kept[names[-1]]) == counts[names[-1]]
        assert any(len(plan.kept[name]) < counts[name] for name in names[:-1])
        with pytest.raises(reprune.PlanError, match="matches no layer"):
            reprune.plan(model, self.batches(), exclude=["nothing*"], verify=False)
        with pytest.raises(reprune.UnsupportedModelError):
            reprune.plan(model, self.batches(), exclude=["*"], verify=False)

    def test_bounds(self) -> None:
        model = self.chain()
        plan = reprune.plan(model, self.batches(), ratio=0.7, min_units=2, method="magnitude", verify=False)
        assert min(plan.counts().values()) == 2
        plan = reprune.plan(model, self.batches(), ratio=0.5, round_to=2, method="magnitude", verify=False)
        assert all(count % 2 == 0 or count == plan.structure.layers[n].units for n, count in plan.counts().items())
        with pytest.raises(reprune.BudgetError):
            reprune.plan(model, self.batches(), ratio=0.99, min_units=3, verify=False)
        with pytest.raises(reprune.BudgetError):
            reprune.plan(model, self.batches(), ratio=1.5, verify=False)

    def test_uniform_keeps_directions_equal(self) -> None:
        plan = reprune.plan(self.chain(), self.batches(), ratio=0.5, uniform=True, verify=False)
        sizes = list(plan.counts().values())
        assert sizes[0] == sizes[1]

    def test_same_seed_same_plan(self) -> None:
        model = self.chain()
        plans = [reprune.plan(model, self.batches(), method="random", seed=seed, verify=False) for seed in (1, 1, 2)]
        assert plans[0] == plans[1]
        assert plans[0].kept != plans[2].kept

    def test_plan_of_another_model(self) -> None:
        plan = reprune.plan(self.residual(), self.batches(), ratio=0.5, verify=False)
        for verb in (reprune.apply, reprune.mask):
            with pytest.raises(reprune.PlanError, match="another model"):
                verb(self.chain(), plan)

    @pytest.mark.parametrize("plan", ["out/plan.json", None], ids=["a path", "nothing"])
    def test_what_is_no_plan(self, plan: Any) -> None:
        for verb in (reprune.apply, reprune.mask):
            with pytest.raises(reprune.PlanError, match=f"is a {type(plan).__name__}: give a Plan.*from_json"):
                verb(self.chain(), plan)

    def test_batches_must_hold_something(self) -> None:
        with pytest.raises(reprune.StatisticsError, match="empty"):
            reprune.plan(self.chain(), [])
        with pytest.raises(reprune.StatisticsError, match="single"):
            reprune.plan(self.chain(), self.batches()[0])

    def test_few_batches_are_held(self) -> None:
        """A pass over batches that are made as they are asked for, and gone when they are not needed any more."""
        model, given = self.chain(), self.batches()[0]
        held: list[weakref.ref[Any]] = []
        most = 0

        def stream() -> Iterator[Any]:
            nonlocal most
            for _ in range(30):
                batch = copy.deepcopy(given)
                held.append(weakref.ref(batch))
                most = max(most, sum(found() is not None for found in held))
                yield batch

        # Consumers are refitted on batches that can be had again only.
        method = Method("measured", "reconstruction", "least-squares")
        plan = reprune.plan(model, stream(), 0.5, method=method)
        assert len(held) == 30
        assert most <= 4
        assert plan == reprune.plan(model, [given] * 30, 0.5, method=method)

    def test_how_near_the_answers_are_is_said(self) -> None:
        calibration = reprune.calibrate(self.chain(), self.batches(), methods=["reconstruct"])
        whole, half, few = (calibration.prune(ratio) for ratio in (0.0, 0.4, 0.8))
        assert whole.fidelity is not None
        assert half.fidelity is not None
        assert few.fidelity is not None
        assert whole.fidelity.divergence == pytest.approx(0, abs=1e-6)
        assert 0 < half.fidelity.divergence < few.fidelity.divergence
        assert f"divergence {half.fidelity.divergence:.3g}" in str(half)

    def test_the_ratio_is_found_for_a_tolerance(self) -> None:
        calibration = reprune.calibrate(self.chain(), self.batches(), methods=["reconstruct"])
        middle = calibration.prune(0.5)
        assert middle.fidelity is not None
        found = calibration.prune(tolerance=middle.fidelity.divergence)
        assert found.fidelity is not None
        assert found.fidelity.divergence <= middle.fidelity.divergence
        assert sum(found.plan.counts().values()) <= sum(middle.plan.counts().values())
        with pytest.raises(reprune.BudgetError, match="tolerance"):
            calibration.plan(0.3, tolerance=0.1)

    def test_forward_picks_the_inputs(self) -> None:
        model = self.chain()
        labelled = [(batch, "labels") for batch in self.batches()]
        plan = reprune.plan(model, labelled, ratio=0.5, forward=lambda m, batch: m(batch[0]), verify=False)
        assert plan == reprune.plan(model, self.batches(), ratio=0.5, verify=False)
