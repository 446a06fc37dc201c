"""Never a wrong model: the trace is checked on the user's own example, whatever it missed.

Two checks, both on a plan of random units. *Leak*: with the removed units' columns zero in every consumer found, noise
in the units' own incoming weights must not move the output; if it does, something still reads them. *Rehearsal*: the
pruned model must compute what the masked one does; a size written into the user's code shows here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import nn

from reprune.core.errors import RepruneError, VerificationError
from reprune.core.evidence.passes import Forward
from reprune.core.layers import Pin, Site, Structure
from reprune.core.plan import Plan
from reprune.core.rehearsal import blocks_of, held_back, inexact, random_plan
from reprune.torch.surgery.apply import apply, mask, named_tensors, silence
from reprune.torch.surgery.guesses import guesses
from reprune.torch.tracing.leaves import leaves
from reprune.torch.tracing.location import of_error, of_failure, ours
from reprune.torch.tracing.record import Trace
from reprune.torch.tracing.running.calling import call
from reprune.torch.tracing.running.copies import duplicate
from reprune.torch.tracing.running.isolation import apart
from reprune.torch.tracing.running.training_pass import trains_otherwise

_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}


def rehearse(
    found: Trace, model: nn.Module, example: Any, forward: Forward | None = None, exclude: Sequence[str] = ()
) -> Structure:
    """The structure, with layers pinned whose removal the model's own code does not survive.

    Raises:
        VerificationError: When something reads units that the trace did not see.
    """
    pins = held_back(found.structure(), exclude)
    structure = found.structure(pins)
    trial = _Trial(found, model, example, forward)
    if trial.problem(structure, blocks_of(structure)) is None:
        return structure
    if found.tighten():
        structure = found.structure(pins)
        if trial.problem(structure, blocks_of(structure)) is None:
            return structure
    for block in blocks_of(structure):
        pin = trial.problem(structure, [block])
        if pin is not None and not trial.mended(pins, block):
            pins.update(dict.fromkeys(block, pin))
    structure = found.structure(pins)
    left = blocks_of(structure)
    joint = trial.problem(structure, left)
    if joint is not None:
        pins.update({name: joint for block in left for name in block})
    return found.structure(pins)


def verify(plan: Plan, found: Trace, model: nn.Module, small: nn.Module, example: Any, forward: Forward | None) -> None:
    """Check a pruned model against the masked one on an example.

    Raises:
        VerificationError: When they differ by more than rounding.
    """
    trial = _Trial(found, model, example, forward)
    if inexact(plan):
        return
    masked = mask(model, plan)
    expected = trial.outputs(masked)
    if _differ(expected, trial.outputs(small)) and trial.repeats(masked, expected):
        raise VerificationError(
            "The pruned model does not compute what the masked one does on the first batch: it is not returned. "
            "Exclude layers (exclude=[...]) to find the one, and report it with the model's forward."
        )


class _Trial:
    """Runs pruned and masked models on the user's example."""

    def __init__(self, found: Trace, model: nn.Module, example: Any, forward: Forward | None) -> None:
        self._found, self._model, self._example, self._forward = found, model, example, forward

    def outputs(self, model: nn.Module, *, train: bool = False) -> list[torch.Tensor]:
        """Output tensors but for carried states, with the same random numbers each time.

        Of two calls where there are states: the second one goes on with those of the first.
        """
        model = duplicate(model, share=True)  # What a call leaves behind stays in it.

        def example() -> Any:
            return call(model, self._example, self._forward)

        with torch.no_grad(), apart(model, train=train):
            first = example()
            calls = [first, self._found.next_call(model, first, example)]
        return [
            tensor
            for output in calls
            for index, (_, tensor) in enumerate(leaves(output))
            if index not in self._found.state_outputs
        ]

    @cached_property
    def _trains(self) -> bool:
        """Whether the model does something else in training mode, and does that on the example."""
        if not trains_otherwise(self._model):
            return False
        try:
            self.outputs(self._model, train=True)
        except Exception:
            return False
        return True

    def repeats(self, model: nn.Module, before: Sequence[torch.Tensor]) -> bool:
        """Whether a model computes again what it did; one that is random in spite of the seed cannot be compared."""
        return not _differ(before, self.outputs(model))

    def problem(self, structure: Structure, blocks: Sequence[Sequence[str]]) -> Pin | None:
        """Why these layers cannot lose units, or None.

        Raises:
            VerificationError: When something reads units that the trace did not see.
        """
        exact = [block for block in blocks if not any(structure.layers[name].approximate for name in block)]
        trials = [exact] if exact else []
        if len(exact) < len(blocks):
            trials.append(list(blocks))  # What is not exact cannot be compared, but it must run.
        for together in trials:
            pin = self._problem(structure, together, compare=together is exact)
            if pin is not None:
                return pin
        return None

    def _problem(self, structure: Structure, blocks: Sequence[Sequence[str]], *, compare: bool) -> Pin | None:
        plan = random_plan(structure, blocks)
        try:
            small = apply(self._model, plan)
            outputs = self.outputs(small)
            if self._trains:
                self.outputs(small, train=True)
        except RepruneError:
            raise
        except Exception as error:
            names = [name for block in blocks for name in block]
            known = self._found.split(names) or self._found.lost(names, of_error(error, "").location)
            return known or _why(error, structure.layers[blocks[0][0]].units)
        # One comparison passes both checks; what failed is only asked when it does not.
        if not compare or not _differ(self._full_size(_noisy(self._model, plan)), outputs):
            return None
        masked = mask(self._model, plan)
        expected = self.outputs(masked)
        if not self.repeats(masked, expected):
            return None
        if _differ(self.outputs(_noisy(self._model, plan)), expected):
            raise self._leak(structure, blocks)
        names = [name for block in blocks for name in block]
        if (counted := self._found.counted(names, structure.sizes)) is not None:
            return Pin(
                counted,
                "the model computes with the number of its units (a root, a quotient), another one with fewer of them: "
                "keep what it computes in an attribute, as self.scale = units**-0.5, set when the model is built",
            )
        site = self._found.suspect(names) or Site("forward", "")
        if any(structure.layers[name].direct for name in names):
            return Pin(
                site, "its units are summed or multiplied without a weight and count there even when they are zero"
            )
        return Pin(site, "with fewer units the model's code computes something else: a size is written into it")

    def mended(self, pins: Mapping[str, Pin], block: Sequence[str]) -> bool:
        """Whether the layers of a block can lose units once some attributes are taken as sizes; these are kept then."""
        for sizes in guesses(self._model, self._found.structure(dict(pins)), block):
            self._found.assume(sizes)
            structure = self._found.structure(dict(pins))
            together = [other for other in blocks_of(structure) if set(other) & set(block)]
            try:
                if together and self.problem(structure, together) is None:
                    return True
            except RepruneError:
                pass  # What reads units unseen is told without a guess.
            self._found.withdraw(sizes)
        return False

    def _full_size(self, model: nn.Module) -> list[torch.Tensor]:
        try:
            return self.outputs(model)
        except Exception as error:
            where = of_error(error, type(error).__name__)
            raise VerificationError(
                f"{type(model).__name__} does not run ({error}; {where}) after its pruned copy did: its code keeps "
                "tensors somewhere outside the model, such as in a global variable, and both copies read them. Keep "
                "them in an attribute of the model."
            ) from error

    def _leak(self, structure: Structure, blocks: Sequence[Sequence[str]]) -> VerificationError:
        guilty = [name for block in blocks if self._leaks(random_plan(structure, [block])) for name in block]
        return VerificationError(
            f"Something in {type(self._model).__name__} reads the units of {', '.join(guilty) or 'its layers'} in a "
            "way that was not seen: with every weight that is known to read them set to zero, the output still depends "
            "on them. Likely a detour around PyTorch's operations (NumPy, .data kept between calls, an extension, a "
            f"hook). Leave the layer alone with exclude={guilty!r}, or rewrite that part with PyTorch operations."
        )

    def _leaks(self, plan: Plan) -> bool:
        return _differ(self.outputs(mask(self._model, plan)), self.outputs(_noisy(self._model, plan)))


