"""Pruning while a model trains, in a loop of one's own or inside a trainer's callback."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakSet

import torch
from torch import nn
from torch.optim import Optimizer

from reprune.core.budget.budget import Budget
from reprune.core.budget.cost import Measure
from reprune.core.decide import as_globs, decide
from reprune.core.errors import RecipeError
from reprune.core.evidence.evidence import Evidence
from reprune.core.layers import Scope, Structure, checked_scope
from reprune.core.methods import Method, check_training_method, get_method
from reprune.core.plan import Plan
from reprune.core.schedule import Schedule, parse_schedule
from reprune.core.training.course import Course, share_and_factor, whole
from reprune.core.training.shrink import shrunk
from reprune.torch.surgery.apply import apply, check, named_tensors
from reprune.torch.surgery.verify import rehearse
from reprune.torch.tracing.record import record
from reprune.torch.tracing.running.calling import as_batch
from reprune.torch.tracing.running.unwrap import unwrap
from reprune.torch.training.distributed import agreed, processes, shared
from reprune.torch.training.group_lasso import GroupLasso
from reprune.torch.training.neuron_selection import NeuronSelection
from reprune.torch.training.selection import Selection
from reprune.torch.training.shrink import check_optimizers, shrink
from reprune.torch.training.silencing import silence
from reprune.torch.training.technique import Hooks, Technique, uncompiled
from reprune.torch.weights import digest

TECHNIQUES: dict[str, type[Technique]] = {"iss-group-lasso": GroupLasso, "neuron-selection": NeuronSelection}
"""What runs the methods of `TRAINING_METHODS`; all other methods select."""
_OBSERVED: WeakSet[nn.Module] = WeakSet()
"""Models that have a pruner: two would each stand in the other's way."""


