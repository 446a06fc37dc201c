"""The paper's whole procedure on YouTube-8M records: train → prune → fine-tune → evaluate.

N. Gkalelis, V. Mezaris, "Structured Pruning of LSTMs via Eigenanalysis and Geometric Median for Mobile Multimedia and
Deep Learning Applications", IEEE ISM 2020.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer, seed_everything
from rich import box
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_model, save_model
from torch import nn

import reprune.torch as verbs
from reprune.core.cost import CostModel
from reprune.core.plan import Plan
from reprune.recipes.checkpoints import Checkpoints
from reprune.recipes.folder import RunFolder, options_of, read_json, replacing, write_json
from reprune.recipes.latency import latency_ms
from reprune.recipes.options import Options
from reprune.recipes.quiet import quiet
from reprune.recipes.tagger import METRICS, Tagger
from reprune.recipes.trainer import make_trainer
from reprune.recipes.videos import Videos
from reprune.report import write_report
from reprune.torch.lightning import PruningCallback
from reprune.torch.training import Pruner
from reprune.youtube8m.model import VideoClassifier

Say = Callable[[str], None]
Summary = dict[str, Any]


def run(options: Options, out: Path, *, resume: bool = False, say: Say = lambda _: None) -> Summary:
    """Train, prune, fine-tune and evaluate; everything lands in a folder.

    It holds, at the end, `summary.json`, `plan.json`, `model.safetensors` (the pruned model, see `reprune.torch.load`),
    `dense.safetensors`, `report.html`, logs and checkpoints. A run that was interrupted at any moment goes on with
    `resume=True` and ends with the same weights as one that was not.

    Args:
        options: What to do.
        out: The folder.
        resume: Go on with the run that the folder holds, if there is one.
        say: Told what is going on, a line at a time.

    Returns:
        The content of `summary.json`.

    Raises:
        RecipeError: The folder cannot be written, or holds another run.
        RecordError: Records are missing or damaged.
        InterruptedRunError: The user asked to stop.
    """
    folder = RunFolder(out, options, resume=resume)
    with quiet():
        _train(folder, options, say)
        _prune(folder, options, say)
        _finetune(folder, options, say)
        return _evaluate(folder, options, say)


def build(options: Options) -> VideoClassifier:
    """The dense model, always with the same weights for the same seed."""
    seed_everything(options.seed, verbose=False)
    features = sum(options.features.values())
    return VideoClassifier(features, options.classes, options.hidden, normalize=options.normalize)


def evaluate_folder(
    folder: Path, data: tuple[str, ...], *, batch_size: int | None = None, accelerator: str = "auto"
) -> Summary:
    """Measure both models of a finished run on other records: a summary without sizes and times.

    Raises:
        RecipeError: The folder holds no run.
        PlanError: The run is not finished.
    """
    options = replace(options_of(folder), test=data, accelerator=accelerator, progress=False)
    options = replace(options, batch_size=batch_size or options.batch_size)
    small = verbs.load(build(options), folder)
    dense = _load(build(options), folder / "dense.safetensors")
    with quiet():
        return {
            "method": options.method,
            "ratio": options.ratio,
            "dense": measure(dense, options),
            "pruned": measure(small, options),
        }


def measure(model: nn.Module, options: Options) -> dict[str, float]:
    """GAP, mAP, Hit@1 and PERR of a model on the records of the final measurement."""
    trainer = make_trainer(options)
    videos = Videos(options)
    found = trainer.validate(Tagger(model, options), videos.test_dataloader(), verbose=False)[0]
    return {name: float(found[name]) for name in METRICS}


def table(summary: Mapping[str, Any]) -> str:
    """A summary as a table for people."""
    rows = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    rows.add_column("")
    names = [name for name in ("baseline", "dense", "pruned") if name in summary]
    for name in names:
        rows.add_column(name, justify="right")
    for key, value in summary["dense"].items():
        texts = [_text(summary[name].get(key), isinstance(value, int)) for name in names]
        rows.add_row(_LABELS.get(key, key), *texts)
    console = Console(width=100, color_system=None)
    with console.capture() as capture:
        console.print(rows)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


_LABELS = {
    "gap": "GAP@20",
    "map": "mAP",
    "hit_at_1": "Hit@1",
    "perr": "PERR",
    "macs": "MACs per frame",
    "latency_ms": "ms per video",
}


def _text(value: float | None, whole: bool) -> str:
    if value is None:
        return ""
    return f"{value:,}" if whole else f"{value:.4f}"


def _train(folder: RunFolder, options: Options, say: Say) -> None:
    if folder.done("train"):
        return
    say(f"Training the dense model for {options.epochs} epochs")
    with folder.part("train"):
        dense = build(options)
        videos = Videos(options)
        pruner = None
        if options.when.kind != "after":
            pruner = Pruner(
                dense,
                videos.example(),
                ratio=options.ratio,
                of=options.of,
                method=options.method,
                schedule=options.when,
                seed=options.seed,
            )
        _fit(folder, "train", dense, options, options.epochs, videos, [PruningCallback(pruner)] if pruner else [])
        dense.cpu()
        if pruner is not None:
            pruner.finish()
            assert pruner.plan is not None
            _save_plan(folder, pruner.plan)
        _save(dense, folder.path / "dense.safetensors")


def _prune(folder: RunFolder, options: Options, say: Say) -> None:
    if folder.done("prune"):
        return
    say(f"Pruning {options.ratio:.0%} of the {options.of} with {options.method}")
    with folder.part("prune"):
        dense = _load(build(options), folder.path / "dense.safetensors")
        if options.when.kind == "after":
            device = make_trainer(options).strategy.root_device
            decided = verbs.plan(
                dense.to(device),
                Videos(options).calibration(device),
                ratio=options.ratio,
                of=options.of,
                method=options.method,
                seed=options.seed,
            )
            _save_plan(folder, decided)
        small = verbs.apply(dense.cpu(), _read_plan(folder))
        _save(small, folder.path / "checkpoints" / "pruned.safetensors")


def _finetune(folder: RunFolder, options: Options, say: Say) -> None:
    if folder.done("finetune"):
        return
    epochs = options.finetune_epochs or 0
    say(f"Fine-tuning the smaller model for {epochs} epochs")
    with folder.part("finetune"):
        small = verbs.apply(build(options), _read_plan(folder))
        _load(small, folder.path / "checkpoints" / "pruned.safetensors")
        if epochs:
            videos = Videos(options, offset=options.epochs)
            _fit(folder, "finetune", small, options, epochs, videos, [])
        _save(small.cpu(), folder.path / "model.safetensors")


def _evaluate(folder: RunFolder, options: Options, say: Say) -> Summary:
    if folder.done("evaluate"):
        say("This run is finished.")
        summary: Summary = read_json(folder.path / "summary.json")
        return summary
    say("Evaluating both models")
    with folder.part("evaluate"):
        plan = _read_plan(folder)
        dense = _load(build(options), folder.path / "dense.safetensors")
        small = verbs.load(build(options), folder.path)
        models = {"dense": dense, "pruned": small}
        times = latency_ms(models, Videos(options).longest())
        cost = CostModel(plan.structure)
        units = {"dense": plan.structure.counts(), "pruned": plan.counts()}
        summary = {"method": options.method, "ratio": options.ratio}
        for name, model in models.items():
            summary[name] = {
                **measure(model, options),
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
    options: Options,
    epochs: int,
    videos: Videos,
    callbacks: list[Callback],
) -> None:
    """Train for some epochs, from the part's checkpoint if there is one."""
    path = folder.checkpoint(part)
    # The pruner comes first: a checkpoint must hold what it did in that step.
    callbacks = [*callbacks, Checkpoints(path, options.checkpoint_steps, videos.start)]
    trainer: Trainer = make_trainer(options, epochs=epochs, logs=folder.path / "logs" / part, callbacks=callbacks)
    # The paper's schedule falls too slowly to end a short fine-tuning on a quiet note.
    tagger = Tagger(model, options, anneal=part == "finetune")
    trainer.fit(tagger, videos, ckpt_path=path if path.exists() else None)


def _save(model: nn.Module, path: Path) -> None:
    with replacing(path) as part:
        save_model(model, str(part))


def _load(model: nn.Module, path: Path) -> nn.Module:
    load_model(model, str(path))
    return model


def _save_plan(folder: RunFolder, plan: Plan) -> None:
    with replacing(folder.path / "plan.json") as part:
        part.write_text(plan.to_json(), encoding="utf-8")


def _read_plan(folder: RunFolder) -> Plan:
    return Plan.from_json((folder.path / "plan.json").read_bytes())
