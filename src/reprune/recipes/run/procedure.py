"""What every recipe does with its model and its data: train → prune → fine-tune → evaluate. Imports no framework."""

from __future__ import annotations

import errno
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from rich import box
from rich.console import Console
from rich.table import Table

from reprune.core.budget.cost import CostModel
from reprune.core.errors import RecipeError
from reprune.core.plan import Plan
from reprune.core.progress import log
from reprune.core.saving.files import replacing
from reprune.core.saving.saving import PLAN
from reprune.recipes.run.folder import RunFolder, opened, read_json, write_json
from reprune.recipes.run.options import RunOptions
from reprune.recipes.run.quiet import quiet
from reprune.report import check_installed, write_report
from reprune.verbs.progress import hidden
from reprune.verbs.result import Result

Say = Callable[[str], None]
Summary = dict[str, Any]
Model = Any
T = TypeVar("T")

DENSE = "dense.safetensors"


class Recipe(ABC):
    """What a recipe brings: a model, and how one framework trains, prunes, measures and keeps it.

    Attributes:
        options: What the user asked for.
    """

    options: RunOptions

    @abstractmethod
    def build(self) -> Model:
        """The dense model, always with the same weights for the same seed."""

    @abstractmethod
    def train(self, model: Model, folder: RunFolder) -> tuple[Model, Plan | None]:
        """Train the dense model, from the folder's checkpoint if there is one.

        Returns:
            The trained model at full size, and the plan, if pruning had a part in the training.
        """

    @abstractmethod
    def expand(self, small: Model, plan: Plan) -> tuple[Model, Plan]:
        """A full-size model that computes what a smaller one does, and the plan for it."""

    def trained(self, model: Model, pruner: Any) -> tuple[Model, Plan | None]:
        """What `train` returns, given the model and the pruner, if there was one, after its last step."""
        if pruner is None:
            return model, None
        small = pruner.finish()
        return self.expand(small, pruner.plan) if pruner.schedule.shrinks else (model, pruner.plan)

    def teacher(self, folder: RunFolder) -> Model:
        """The dense model whose answers are learned."""
        given = folder.answers / DENSE
        return self.load(self.build(), given if given.exists() else folder.path / DENSE)

    @abstractmethod
    def answer(self, folder: RunFolder) -> str:
        """Keep the dense model's answers to the training data in the folder, for `train` and `finetune` to learn from.

        Returns:
            What is to be said of them; empty if nothing.
        """

    @abstractmethod
    def finetune(self, model: Model, folder: RunFolder) -> None:
        """Train the smaller model in place, on epochs that the dense one has not seen."""

    @abstractmethod
    def plan(self, model: Model) -> Plan:
        """Decide which units of the trained model go."""

    @abstractmethod
    def apply(self, model: Model, plan: Plan) -> Model:
        """The smaller model."""

    @abstractmethod
    def measure(self, model: Model) -> dict[str, float]:
        """Metrics of a model on the data of the final measurement."""

    @abstractmethod
    def parameters(self, model: Model) -> int:
        """Number of parameters."""

    @abstractmethod
    def latencies(self, models: Mapping[str, Model]) -> dict[str, float]:
        """Milliseconds of each model for one input of the measured data, on the CPU."""

    @abstractmethod
    def save(self, model: Model, path: Path) -> None:
        """Write the weights."""

    @abstractmethod
    def load(self, model: Model, path: Path) -> Model:
        """Read weights into a model of their shapes, and return it."""

    @abstractmethod
    def load_pruned(self, dense_model: Model, directory: Path) -> Model:
        """The smaller model of a run's folder."""

    def launch(self) -> AbstractContextManager[bool]:
        """Work with the other processes of the run, if there are any; gives whether this is the first one."""
        return nullcontext(True)

    def once(self, act: Callable[[], T]) -> T:
        """What `act` returns in the first process, in all of them."""
        return act()

    def files(self) -> Mapping[str, str]:
        """Texts that the run's folder keeps beside the model, by file name: what one needs to use it."""
        return {}


