"""Pruning while a Keras model trains, in a loop of one's own or inside `fit`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from reprune.core.budget.budget import Budget
from reprune.core.budget.cost import CostModel, Measure
from reprune.core.decide import as_globs, decide
from reprune.core.errors import RecipeError
from reprune.core.evidence.evidence import Evidence
from reprune.core.evidence.passes import Forward, Labels
from reprune.core.layers import Scope, Structure, checked_scope
from reprune.core.methods import Method, check_training_method, get_method
from reprune.core.plan import Plan
from reprune.core.rehearsal import held_back
from reprune.core.schedule import Schedule, parse_schedule
from reprune.core.training.course import Course, share_and_factor, whole
from reprune.core.training.shrink import shrunk
from reprune.keras.surgery.apply import apply
from reprune.keras.surgery.verify import rehearse
from reprune.keras.tracing.graph import array, check_keras, graph_of
from reprune.keras.tracing.record import captured, record
from reprune.keras.training.group_lasso import GroupLasso
from reprune.keras.training.neuron_selection import NeuronSelection
from reprune.keras.training.selection import Selection
from reprune.keras.training.shrink import check_optimizer, shrink
from reprune.keras.training.stream import Stream, input_of
from reprune.keras.training.technique import Hooks, Technique
from reprune.keras.weights import digest

TECHNIQUES: dict[str, type[Technique]] = {"iss-group-lasso": GroupLasso, "neuron-selection": NeuronSelection}
"""What runs the methods of `TRAINING_METHODS`; all other methods select."""
_OWNER = "_reprune_pruner"
"""Where a model holds its pruner, as long as it has one: two would each stand in the other's way."""


