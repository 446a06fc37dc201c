"""Recipes that PyTorch and Lightning train."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

import reprune.torch as verbs
from reprune.core.errors import RecipeError
from reprune.core.evidence.passes import Again, Labels
from reprune.core.plan import Plan
from reprune.core.saving.files import replacing
from reprune.recipes.run import processes
from reprune.recipes.run.checkpoints import Checkpoints
from reprune.recipes.run.folder import RunFolder
from reprune.recipes.run.latency import latency_ms
from reprune.recipes.run.procedure import Recipe, T
from reprune.recipes.run.trainer import make_trainer
from reprune.torch.lightning import PruningCallback
from reprune.torch.surgery.expand import expand
from reprune.torch.training.distributed import rank, summed
from reprune.torch.training.pruner import Pruner
from reprune.torch.weights import digest


class Data(LightningDataModule, ABC):
    """Batches to train on and to measure on, beside Lightning's `train_dataloader` and `val_dataloader`."""

    @abstractmethod
    def start(self, epoch: int, batches: int) -> None:
        """Let training go on in an epoch, after that many of its batches."""

    @abstractmethod
    def answer(self, teacher: Callable[[], nn.Module], folder: Path, device: torch.device) -> str:
        """Keep a model's answers to this process's training data in a folder, unless they are there.

        Args:
            teacher: Loads the model.
            folder: The folder, of all processes.
            device: Where it answers.

        Returns:
            What is to be said of them; empty if nothing.
        """

    @abstractmethod
    def learn(self, teacher: Callable[[], nn.Module], folder: Path, device: torch.device) -> None:
        """Let training batches come with the answers that are kept in a folder; those that are not there are asked for.

        Arguments are those of `answer`.
        """

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


class TorchRecipe(Recipe):
    """A recipe in PyTorch: what is left to bring is its model, its data, and how the one is trained on the other.

    Attributes:
        metrics: Names of the metrics that `module` logs when it validates.
        labels: Classes of a training batch's sequences, where it has any.
        inputs: Whether the columns of embeddings are removed as well; see `Pruner`.
    """

    metrics: tuple[str, ...]
    labels: Labels | None = None
    inputs: bool = False

    @abstractmethod
    def data(self, offset: int = 0) -> Data:
        """The data; `offset` is added to the epoch, so that two parts of a run do not see the same order."""

    @abstractmethod
    def module(self, model: nn.Module, *, finetune: bool = False) -> LightningModule:
        """The model as Lightning trains and measures it; it learns from answers as well, if batches come with them."""

    def launch(self) -> AbstractContextManager[bool]:
        """Work with the other processes of the run, if there are any; gives whether this is the first one."""
        return processes.launch(self.options)

    def once(self, act: Callable[[], T]) -> T:
        """What `act` returns in the first process, in all of them."""
        return processes.once(act)

    def train(self, model: nn.Module, folder: RunFolder) -> tuple[nn.Module, Plan | None]:
        """Train the dense model; see `Recipe.train`."""
        options, data, pruner = self.options, self.data(), None
        if options.prunes_while_training:
            batches = data.training_batches()
            pruner = Pruner(
                model,
                data.example(),
                ratio=options.ratio,
                of=options.of,
                scope=options.scope,
                method=options.method,
                schedule=options.when,
                inputs=self.inputs,
                total_steps=None if batches is None else batches * options.epochs,
                seed=options.seed,
            )
        self._fit(
            folder, "train", model, options.epochs, data, [PruningCallback(pruner, self.labels)] if pruner else []
        )
        model.cpu()
        return self.trained(model, pruner)

    def expand(self, small: nn.Module, plan: Plan) -> tuple[nn.Module, Plan]:
        """A full-size model that computes what a smaller one does, and the plan for it."""
        model = expand(self.build(), small, plan)
        return model, replace(plan, fitted_to=digest(model, plan.structure))

    def finetune(self, model: nn.Module, folder: RunFolder) -> None:
        """Train the smaller model; see `Recipe.finetune`."""
        data = self.data(offset=self.options.epochs)
        self._fit(folder, "finetune", model, self.options.finetune_epochs or 0, data, [])
        model.cpu()

    def answer(self, folder: RunFolder) -> str:
        """Have the dense model answer the training data; see `Recipe.answer`."""
        said = self.data().answer(partial(self.teacher, folder), folder.answers, self._device())
        summed(0)  # All processes have theirs.
        return said

    def plan(self, model: nn.Module) -> Plan:
        """Decide which units go."""
        options = self.options
        device = self._device()
        decided = verbs.plan(
            model.to(device),
            Again(lambda: self.data().calibration(model, device)),
            ratio=options.ratio,
            of=options.of,
            scope=options.scope,
            method=options.method,
            seed=options.seed,
        )
        model.cpu()
        return decided

    def apply(self, model: nn.Module, plan: Plan) -> nn.Module:
        """The smaller model."""
        return verbs.apply(model, plan)

    def measure(self, model: nn.Module) -> dict[str, float]:
        """Metrics of a model on the data of the final measurement."""
        trainer = make_trainer(self.options)
        found = trainer.validate(self.module(model), self.data().test_dataloader(), verbose=False)[0]
        return {name: float(found[name]) for name in self.metrics}

    def parameters(self, model: nn.Module) -> int:
        """Number of parameters."""
        return sum(parameter.numel() for parameter in model.parameters())

    def latencies(self, models: Mapping[str, nn.Module]) -> dict[str, float]:
        """Milliseconds of each model for one input of the measured data, on the CPU."""
        inputs = self.data().sample()
        copies = {name: deepcopy(model).cpu().eval() for name, model in models.items()}
        with torch.inference_mode():
            return latency_ms({name: partial(model, *inputs) for name, model in copies.items()})

    def save(self, model: nn.Module, path: Path) -> None:
        """Write the weights."""

        def write() -> None:
            try:
                with replacing(path) as part:
                    save_model(model, str(part))
            except SafetensorError as error:
                raise RecipeError(f"{path} cannot be written: {error}. Make room, then add --resume.") from error

        self.once(write)

    def load(self, model: nn.Module, path: Path) -> nn.Module:
        """Read weights into a model of their shapes, and return it."""
        load_model(model, str(path))
        return model

    def load_pruned(self, dense_model: nn.Module, directory: Path) -> nn.Module:
        """The smaller model of a run's folder."""
        return verbs.load(dense_model, directory)

    def _fit(
        self,
        folder: RunFolder,
        part: str,
        model: nn.Module,
        epochs: int,
        data: Data,
        callbacks: list[Callback],
    ) -> None:
        """Train for some epochs, from the part's checkpoint if there is one."""
        path = folder.checkpoint(part)
        if self.options.teaches(part):
            data.learn(partial(self.teacher, folder), folder.answers, self._device())
        if rank():
            torch.manual_seed(self.options.seed + rank())  # What is dropped differs from process to process.
        # The pruner comes first: a checkpoint must hold what it did in that step.
        callbacks = [*callbacks, Checkpoints(path, self.options.checkpoint_steps, data.start)]
        trainer = make_trainer(self.options, epochs=epochs, logs=folder.path / "logs" / part, callbacks=callbacks)
        module = self.module(model, finetune=part == "finetune")
        trainer.fit(module, data, ckpt_path=path if self.once(path.exists) else None)

    def _device(self) -> torch.device:
        """Where this process computes."""
        return make_trainer(self.options).strategy.root_device