def run(recipe: Recipe, out: Path, *, resume: bool = False, say: Say = lambda _: None) -> Summary:
    """Train, prune, fine-tune and evaluate; everything lands in a folder.

    It holds, at the end, `summary.json`, `plan.json`, `model.safetensors` (the pruned model, see `reprune.load`),
    `dense.safetensors`, `report.html`, logs and checkpoints. A run that was interrupted at any moment goes on with
    `resume=True` and ends with the same weights as one that was not. Where several processes work on a run, the first
    one writes for all, and the others leave the program at the end.

    Args:
        recipe: What to do.
        out: The folder.
        resume: Go on with the run that the folder holds, if there is one.
        say: Told what is going on, a line at a time.

    Returns:
        The content of `summary.json`.

    Raises:
        RecipeError: The folder cannot be written, or holds another run; another process of the run failed.
        InterruptedRunError: The user asked to stop.
    """
    progress = nullcontext() if recipe.options.progress else hidden()
    with quiet(), progress, _full_disk_reported(out), recipe.launch() as first, ExitStack() as held:
        check_installed()
        folder = recipe.once(lambda: held.enter_context(opened(out, recipe.options, resume=resume)))
        folder.writes = first
        say = partial(_logged, say) if first else lambda _: None
        _train(folder, recipe, say)
        _prune(folder, recipe, say)
        _finetune(folder, recipe, say)
        summary = _evaluate(folder, recipe, say)
    if not first:
        raise SystemExit(0)
    return summary