class Pruner:
    """Prunes a Keras model while it trains, as `reprune.torch.Pruner` does with one of PyTorch.

    A silenced unit has its incoming weights and biases set to zero (or, with `fractional`, towards it); the weights
    that read it stay, because through them the gradient reaches it again and it can regrow. With `gradual`, units leave
    the model at once: its layers and variables shrink in place, and the optimizer's with them.

    Two things differ from PyTorch, because a compiled step runs no hooks. Statistics come from batches of the training
    data, of which each selection looks at some. And a method that adds a term to the loss adds that term's gradient to
    those that the optimizer is handed: nothing has to be added to the loss.

    Args:
        model: The model, built, and trained in place.
        batches: The training data, as given to `fit`: a dataset, or any iterable that can be gone through again. Of
            tuples, the first entry is the input.
        ratio: Fraction to remove.
        of: What the fraction is of.
        method: How units are chosen: one of `METHODS` that looks at weights and responses, or of `TRAINING_METHODS`.
        schedule: When: `after`, `soft:S`, `fractional:S` or `gradual:S`, S being optimizer steps.
        optimizer: The optimizer of the model; that which it is compiled with when left out. Only `gradual` and the
            methods of `TRAINING_METHODS` need one.
        total_steps: Optimizer steps of the whole training; only `fractional` and `gradual` need it.
        calibration: Batches that each selection looks at; they go on where the last ones ended.
        labels: Classes of a batch's sequences, a function of the batch, for methods that look at them.
        exclude: Globs of layers to leave alone.
        scope: What counts as units: those of recurrent layers, or `all` widths of the model (see `reprune.plan`).
        inputs: Whether the columns of every `Embedding` are units too, of a layer `path:columns`. They count in the
            budget, and the embedding becomes narrower. Only `neuron-selection` can do it.
        min_units: Units that every layer keeps at least.
        round_to: Units kept are a multiple of this.
        uniform: Keep equal sizes in both directions of every `Bidirectional`.
        forward: Replaces `model(batch)`: a function of model and batch.
        verify: Check the trace on the first batch.
        seed: Seed of the method's randomness.

    Attributes:
        plan: Which units of the model that came in stay, by the latest selection; None before the first.
        structure: What was found in the model that came in.

    Raises:
        RecipeError: Method, schedule and what is given do not go together, or the model has a `Pruner` already.
        BudgetError: Ratio, bounds and the model's layers do not go together.
        UnsupportedModelError: The model has no layer that can be pruned.

    Example:
        >>> pruner = Pruner(model, train, ratio=0.5, schedule="soft:200", optimizer=optimizer)   # doctest: +SKIP
        >>> for x, y in train:                                                                  # doctest: +SKIP
        ...     with tf.GradientTape() as tape:
        ...         loss = loss_of(y, model(x, training=True))
        ...     optimizer.apply(tape.gradient(loss, model.trainable_weights), model.trainable_weights)
        ...     pruner.step()
        >>> small = pruner.finish()                                                             # doctest: +SKIP
    """

    def __init__(
        self,
        model: Any,
        batches: Iterable[Any],
        *,
        ratio: float = 0.5,
        of: Measure = "units",
        method: str | Method = "iss-gm",
        schedule: str | Schedule = "soft:200",
        optimizer: Any = None,
        total_steps: int | None = None,
        calibration: int = 8,
        labels: Labels | None = None,
        exclude: Sequence[str] = (),
        scope: Scope = "recurrent",
        inputs: bool = False,
        min_units: int = 1,
        round_to: int = 1,
        uniform: bool = False,
        forward: Forward | None = None,
        verify: bool = True,
        seed: int = 0,
    ) -> None:
        check_keras(model)
        self.model = model
        self.schedule = parse_schedule(schedule)
        self.total_steps = total_steps
        self.optimizer = optimizer if optimizer is not None else getattr(model, "optimizer", None)
        self.steps = 0
        self.plan: Plan | None = None
        self._method = method
        self._budget = Budget(ratio, of, min_units, round_to)
        self._exclude = as_globs(exclude)
        self._seed = seed
        self._finished = False
        self._kind = technique_of(method, labels)
        self._check(calibration, inputs)
        self.stream = Stream(batches)
        self._final: Plan | None = None
        example = next(self.stream)
        if not model.built:
            # A Sequential model without an Input is not, even when training begins.
            model(captured(model, input_of(example), forward))
        given = input_of(example) if forward is None else example
        found = record(model, given, forward, uniform=uniform, scope=checked_scope(scope), inputs=inputs)
        self.structure: Structure = (
            rehearse(found, model, self._exclude)
            if verify
            else found.structure(held_back(found.structure(), self._exclude))
        )
        # Whether anything can be pruned, and this much, shows now and not when the training is over.
        decide(Evidence(self.structure, {}), self._budget, "random")
        self._course = Course(self.structure, self._budget)
        # What a smaller copy is cut from when the model itself has shrunk.
        self._pattern = apply(model, Plan(self.structure, whole(self.structure))) if self.schedule.shrinks else model
        self._technique = self._kind(model, self.structure, method, self._budget, seed)
        if isinstance(self._technique, Selection):
            self._technique.look_at(self.stream, calibration, forward, labels)
        self._hooks = Hooks(model, self.optimizer, self._technique)
        object.__setattr__(model, _OWNER, self)

    def loss(self) -> float:
        """The term whose gradient the method adds, in the latest step; 0 for methods that add none."""
        return self._technique.loss()

    def step(self) -> None:
        """Count an optimizer step; when the schedule says so, select units, and silence or remove them.

        Raises:
            RecipeError: The schedule needs something that was not given, or the pruner is finished.
        """
        if self._finished:
            raise RecipeError("This pruner is finished: make another one to prune further.")
        self._check_given()
        self.steps += 1
        share, factor = share_and_factor(self.schedule, self.steps, self.total_steps)
        self._technique.stepped(share)
        self._final = None
        if self.schedule.due(self.steps):
            plan = self._technique.decide(self._course.budget(share, self._technique.structure))
            self.plan = self._course.original(plan)
            if self.schedule.shrinks:
                self._shrink(plan)
            else:
                silence(self.model, plan, factor)
                self._final = plan if share == 1.0 else None

    def finish(self) -> Any:
        """Select for the last time and return the smaller model. `plan` says which units stay.

        The model that was trained is not observed any more. It keeps its size, unless the schedule is `gradual`, and
        its weights, but for the gates that `neuron-selection` folds into them.

        Raises:
            RecipeError: The pruner is finished already.
        """
        if self._finished:
            raise RecipeError("This pruner is finished: make another one to prune further.")
        plan = self._final or self._technique.decide(self._course.budget(1.0, self._technique.structure))
        self.close()
        self._finished = True
        self._technique.finish(plan)
        self.plan = replace(self._course.original(plan), fitted_to=digest(self.model, self.structure))
        if not self.schedule.shrinks:
            return apply(self.model, plan)
        self._shrink(plan)
        small = apply(self._pattern, self.plan)
        for own, new in zip(graph_of(self.model).weights().values(), graph_of(small).weights().values(), strict=True):
            new.assign(array(own))
        return small

    def close(self) -> None:
        """Stop observing the model; another `Pruner` may take it."""
        vars(self.model).pop(_OWNER, None)
        self._hooks.remove()

    def removed_share(self) -> float:
        """What the latest selection removes, of what it was asked for."""
        if self.plan is None:
            return 0.0
        cost = CostModel(self.structure)
        return 1 - cost(self._budget.of, self.plan.counts()) / cost(self._budget.of, self.structure.counts())

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs beside the model and the optimizer, as JSON-clean data."""
        return {
            "steps": self.steps,
            "batches": self.stream.count,
            "method": str(self._method),
            "units": {name: list(units) for name, units in self._course.units.items()},
            "plan": None if self.plan is None else self.plan.to_json(),
            "technique": self._technique.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken. With `gradual`, load this first: the model takes its later size here.

        Raises:
            RecipeError: The state is of a pruner with another method, or of another model.
        """
        if state.get("method") != str(self._method):
            raise RecipeError(
                f"The state is of a Pruner with method={state.get('method')!r}, not {str(self._method)!r}: make the "
                "Pruner as the one that was saved."
            )
        mine = self._course.units
        if set(state["units"]) != set(mine) or any(set(state["units"][name]) - set(mine[name]) for name in mine):
            raise RecipeError(
                "The state is of a model with other layers or more units: build model and Pruner as those that were "
                "saved, then load the state."
            )
        self.steps = int(state["steps"])
        self.stream.skip_to(int(state["batches"]))
        here = {name: [mine[name].index(unit) for unit in units] for name, units in state["units"].items()}
        self._shrink(Plan(self._technique.structure, here))
        self.plan = None if state["plan"] is None else Plan.from_json(state["plan"])
        self._technique.load_state_dict(state["technique"])

    def _shrink(self, plan: Plan) -> None:
        """Make the model smaller in place."""
        if any(plan.removed().values()):
            pattern = apply(self._pattern, self._course.original(plan))
            shrink(self.model, plan, pattern, self.optimizer)
            self._technique.shrunk(shrunk(plan.structure, plan.kept), plan.kept)
            self._course.shrink(plan.kept)

    def _check(self, calibration: int, inputs: bool) -> None:
        if self._budget.ratio is None:
            raise RecipeError("ratio=None: give the fraction to remove.")
        if calibration < 1:
            raise RecipeError(f"calibration={calibration}: each selection needs at least one batch.")
        if self.total_steps is not None and not (isinstance(self.total_steps, int) and self.total_steps > 0):
            raise RecipeError(f"total_steps={self.total_steps!r} is not a number of optimizer steps: give one from 1.")
        if _OWNER in vars(self.model):
            raise RecipeError(
                "The model has a Pruner already: call its finish() or close() before you make another one."
            )
        if inputs and not self._kind.takes_inputs:
            able = ", ".join(repr(name) for name, technique in TECHNIQUES.items() if technique.takes_inputs)
            raise RecipeError(
                f"inputs=True: method={str(self._method)!r} removes hidden units only. Give method={able}, or leave "
                "inputs out."
            )
        if self._kind.changes_gradients and self.optimizer is None:
            raise RecipeError(
                f"method={str(self._method)!r} acts on what the optimizer is handed: give optimizer=, or compile the "
                "model."
            )

    def _check_given(self) -> None:
        if self.schedule.needs_total and not self.total_steps:
            raise RecipeError(
                f"schedule={str(self.schedule)!r} goes by the progress of the training: give total_steps=, the number "
                "of optimizer steps that it will take."
            )
        if self.schedule.shrinks and self.steps == 0:
            if self.optimizer is None:
                raise RecipeError(
                    f"schedule={str(self.schedule)!r} makes variables smaller while training: give optimizer=, so that "
                    "it goes on with them."
                )
            one = {
                name: units[:-1] if name in self.structure.prunable else units
                for name, units in whole(self.structure).items()
            }
            check_optimizer(self.model, Plan(self.structure, one), self.optimizer)


