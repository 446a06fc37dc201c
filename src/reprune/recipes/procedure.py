"""What every recipe does with its model and its data: train → prune → fine-tune → evaluate."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from rich import box
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_model, save_model
from torch import nn

import reprune.torch as verbs
from reprune.core.cost import CostModel
from reprune.core.plan import Plan
from reprune.recipes.checkpoints import Checkpoints
from reprune.recipes.folder import RunFolder, read_json, replacing, write_json
from reprune.recipes.latency import latency_ms
from reprune.recipes.options import RunOptions
from reprune.recipes.quiet import quiet
from reprune.recipes.trainer import make_trainer
from reprune.report import write_report
from reprune.torch.expand import expand
from reprune.torch.lightning import PruningCallback
from reprune.torch.training import Pruner

Say = Callable[[str], None]
Summary = dict[str, Any]


class Data(LightningDataModule, ABC):
    """Batches to train on and to measure on, beside Lightning's `train_dataloader` and `val_dataloader`."""

    @abstractmethod
    def start(self, epoch: int, batches: int) -> None:
        """Let training go on in an epoch, after that many of its batches."""

    @abstractmethod
    def test_dataloader(self) -> Iterable[Any]:
        """What is measured at the end."""

    def training_batches(self) -> int | None:
        """Batches of an epoch, where the loader itself does not know."""
        return None

    @abstractmethod
    def calibration(self, model: nn.Module, device: torch.device) -> Iterator[tuple[Any, ...]]:
        """Inputs of a model from the training data, as many batches as the options say."""

    @abstractmethod
    def example(self) -> tuple[Any, ...]:
        """A small input of the model from the training data."""

    @abstractmethod
    def sample(self) -> tuple[Any, ...]:
        """One input of the model from the measured data, to time it on."""


class Recipe(ABC):
    """What a recipe brings: its model, its data, and how the one is trained and measured on the other.

    Attributes:
        options: What the user asked for.
        metrics: Names of the metrics that `module` logs when it validates.
    """

    options: RunOptions
    metrics: tuple[str, ...]

    @abstractmethod
    def build(self) -> nn.Module:
        """The dense model, always with the same weights for the same seed."""

    @abstractmethod
    def data(self, offset: int = 0) -> Data:
        """The data; `offset` is added to the epoch, so that two parts of a run do not see the same order."""

    @abstractmethod
    def module(self, model: nn.Module, *, finetune: bool = False) -> LightningModule:
        """The model as Lightning trains and measures it."""

    def files(self) -> Mapping[str, str]:
        """Texts that the run's folder keeps beside the model, by file name: what one needs to use it."""
        return {}


def run(recipe: Recipe, out: Path, *, resume: bool = False, say: Say = lambda _: None) -> Summary:
    """Train, prune, fine-tune and evaluate; everything lands in a folder.

    It holds, at the end, `summary.json`, `plan.json`, `model.safetensors` (the pruned model, see `reprune.torch.load`),
    `dense.safetensors`, `report.html`, logs and checkpoints. A run that was interrupted at any moment goes on with
    `resume=True` and ends with the same weights as one that was not.

    Args:
        recipe: What to do.
        out: The folder.
        resume: Go on with the run that the folder holds, if there is one.
        say: Told what is going on, a line at a time.

    Returns:
        The content of `summary.json`.

    Raises:
        RecipeError: The folder cannot be written, or holds another run.
        InterruptedRunError: The user asked to stop.
    """
    folder = RunFolder(out, recipe.options, resume=resume)
    with quiet():
        _train(folder, recipe, say)
        _prune(folder, recipe, say)
        _finetune(folder, recipe, say)
        return _evaluate(folder, recipe, say)


def evaluate_folder(folder: Path, recipe: Recipe) -> Summary:
    """Measure both models of a finished run: a summary without sizes and times.

    Args:
        folder: The run's folder.
        recipe: The run's recipe, on the data to measure on.

    Raises:
        PlanError: The run is not finished.
    """
    options = recipe.options
    small = verbs.load(recipe.build(), folder)
    dense = _load(recipe.build(), folder / "dense.safetensors")
    with quiet():
        return {
            "method": options.method,
            "ratio": options.ratio,
            "dense": measure(dense, recipe),
            "pruned": measure(small, recipe),
        }


def measure(model: nn.Module, recipe: Recipe) -> dict[str, float]:
    """Metrics of a model on the data of the final measurement."""
    trainer = make_trainer(recipe.options)
    found = trainer.validate(recipe.module(model), recipe.data().test_dataloader(), verbose=False)[0]
    return {name: float(found[name]) for name in recipe.metrics}


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