@contextmanager
def _full_disk_reported(out: Path) -> Iterator[None]:
    """Whatever was being written, logs included."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
            raise
        raise RecipeError(f"{out} cannot be written: {error}. Make room, then add --resume to go on.") from error


def evaluate_folder(folder: Path, recipe: Recipe) -> Summary:
    """Measure both models of a finished run: a summary without sizes and times.

    Args:
        folder: The run's folder.
        recipe: The run's recipe, on the data to measure on.

    Raises:
        PlanError: The run is not finished.
    """
    options = recipe.options
    with quiet():
        small = recipe.load_pruned(recipe.build(), folder)
        dense = recipe.load(recipe.build(), folder / DENSE)
        return {
            "method": options.method,
            "ratio": options.ratio,
            "dense": recipe.measure(dense),
            "pruned": recipe.measure(small),
        }


def table(summary: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    """A summary as a table for people; `labels` says what its numbers are called."""
    rows = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    rows.add_column("")
    names = [name for name in ("baseline", "dense", "pruned") if name in summary]
    for name in names:
        rows.add_column(name, justify="right")
    for key, value in summary["dense"].items():
        texts = [_text(summary[name].get(key), isinstance(value, int)) for name in names]
        rows.add_row(labels.get(key, key), *texts)
    console = Console(width=100, color_system=None)
    with console.capture() as capture:
        console.print(rows)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def _text(value: float | None, whole: bool) -> str:
    if value is None:
        return ""
    return f"{value:,}" if whole else f"{value:.4f}"


def _logged(say: Say, line: str) -> None:
    log.info("%s", line)
    say(line)


def _train(folder: RunFolder, recipe: Recipe, say: Say) -> None:
    if folder.done("train"):
        return
    options = recipe.options
    with folder.part("train"):
        if options.teaches("train"):
            _answer(folder, recipe, say)
        dense, plan = recipe.build(), None
        if options.dense:
            say(f"Taking the dense model of {options.dense}")
            dense = _taken(dense, Path(options.dense), recipe)
        if options.prunes_while_training or not options.dense:
            say(f"Training the dense model for {_epochs(options.epochs)}")
            dense, plan = recipe.train(dense, folder)
        if plan is not None:
            _save_plan(folder, recipe, plan)
        for name, text in recipe.files().items():
            recipe.once(partial(_save_text, folder.path / name, text))
        recipe.save(dense, folder.path / DENSE)


def _taken(model: Model, directory: Path, recipe: Recipe) -> Model:
    """The dense model of another run, in `model`."""
    if not (directory / DENSE).exists():
        raise RecipeError(f"--dense {directory} holds no dense model: give the folder of a run that has trained one.")
    for name, text in recipe.files().items():
        file = directory / name
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            raise RecipeError(f"--dense {directory} was trained with another {name}: give the options that make it.")
    try:
        return recipe.load(model, directory / DENSE)
    except (RuntimeError, ValueError, KeyError) as error:
        raise RecipeError(f"--dense {directory} holds a model of other sizes: give its options. {error}") from None


def _answer(folder: RunFolder, recipe: Recipe, say: Say) -> None:
    """Have the dense model answer the training data, once in a run."""
    options, given = recipe.options, folder.answers / DENSE
    if options.teaches("train") and not recipe.once(given.exists):
        # What the run calls its dense model later was pruned while it trained.
        recipe.save(_taken(recipe.build(), Path(options.dense), recipe), given)
    if folder.done("answers"):
        recipe.answer(folder)
        return
    say("Asking the dense model for its answers to the training data")
    with folder.part("answers"):
        said = recipe.answer(folder)
    if said:
        say(said)


def _prune(folder: RunFolder, recipe: Recipe, say: Say) -> None:
    if folder.done("prune"):
        return
    options = recipe.options
    say(f"Pruning {options.ratio:.0%} of the {options.of} with {options.method}")
    with folder.part("prune"):
        dense = recipe.load(recipe.build(), folder.path / DENSE)
        if not options.prunes_while_training:
            # On all of the data, as in a run of one process.
            _save_plan(folder, recipe, recipe.once(lambda: recipe.plan(dense)))
        small = recipe.apply(dense, _read_plan(folder))
        recipe.save(small, folder.path / "checkpoints" / "pruned.safetensors")


def _epochs(count: int) -> str:
    return f"{count} epoch" if count == 1 else f"{count} epochs"


def _finetune(folder: RunFolder, recipe: Recipe, say: Say) -> None:
    if folder.done("finetune"):
        return
    epochs = recipe.options.finetune_epochs or 0
    if epochs and recipe.options.teaches("finetune"):
        _answer(folder, recipe, say)
    say(f"Fine-tuning the smaller model for {_epochs(epochs)}")
    with folder.part("finetune"):
        plan = _read_plan(folder)
        small = recipe.apply(recipe.build(), plan.cut_only())
        small = recipe.load(small, folder.path / "checkpoints" / "pruned.safetensors")
        if epochs:
            recipe.finetune(small, folder)
        recipe.once(lambda: Result(small, plan).save(folder.path))


def _evaluate(folder: RunFolder, recipe: Recipe, say: Say) -> Summary:
    if folder.done("evaluate"):
        say("This run is finished.")
        summary: Summary = read_json(folder.path / "summary.json")
        return summary
    say("Evaluating both models")
    with folder.part("evaluate"):
        # Nobody learns from them any more, and they are large.
        recipe.once(lambda: shutil.rmtree(folder.answers, ignore_errors=True))
        plan = _read_plan(folder)
        dense = recipe.load(recipe.build(), folder.path / DENSE)
        models = {"dense": dense, "pruned": recipe.load_pruned(recipe.build(), folder.path)}
        times = recipe.once(lambda: recipe.latencies(models))
        cost = CostModel(plan.structure)
        units = {"dense": plan.structure.counts(), "pruned": plan.counts()}
        summary = {"method": recipe.options.method, "ratio": recipe.options.ratio}
        for name, model in models.items():
            summary[name] = {
                **recipe.measure(model),
                "parameters": recipe.parameters(model),
                "macs": round(cost("macs", units[name])),
                "latency_ms": times[name],
            }
        summary["units"] = {layer: [units["dense"][layer], units["pruned"][layer]] for layer in units["dense"]}
        recipe.once(lambda: write_json(folder.path / "summary.json", summary))
    recipe.once(lambda: write_report(folder.path / "report.html", plan, {**summary, "seconds": folder.seconds}))
    return summary


def _save_plan(folder: RunFolder, recipe: Recipe, plan: Plan) -> None:
    recipe.once(lambda: _save_text(folder.path / "checkpoints" / PLAN, plan.to_json()))


def _save_text(path: Path, text: str) -> None:
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def _read_plan(folder: RunFolder) -> Plan:
    path = folder.path / "checkpoints" / PLAN
    # A run that an older version began has it where the result will be.
    return Plan.from_json((path if path.exists() else folder.path / PLAN).read_bytes())