def release(model: Any) -> None:
    """Close the pruner that a model has, if any: that of a training which was interrupted."""
    pruner = vars(model).get(_OWNER)
    if pruner is not None:
        pruner.close()


def silence(model: Any, plan: Plan, factor: float = 0.0) -> None:
    """Multiply, in place, the incoming weights and biases of units that a plan removes; by 0, they respond with 0."""
    weights = dict(zip(plan.structure.shapes, graph_of(model).weights().values(), strict=True))
    removed = plan.removed()
    for slot in plan.structure.slots:
        gone = slot.positions(removed)
        if slot.role == "own" and len(gone):
            value = array(weights[slot.tensor])
            value.swapaxes(0, slot.axis)[gone] *= factor
            weights[slot.tensor].assign(value)


def technique_of(method: str | Method, labels: Labels | None = None) -> type[Technique]:
    """What runs a method.

    Raises:
        RepruneError: When the name is unknown.
        RecipeError: When the method looks at what a training does not show, or at classes, and there are no `labels`.
    """
    check_training_method(method)
    if isinstance(method, str) and method in TECHNIQUES:
        return TECHNIQUES[method]
    if get_method(method).needs_loss:
        raise RecipeError(
            f"method={method!r} needs gradients of a loss, which training does not show: give one that looks at "
            "weights and responses, such as 'iss-gm', or call reprune.keras.prune() when training is over."
        )
    if get_method(method).needs_labels and labels is None:
        raise RecipeError(
            f"method={method!r} looks at classes: give labels=, a function of a batch, or call reprune.keras.prune() "
            "when training is over."
        )
    return Selection
