"""The whole job on videos made up for the purpose, in a few minutes."""

from __future__ import annotations

from collections.abc import Callable
from math import factorial
from pathlib import Path
from typing import Any

from reprune.core.plan import Plan
from reprune.recipes.run.folder import RunFolder, opened, read_json, write_json
from reprune.recipes.run.interrupts import InterruptedRunError
from reprune.recipes.run.options import Options
from reprune.recipes.run.quiet import quiet
from reprune.recipes.run.trainer import make_trainer
from reprune.recipes.video import sizes
from reprune.recipes.video.data import Videos
from reprune.recipes.video.generated import FEATURES, write_shards
from reprune.recipes.video.recipe import run, table
from reprune.recipes.video.tagger import Tagger
from reprune.recipes.video.torch_recipe import YouTube8M
from reprune.report import render_table
from reprune.runtimes.torch_export import pytorch_threads
from reprune.youtube8m.model import MeanPoolClassifier

SCENES, NOISE = 4, 1.5
"""So hard that no model gets all videos right: what a smaller one loses shows."""
VARIANTS = (("iss-gm", 0.75), ("reconstruct", 0.5), ("reconstruct", 0.75))
"""Beside the run itself, which prunes with iss-gm to half."""
EXPLAINED = (
    "\nGAP@20 tells how well the 20 best guesses for every video are ranked, all videos together: 1 is perfect. The "
    "baseline, which averages each\nvideo over time, cannot see the order of its scenes. MACs are multiplications with "
    "an addition: what the arithmetic of one frame costs."
)
_PARTS = {
    "generate": "generating videos",
    "baseline": "training the baseline",
    "train": "training the dense model",
    "prune": "choosing units and removing them",
    "finetune": "fine-tuning the smaller model",
    "evaluate": "evaluating both",
}


def demo_options(out: Path, seed: int = 0) -> Options:
    """What the demo trains and how it prunes it."""
    data = out / "data"
    return Options(
        train=(str(data / "train*.tfrecord"),),
        validate=(str(data / "validate*.tfrecord"),),
        features=FEATURES,
        classes=factorial(SCENES),
        hidden=256,
        epochs=6,
        finetune_epochs=2,
        batch_size=32,
        learning_rate=2e-3,
        calibration_batches=20,
        accelerator="cpu",
        seed=seed,
    )


def run_demo(
    out: Path,
    *,
    seed: int = 0,
    progress: bool = False,
    say: Callable[[str], None] = lambda _: None,
    options: Options | None = None,
    videos: tuple[int, int] = (1200, 400),
) -> dict[str, Any]:
    """Generate videos, train a baseline and the recurrent model, prune it to half, fine-tune, evaluate, report.

    In a folder that holds a demo already it goes on where that one was; a finished one is shown again.

    Args:
        out: The folder, as in `reprune.recipes.video.recipe.run`; the videos are in `data` below it.
        seed: Seed of everything.
        progress: Whether progress bars are shown.
        say: Told what is going on and what came out.
        options: Other options than `demo_options`, on the same files.
        videos: How many videos to train on and to measure on.

    Returns:
        The run's summary, with the metrics of the baseline as `baseline`.
    """
    # Models this small only lose time when their work is shared out.
    options = Options.from_dict({**(options or demo_options(out, seed)).to_dict(), "progress": progress})
    with pytorch_threads(1), opened(out, options, resume=True, go_on="the same command goes on") as folder:
        return _run(folder, options, seed, say, videos)


def _run(
    folder: RunFolder, options: Options, seed: int, say: Callable[[str], None], videos: tuple[int, int]
) -> dict[str, Any]:
    out = folder.path
    if folder.done("evaluate"):
        say(f"This demo has run already; here is what it left. Remove {out} to run it again.")
    if not folder.done("generate"):
        say(
            f"Generating {sum(videos):,} noisy videos of {SCENES} scenes each; their {options.classes} classes are the "
            "orders of the scenes"
        )
        with folder.part("generate"):
            write_shards(out / "data", train=videos[0], validate=videos[1], scenes=SCENES, noise=NOISE, seed=seed)
    baseline = out / "baseline.json"
    if not folder.done("baseline"):
        say("Training a baseline that averages over time, so that it cannot see order")
        with folder.part("baseline"), quiet():
            write_json(baseline, train_baseline(options))
    try:
        summary = run(options, out, resume=True, say=say)
        first = {sizes.name_of(options.method, options.ratio): summary}
        summaries = first | sizes.run_variants(options, out, VARIANTS, say)
    except InterruptedRunError as error:
        raise InterruptedRunError(f"{str(error).split(':')[0]}. Run the same command again to go on.") from None
    summary = {**summary, "baseline": read_json(baseline)}
    seconds = RunFolder(out, options, resume=True).seconds
    say("\n" + render_table(Plan.from_json((out / "plan.json").read_bytes())))
    say("\n" + table(summary))
    say("\nMeasuring speed")
    speed = sizes.measure_speed(options, out, list(summaries))
    (out / "speed.json").write_text(speed.to_json(), encoding="utf-8")
    (out / "overview.svg").write_text(sizes.overview_picture(summaries, speed), encoding="utf-8")
    say("\n" + sizes.table(summaries, speed))
    say(EXPLAINED)
    say("\nTime of each part of the first run:")
    for name, text in _PARTS.items():
        say(f"  {seconds[name]:6.1f} s  {text}")
    say(f"\nReport: {out / 'report.html'}")
    return summary


def train_baseline(options: Options) -> dict[str, float | int]:
    """Metrics and number of parameters of a mean-pooling perceptron trained as the recurrent model is."""
    recipe = YouTube8M(options)
    recipe.build()  # Seeds.
    model = MeanPoolClassifier(
        sum(options.features.values()), options.classes, options.hidden, normalize=options.normalize
    )
    make_trainer(options, epochs=options.epochs).fit(Tagger(model, options), Videos(options))
    return {**recipe.measure(model), "parameters": recipe.parameters(model)}
