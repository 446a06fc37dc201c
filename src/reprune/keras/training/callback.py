"""Pruning while `fit` trains a model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras

from reprune.core.budget.budget import Budget
from reprune.core.budget.cost import Measure
from reprune.core.errors import RecipeError
from reprune.core.methods import Method
from reprune.core.plan import Plan
from reprune.core.schedule import Schedule, parse_schedule
from reprune.keras.training.pruner import Pruner, release, technique_of
from reprune.keras.training.stream import Stream
from reprune.verbs.result import Result


class PruningCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Prunes a model while `fit` trains it, or when it has: a `Pruner` for `fit`.

    With `soft:S` and `fractional:S`, every S optimizer steps units are selected and silenced, and may grow back in
    between; with `gradual:S` they leave the model, which becomes smaller in place; with `after`, units are selected
    once, at the end. The smaller model is in `result` when `fit` returns. The progress bar and the history show the
    share that is selected as `pruned`.

    Args:
        batches: The training data, as given to `fit`: a dataset, or any iterable that can be gone through again. Of
            tuples, the first entry is the input.
        ratio: Fraction to remove.
        of: What the fraction is of.
        method: How units are chosen; see `Pruner`.
        schedule: `after`, `soft:S`, `fractional:S` or `gradual:S`.
        total_steps: Optimizer steps of the whole training; where `fit` knows them, they need not be given.
        options: Of the `Pruner`.

    Attributes:
        result: The smaller model and its plan; None until training has ended.
        pruner: The pruner; None before training begins.

    Example:
        >>> pruning = reprune.keras.PruningCallback(train, ratio=0.5, schedule="soft:200")   # doctest: +SKIP
        >>> model.fit(train, epochs=20, callbacks=[pruning])                                 # doctest: +SKIP
        >>> small = pruning.result.model                                                     # doctest: +SKIP
    """

    def __init__(
        self,
        batches: Iterable[Any],
        ratio: float = 0.5,
        of: Measure = "units",
        method: str | Method = "iss-gm",
        *,
        schedule: str | Schedule = "soft:200",
        total_steps: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        Stream(batches)
        Budget(ratio, of)
        technique_of(method, options.get("labels"))
        self.schedule = parse_schedule(schedule)
        self.result: Result[Any] | None = None
        self.pruner: Pruner | None = None
        self._batches = batches
        self._total_steps = total_steps
        self._options = {"ratio": ratio, "of": of, "method": method, "schedule": self.schedule, **options}
        self._state: dict[str, Any] | None = None
        self._last_batch = -1

    @property
    def plan(self) -> Plan | None:
        """The latest selection, or None."""
        return None if self.pruner is None else self.pruner.plan

    @property
    def steps(self) -> int:
        """Optimizer steps so far."""
        return 0 if self.pruner is None else self.pruner.steps

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Trace the model, and go on where a state that was loaded was taken."""
        total = self._total_steps
        if total is None and self.schedule.needs_total:
            params = self.params or {}
            if not params.get("steps") or not params.get("epochs"):
                raise RecipeError(
                    f"schedule={str(self.schedule)!r} goes by the progress of the training, and fit does not know how "
                    "many steps an epoch has: give total_steps=."
                )
            total = int(params["steps"]) * int(params["epochs"])
        if self.pruner is None:
            release(self.model)
            self.pruner = Pruner(self.model, self._batches, total_steps=total, **self._options)
        if self._state is not None:
            self.pruner.load_state_dict(self._state)
            self._state = None

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Batches are counted anew in every epoch."""
        self._last_batch = -1

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Count the steps; when the schedule says so, units are selected."""
        assert self.pruner is not None
        # On JAX, `fit` keeps what it trains out of the model's variables until it is asked to write it there.
        getattr(self.model, "jax_state_sync", lambda: None)()
        # Several steps may have run in one call (steps_per_execution).
        for _ in range(batch - self._last_batch):
            self.pruner.step()
        self._last_batch = batch
        self._show(logs)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Note the share in the history."""
        self._show(logs)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Select for the last time and make the smaller model."""
        assert self.pruner is not None
        small = self.pruner.finish()
        assert self.pruner.plan is not None
        self.result = Result(small, self.pruner.plan)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs beside the model and its optimizer, as JSON-clean data."""
        if self.pruner is None:
            raise RecipeError("The callback has not seen training begin: give it to model.fit(callbacks=[…]).")
        return self.pruner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the training that begins next go on where `state_dict` was taken."""
        self._state = state

    def _show(self, logs: dict[str, Any] | None) -> None:
        if logs is not None and self.pruner is not None:
            logs["pruned"] = self.pruner.removed_share()