def _train(folder: RunFolder, recipe: Recipe, say: Say) -> None:
    if folder.done("train"):
        return
    options = recipe.options
    say(f"Training the dense model for {options.epochs} epochs")
    with folder.part("train"):
        dense = recipe.build()
        data = recipe.data()
        pruner = None
        if options.prunes_while_training:
            batches = data.training_batches()
            pruner = Pruner(
                dense,
                data.example(),
                ratio=options.ratio,
                of=options.of,
                method=options.method,
                schedule=options.when,
                total_steps=None if batches is None else batches * options.epochs,
                seed=options.seed,
            )
        _fit(folder, "train", dense, recipe, options.epochs, data, [PruningCallback(pruner)] if pruner else [])
        dense.cpu()
        if pruner is not None:
            small = pruner.finish()
            assert pruner.plan is not None
            if pruner.schedule.shrinks:
                dense = expand(recipe.build(), small, pruner.plan)
            _save_plan(folder, pruner.plan)
        for name, text in recipe.files().items():
            _save_text(folder.path / name, text)
        _save(dense, folder.path / "dense.safetensors")


def _prune(folder: RunFolder, recipe: Recipe, say: Say) -> None:
    if folder.done("prune"):
        return
    options = recipe.options
    say(f"Pruning {options.ratio:.0%} of the {options.of} with {options.method}")
    with folder.part("prune"):
        dense = _load(recipe.build(), folder.path / "dense.safetensors")
        if not options.prunes_while_training:
            device = make_trainer(options).strategy.root_device
            decided = verbs.plan(
                dense.to(device),
                recipe.data().calibration(dense, device),
                ratio=options.ratio,
                of=options.of,
                method=options.method,
                seed=options.seed,
            )
            _save_plan(folder, decided)
        small = verbs.apply(dense.cpu(), _read_plan(folder))
        _save(small, folder.path / "checkpoints" / "pruned.safetensors")


def _finetune(folder: RunFolder, recipe: Recipe, say: Say) -> None:
    if folder.done("finetune"):
        return
    epochs = recipe.options.finetune_epochs or 0
    say(f"Fine-tuning the smaller model for {epochs} epochs")
    with folder.part("finetune"):
        small = verbs.apply(recipe.build(), _read_plan(folder))
        _load(small, folder.path / "checkpoints" / "pruned.safetensors")
        if epochs:
            data = recipe.data(offset=recipe.options.epochs)
            _fit(folder, "finetune", small, recipe, epochs, data, [])
        _save(small.cpu(), folder.path / "model.safetensors")


def _evaluate(folder: RunFolder, recipe: Recipe, say: Say) -> Summary:
    if folder.done("evaluate"):
        say("This run is finished.")
        summary: Summary = read_json(folder.path / "summary.json")
        return summary
    say("Evaluating both models")
    with folder.part("evaluate"):
        plan = _read_plan(folder)
        dense = _load(recipe.build(), folder.path / "dense.safetensors")
        small = verbs.load(recipe.build(), folder.path)
        models = {"dense": dense, "pruned": small}
        times = latency_ms(models, recipe.data().sample())
        cost = CostModel(plan.structure)
        units = {"dense": plan.structure.counts(), "pruned": plan.counts()}
        summary = {"method": recipe.options.method, "ratio": recipe.options.ratio}
        for name, model in models.items():
            summary[name] = {
                **measure(model, recipe),
                "parameters": sum(parameter.numel() for parameter in model.parameters()),
                "macs": round(cost("macs", units[name])),
                "latency_ms": times[name],
            }
        summary["units"] = {layer: [units["dense"][layer], units["pruned"][layer]] for layer in units["dense"]}
        write_json(folder.path / "summary.json", summary)
    write_report(folder.path / "report.html", plan, {**summary, "seconds": folder.seconds})
    return summary


def _fit(
    folder: RunFolder,
    part: str,
    model: nn.Module,
    recipe: Recipe,
    epochs: int,
    data: Data,
    callbacks: list[Callback],
) -> None:
    """Train for some epochs, from the part's checkpoint if there is one."""
    path = folder.checkpoint(part)
    # The pruner comes first: a checkpoint must hold what it did in that step.
    callbacks = [*callbacks, Checkpoints(path, recipe.options.checkpoint_steps, data.start)]
    trainer = make_trainer(recipe.options, epochs=epochs, logs=folder.path / "logs" / part, callbacks=callbacks)
    module = recipe.module(model, finetune=part == "finetune")
    trainer.fit(module, data, ckpt_path=path if path.exists() else None)


def _save(model: nn.Module, path: Path) -> None:
    with replacing(path) as part:
        save_model(model, str(part))


def _load(model: nn.Module, path: Path) -> nn.Module:
    load_model(model, str(path))
    return model


def _save_text(path: Path, text: str) -> None:
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def _save_plan(folder: RunFolder, plan: Plan) -> None:
    _save_text(folder.path / "plan.json", plan.to_json())


def _read_plan(folder: RunFolder) -> Plan:
    return Plan.from_json((folder.path / "plan.json").read_bytes())