def _why(error: Exception, units: int) -> Pin:
    """What to say of code that fails with fewer units, and whose gap it is."""
    text = (str(error).strip() or repr(error)).split("\n")[0]
    site = of_error(error, type(error).__name__)
    if ours(error):
        return Pin(site, f"reprune itself fails on it ({text}): a gap of reprune, not of the model")
    return Pin(
        site,
        f"the model's code does not run with fewer units: {text}{of_failure(error, units)}. A size did not follow: "
        f"take it from a tensor or a module (h.size(-1), rnn.hidden_size) where it is {units}, or made of it",
    )


def _noisy(model: nn.Module, plan: Plan) -> nn.Module:
    """The masked model, with noise in the removed units' own weights: nothing reads them, so nothing may change."""
    masked = mask(model, plan)
    tensors = named_tensors(masked)
    # Units that are also read without a weight are zeroed at their source instead.
    layers = plan.structure.layers
    removed = {name: [] if layers[name].direct else units for name, units in plan.removed().items()}
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for slot in plan.structure.slots:
            gone = torch.from_numpy(slot.positions(removed))
            tensor = tensors[slot.tensor]
            if slot.role != "own" or not len(gone) or not tensor.is_floating_point():
                continue
            shape = list(tensor.shape)
            shape[slot.axis] = len(gone)
            noise = torch.randn(shape, generator=generator).to(tensor)
            current = tensor.data.index_select(slot.axis, gone.to(tensor.device))
            tensor.data.index_copy_(slot.axis, gone.to(tensor.device), current + noise)
    # Units that read each other through noise would grow without bound, from step to step.
    for slot in plan.structure.slots:
        if slot.role == "reads":
            silence(tensors, slot, removed)
    return masked


def _differ(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> bool:
    """Whether two lists of outputs differ by more than rounding."""
    if len(first) != len(second):
        return True
    return any(_differs(a, b) for a, b in zip(first, second, strict=True))


def _differs(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.shape != b.shape:
        return True
    if not (a.is_floating_point() or a.is_complex()):
        return not torch.equal(a, b)
    if a.numel() == 0:
        return False
    a, b = torch.nan_to_num(a), torch.nan_to_num(b)
    limit = _TOLERANCE.get(a.dtype, 1e-3)
    return bool((a - b).abs().max() > limit * (1e-3 + a.abs().max()))