class Pruner:
    """Prunes a model while it trains.

    Statistics come from the training's own forward passes. A silenced unit has its incoming weights and biases set to
    zero (or, with `fractional`, towards it); the weights that read it stay, because through them the gradient reaches
    it again and it can regrow. The optimiser is not touched then: with its moments a unit that was learning goes on
    where it was heading. With `gradual`, units leave the model at once: its modules shrink in place, and parameters and
    moments in the optimiser with them.

    Args:
        model: The model, trained in place.
        example: A batch, as the model takes it; the first forward pass when left out.
        ratio: Fraction to remove.
        of: What the fraction is of.
        method: How units are chosen: one of `METHODS` that looks at weights and responses, or of `TRAINING_METHODS`.
        schedule: When: `after`, `soft:S`, `fractional:S` or `gradual:S`, S being optimiser steps.
        optimizer: The optimiser of the model, or several; only `gradual` needs it. It may keep what has the axes of the
            weights, as Adam and momentum do, or sums over some, as Adafactor does.
        total_steps: Optimiser steps of the whole training; only `fractional` and `gradual` need it.
        scope: What counts as units: those of recurrent layers, or `all` widths of the model (see `reprune.plan`).
        exclude: Globs of layers to leave alone.
        inputs: Whether the columns of every `nn.Embedding` are units too, of a layer `path:columns`: what the first
            layers read of each word, say. They count in the budget, and the embedding becomes narrower. Columns that
            are tied to hidden units go with those in any case. Only `neuron-selection` can do it.
        min_units: Units that every layer keeps at least.
        round_to: Units kept are a multiple of this.
        forward: Replaces `model(example)`; where no example is given, passes are taken as they come.
        seed: Seed of the method's randomness.

    Attributes:
        plan: Which units of the model that came in stay, by the latest selection; None before the first. After `finish`
            it knows the weights that training ended with.

    Raises:
        RecipeError: Method, schedule and what is given do not go together, or the model has a `Pruner` already.
        BudgetError: Ratio, bounds and the model's layers do not go together.
        UnsupportedModelError: The model has no layer that can be pruned.

    Example:
        >>> pruner = Pruner(model, ratio=0.5, method="iss-gm", schedule="soft:200")   # doctest: +SKIP
        >>> for batch in batches:                                                    # doctest: +SKIP
        ...     (loss(model(batch)) + pruner.loss()).backward()
        ...     optimizer.step()
        ...     pruner.step()
        >>> small = pruner.finish()                                                  # doctest: +SKIP
    """

    def __init__(
        self,
        model: nn.Module,
        example: Any = None,
        *,
        ratio: float = 0.5,
        of: Measure = "units",
        method: str | Method = "iss-gm",
        schedule: str | Schedule = "soft:200",
        optimizer: Optimizer | Iterable[Optimizer] = (),
        total_steps: int | None = None,
        scope: Scope = "recurrent",
        exclude: Sequence[str] = (),
        inputs: bool = False,
        min_units: int = 1,
        round_to: int = 1,
        forward: Callable[[nn.Module, Any], Any] | None = None,
        seed: int = 0,
    ) -> None:
        self.model = unwrap(model)
        self.schedule = parse_schedule(schedule)
        self.total_steps = total_steps
        self.optimizers = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
        self.steps = 0
        self.plan: Plan | None = None
        self._method = method
        self._budget = Budget(ratio, of, min_units, round_to)
        self._scope = checked_scope(scope)
        self._exclude = as_globs(exclude)
        self._inputs = inputs
        self._seed = seed
        self._work: _Work | None = None
        self._waiting: Any = None
        self._finished = False
        self._labels: Any = None
        self._loss_taken = False
        self._technique = _technique(method)
        self._check_arguments()
        if example is not None:
            self._trace(example, forward)
        else:
            self._waiting = self.model.register_forward_pre_hook(
                uncompiled(lambda module, args, kwargs: self._first_pass(module, args, kwargs)),
                with_kwargs=True,
            )
        _OBSERVED.add(self.model)

    def loss(self) -> torch.Tensor:
        """The term that the method adds to the training loss: 0 for methods that add none."""
        self._loss_taken = True
        if self._work is None:
            return torch.zeros((), device=next(self.model.parameters()).device)
        return self._ready().technique.loss()

    def label(self, classes: Any) -> None:
        """Tell the classes of the sequences in the coming forward pass, to methods that look at them.

        Args:
            classes: Class numbers (sequences), or ones and zeros (sequences × classes).
        """
        self._labels = classes
        if self._work is not None:
            self._work.technique.labels = classes

    def step(self) -> None:
        """Count an optimiser step; when the schedule says so, select units, and silence or remove them.

        Raises:
            RecipeError: The schedule needs something that was not given, the model has not run yet, the method's term
                was left out of the loss, or the pruner is finished.
        """
        self._check_given()
        work = self._ready()
        if self.steps == 0:
            self._check_first_step()
        self.steps += 1
        share, factor = share_and_factor(self.schedule, self.steps, self.total_steps)
        work.technique.stepped(self.steps, share)
        if self.schedule.due(self.steps):
            plan = self._decide(work, share)
            self.plan = self._original(work, plan)
            if self.schedule.shrinks:
                self._shrink(work, plan)
            else:
                silence(self.model, plan, factor)
                work.technique.selected()
                work.final = plan if share == 1.0 else None
                work.hooks.training_passes = 0

    def finish(self) -> nn.Module:
        """Select for the last time and return the smaller model. `plan` says which units stay.

        The model that was trained is not observed any more. It keeps its size, unless the schedule is `gradual`, and
        its weights, but for the gates that `neuron-selection` folds into them.

        Raises:
            RecipeError: The model has not run yet, or the pruner is finished already.
        """
        work = self._ready()
        plan = work.final if work.hooks.training_passes == 0 else None
        plan = plan or self._decide(work, 1.0)
        self.close()
        work.technique.finish(plan)
        self.plan = replace(self._original(work, plan), fitted_to=digest(self.model, self.structure))
        self._finished = True
        return apply(self.model, plan)

    def close(self) -> None:
        """Stop observing the model; another `Pruner` may take it."""
        _OBSERVED.discard(self.model)
        if self._waiting is not None:
            self._waiting.remove()
        if self._work is not None:
            self._work.hooks.remove()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs beside the model and the optimiser; plain data and tensors."""
        work = self._work
        state = {"steps": self.steps, "method": str(self._method), "structure": None}
        if work is None:
            return state
        return {
            **state,
            "structure": Plan(self.structure, whole(self.structure)).to_json(),
            # States that a caller carries may still have the size before.
            "sizes": [
                {name: list(units) for name, units in size.items()} for size in (work.course.before, work.course.units)
            ],
            "plan": None if self.plan is None else self.plan.to_json(),
            "final": work.final is not None,
            "training_passes": work.hooks.training_passes,
            "technique": work.technique.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken. With `gradual`, load this first: the model takes its later size here.

        Raises:
            RecipeError: The state is of a pruner with another method, or of another model.
            PlanError: The state is of another model.
        """
        if state.get("method") != str(self._method):
            raise RecipeError(
                f"The state is of a Pruner with method={state.get('method')!r}, not {str(self._method)!r}: make the "
                "Pruner as the one that was saved."
            )
        self.steps = int(state["steps"])
        if state["structure"] is None:
            return
        saved = Plan.from_json(state["structure"])
        if self._work is None:
            check(self.model, saved)
            self._start(saved.structure)
        work = self._ready()
        if saved.structure != self.structure or any(
            set(state["sizes"][-1][name]) - set(units) for name, units in work.course.units.items()
        ):
            raise RecipeError(
                "The state is of a model with other layers or more units, or of a Pruner with another scope=, exclude= "
                "or inputs=: build model and Pruner as those that were saved, then load the state."
            )
        for size in state["sizes"] if state["sizes"][-1] != work.course.units else ():
            here = {name: [work.course.units[name].index(unit) for unit in units] for name, units in size.items()}
            self._shrink(work, Plan(work.technique.structure, here))
        if state["plan"] is not None:
            self.plan = Plan.from_json(state["plan"])
        work.final = self.plan if state["final"] else None
        work.hooks.training_passes = int(state["training_passes"])
        work.technique.load_state_dict(state["technique"])

    # -- how it starts -------------------------------------------------------------------------------------------------

    def _first_pass(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if model is self.model and self._work is None:
            self._trace(*as_batch(model, args, kwargs))
            self._ready().hooks.before(model)  # In this pass, hooks that are new are not called before it.

    def _trace(self, example: Any, forward: Callable[[nn.Module, Any], Any] | None) -> None:
        found = record(self.model, example, forward, scope=self._scope, inputs=self._inputs)
        self._start(shared(rehearse(found, self.model, example, forward, self._exclude)))

    def _start(self, structure: Structure) -> None:
        if self._waiting is not None:
            self._waiting.remove()
        self.structure = structure
        # Whether anything can be pruned, and this much, shows now and not when the training is over.
        decide(Evidence(structure, {}), self._budget, "random")
        technique = self._technique(self.model, structure, self._method, self._budget, self.schedule.every, self._seed)
        technique.labels = self._labels
        self._work = _Work(technique, Hooks(self.model, technique), Course(structure, self._budget))

    def _ready(self) -> _Work:
        if self._finished:
            raise RecipeError("This pruner is finished: make another one to prune further.")
        if self._work is None:
            raise RecipeError(
                "The pruner has not seen the model run: run a forward pass before step(), or give Pruner an example."
            )
        return self._work

    def _check_arguments(self) -> None:
        if self._budget.ratio is None:
            raise RecipeError("ratio=None: give the fraction to remove.")
        if self._inputs and not self._technique.takes_inputs:
            able = ", ".join(repr(name) for name, technique in TECHNIQUES.items() if technique.takes_inputs)
            raise RecipeError(
                f"inputs=True: method={str(self._method)!r} removes hidden units only. Give method={able}, or leave "
                "inputs out."
            )
        if self.total_steps is not None and not (isinstance(self.total_steps, int) and self.total_steps > 0):
            raise RecipeError(f"total_steps={self.total_steps!r} is not a number of optimiser steps: give one from 1.")
        for optimizer in self.optimizers:
            if not isinstance(optimizer, Optimizer):
                raise RecipeError(f"optimizer={optimizer!r} is not a torch.optim.Optimizer: give the model's own.")
        if self.model in _OBSERVED:
            raise RecipeError(
                "The model has a Pruner already: call its finish() or close() before you make another one."
            )

    def _check_given(self) -> None:
        if self.schedule.needs_total and not self.total_steps:
            raise RecipeError(
                f"schedule={str(self.schedule)!r} goes by the progress of the training: give total_steps=, the number "
                "of optimiser steps that it will take."
            )
        if self.schedule.shrinks and not self.optimizers:
            raise RecipeError(
                f"schedule={str(self.schedule)!r} replaces parameters while training: give optimizer=, so that it goes "
                "on with the smaller ones."
            )
        if self.schedule.shrinks and processes() > 1:
            raise RecipeError(
                f"schedule={str(self.schedule)!r} replaces parameters while training, which DistributedDataParallel "
                "cannot follow: give another one, such as 'soft:200', or train in one process."
            )

    def _check_first_step(self) -> None:
        if self._technique.adds_loss and not self._loss_taken:
            raise RecipeError(
                f"method={str(self._method)!r} adds a term to the loss, which was not asked for: use "
                "(loss + pruner.loss()).backward() in every step."
            )
        if self.schedule.shrinks:
            tensors = named_tensors(self.model)
            free = {slot.tensor for name in self.structure.prunable for slot in self.structure.slots_of(name)}
            trained = {name: tensors[name] for name in sorted(free) if tensors[name].requires_grad}
            check_optimizers(trained, self.optimizers)

    # -- what it decides -----------------------------------------------------------------------------------------------

    def _decide(self, work: _Work, share: float) -> Plan:
        """A plan for the model as it is, that leaves what `share` of the ratio leaves of the model that came in."""
        return agreed(work.technique.decide(work.course.budget(share, work.technique.structure)))

    def _original(self, work: _Work, plan: Plan) -> Plan:
        """The same decision about the model that came in."""
        return plan if work.technique.structure is self.structure else work.course.original(plan)

    def _shrink(self, work: _Work, plan: Plan) -> None:
        """Make the model smaller in place."""
        if any(plan.removed().values()):
            shrink(self.model, plan, self.optimizers)
            work.technique.shrunk(shrunk(work.technique.structure, plan.kept), plan.kept)
            work.course.shrink(plan.kept)


@dataclass
class _Work:
    """What there is once the model was traced.

    Attributes:
        technique: The method.
        hooks: Show it the model's passes.
        course: Of which units of the model that came in the model now consists.
        final: The latest selection, if it was of the whole ratio.
    """

    technique: Technique
    hooks: Hooks
    course: Course
    final: Plan | None = None


def _technique(method: str | Method) -> type[Technique]:
    """What runs a method.

    Raises:
        RepruneError: When the name is unknown.
        RecipeError: When the method looks at what a training's forward passes do not show.
    """
    check_training_method(method)
    if isinstance(method, str) and method in TECHNIQUES:
        return TECHNIQUES[method]
    if get_method(method).needs_loss:
        raise RecipeError(
            f"method={method!r} needs gradients of a loss, which forward passes do not show: give one that looks at "
            "weights and responses, such as 'iss-gm', or call reprune.torch.prune() when training is over."
        )
    return Selection
