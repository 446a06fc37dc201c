"""The `reprune` command line. Commands import frameworks when they run, so that `reprune --help` is instant."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from reprune.cli.checks import check_installed
from reprune.cli.commands import Commands, ListCommand
from reprune.cli.compare import compare_app
from reprune.cli.deploy import deploy_app
from reprune.cli.options import Of, Ratio, ScopeOption, Seed
from reprune.cli.prune import prune_app
from reprune.core.methods import METHODS, TRAINING_METHODS
from reprune.core.schedule import SCHEDULES

_SETTINGS: dict[str, Any] = {"no_args_is_help": True, "rich_markup_mode": "markdown"}
app = typer.Typer(
    cls=Commands,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="Make recurrent networks smaller: remove redundant hidden units, get an ordinary dense model back.",
    **_SETTINGS,
)
train_app = typer.Typer(help="Train, prune, fine-tune and evaluate on a known kind of data.", **_SETTINGS)
evaluate_app = typer.Typer(help="Evaluate what a run left in its folder.", **_SETTINGS)
app.add_typer(train_app, name="train")
app.add_typer(prune_app)
app.add_typer(compare_app)
app.add_typer(deploy_app)
app.add_typer(evaluate_app, name="evaluate")


def _version(asked: bool) -> None:
    if asked:
        import reprune

        typer.echo(f"reprune {reprune.__version__}")
        raise typer.Exit


@app.callback()
def main(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    """What holds for every command; `Commands` looks at it."""


TrainMethodOption = Annotated[
    str, typer.Option("--method", metavar="NAME", help=f"How: {', '.join([*METHODS, *TRAINING_METHODS])}.")
]
Features = Annotated[str, typer.Option(metavar="NAME:SIZE,…", help="Feature lists and their bytes per frame.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run that --out holds, if there is one.")]
Schedule = Annotated[
    str,
    typer.Option(
        metavar="|".join(SCHEDULES),
        help="Prune after training, or every S steps of it: silence all, ever more of, or cut out ever more units.",
    ),
]
CalibrationBatches = Annotated[int, typer.Option(help="Batches on which responses are observed (after).")]
Teach = Annotated[
    float,
    typer.Option(
        metavar="SHARE",
        help="Learn this much from the dense model's answers: in fine-tuning, and with --dense in training.",
    ),
]
RunFolderOption = Annotated[
    Path, typer.Option("--checkpoint", exists=True, file_okay=False, help="The --out folder of a training run.")
]
Precision = Annotated[str, typer.Option(help="Lightning's precision, such as 16-mixed.")]
Devices = Annotated[str, typer.Option(help="Lightning's devices: a number, a list, auto.")]
NumNodes = Annotated[int, typer.Option(help="Machines taking part.")]
Strategy = Annotated[str, typer.Option(help="Lightning's strategy for several devices.")]
Dense = Annotated[
    str,
    typer.Option(
        metavar="DIR",
        help="Take the dense model of that run in place of training; methods that act on training start from it.",
    ),
]
CheckpointSteps = Annotated[int, typer.Option(help="Steps from one checkpoint to the next.")]
Accelerator = Annotated[str, typer.Option(help="Lightning's accelerator: auto, cpu, gpu ….")]
Progress = Annotated[bool, typer.Option(help="Show progress bars.")]


def _check_trainer(framework: str) -> None:
    """Of the packages that training needs, the one whose extra brings the others, too."""
    if framework == "torch":
        check_installed("lightning")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the data, the models and the report; new or empty.")],
    seed: Seed = 0,
    progress: Progress = False,
) -> None:
    """Run the whole job on generated videos: train, prune by two methods to two sizes,
    fine-tune, measure quality and speed. Takes a few minutes.

    Example: `reprune demo --out demo`
    """
    _check_trainer("torch")
    from reprune.recipes.video.demo import run_demo

    run_demo(out, seed=seed, progress=progress, say=typer.echo)


@train_app.command("youtube8m", cls=ListCommand)
def train_youtube8m(
    train: Annotated[list[str], typer.Option(metavar="GLOB", help="Records to train on; quoted, repeatable.")],
    validate: Annotated[list[str], typer.Option(metavar="GLOB", help="Records measured after every epoch.")],
    out: Annotated[Path, typer.Option(help="Folder for checkpoints, logs, models and the report.")],
    test: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Records of the final measurement, if not those of --validate."),
    ] = None,
    resume: Resume = False,
    features: Features = "rgb:1024,audio:128",
    classes: Annotated[int, typer.Option(help="Number of classes.")] = 3862,
    hidden: Annotated[int, typer.Option(help="Units of the second LSTM; the first has half per direction.")] = 1024,
    normalize: Annotated[bool, typer.Option(help="Scale every frame to length 1.")] = True,
    max_frames: Annotated[int, typer.Option(help="Longest window of a video that is used.")] = 300,
    epochs: Annotated[int, typer.Option(help="Passes over the data before pruning is final.")] = 20,
    finetune_epochs: Annotated[
        int | None, typer.Option(help="Passes after the model was shrunk; half of --epochs if not given.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Videos per step.")] = 160,
    learning_rate: Annotated[float, typer.Option(help="Adam's step size at the start.")] = 2e-4,
    decay: Annotated[float, typer.Option(help="Factor on it after every --decay-examples.")] = 0.95,
    decay_examples: Annotated[int, typer.Option(help="See --decay.")] = 4_000_000,
    output_decay: Annotated[float, typer.Option(help="L2 penalty on the output layer.")] = 0.005,
    clip_gradients: Annotated[float, typer.Option(help="Largest norm of a step's gradient; 0 for no limit.")] = 1.0,
    teach: Teach = 0.0,
    ratio: Ratio = 0.5,
    of: Of = "units",
    scope: ScopeOption = "recurrent",
    method: TrainMethodOption = "iss-gm",
    schedule: Schedule = "after",
    dense: Dense = "",
    calibration_batches: CalibrationBatches = 100,
    seed: Seed = 0,
    on_error: Annotated[str, typer.Option(metavar="raise|skip", help="What to do about a damaged record.")] = "raise",
    precision: Precision = "32-true",
    accelerator: Accelerator = "auto",
    devices: Devices = "1",
    num_nodes: NumNodes = 1,
    strategy: Strategy = "auto",
    workers: Annotated[int, typer.Option(help="Processes that read records.")] = 0,
    framework: Annotated[str, typer.Option(metavar="torch|keras", help="What trains and runs the model.")] = "torch",
    checkpoint_steps: CheckpointSteps = 500,
    progress: Progress = True,
) -> None:
    """Train the ISS-GM paper's video classifier, prune it, fine-tune it, and evaluate both models.

    Defaults are the paper's. Interrupted at any moment, the same command with --resume goes on where it was.

    Example: `reprune train youtube8m --train 'yt8m/train*.tfrecord' --validate 'yt8m/validate*.tfrecord' --ratio 0.5
    --out run`
    """
    given = dict(locals())
    _check_trainer(framework)
    for name in ("out", "resume"):
        del given[name]
    for name in ("train", "validate", "test"):
        given[name] = tuple(given[name] or ())
    from reprune.recipes.run.options import Options, parse_features

    given["features"] = parse_features(features)
    options = Options(**given)
    from reprune.recipes.video.recipe import run, table

    summary = run(options, out, resume=resume, say=typer.echo)
    typer.echo(table(summary))
    typer.echo(f"Report: {out / 'report.html'}")


@train_app.command("language-model")
def train_language_model(
    train: Annotated[str, typer.Option(metavar="FILE", help="Text to train on: plain or .gz, UTF-8.")],
    valid: Annotated[str, typer.Option(metavar="FILE", help="Text measured after every epoch.")],
    test: Annotated[str, typer.Option(metavar="FILE", help="Text of the final measurement.")],
    out: Annotated[Path, typer.Option(help="Folder for checkpoints, logs, models and the report.")],
    resume: Resume = False,
    preset: Annotated[
        str, typer.Option(metavar="small|medium|large", help="Settings of Zaremba et al. 2014 for what is not given.")
    ] = "large",
    vocabulary: Annotated[int, typer.Option(help="Most frequent words of --train to know, all others are <unk>.")] = (
        10_000
    ),
    layers: Annotated[int, typer.Option(help="LSTM layers.")] = 2,
    hidden: Annotated[int | None, typer.Option(help="Units of each layer, and of the embedding.")] = None,
    dropout: Annotated[float | None, typer.Option(help="Fraction dropped between layers.")] = None,
    finetune_dropout: Annotated[
        float | None,
        typer.Option(help="The same in fine-tuning; if not given, --dropout times the square root of the units left."),
    ] = None,
    init: Annotated[float | None, typer.Option(help="Weights start between minus this and this.")] = None,
    unroll: Annotated[int | None, typer.Option(help="Words through which a gradient flows back.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the text before pruning is final.")] = None,
    finetune_epochs: Annotated[
        int | None, typer.Option(help="Passes after the model was shrunk; half of --epochs if not given.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Streams that the text is cut into.")] = 20,
    learning_rate: Annotated[float, typer.Option(help="Step size of gradient descent at the start.")] = 1.0,
    decay: Annotated[float | None, typer.Option(help="Factor on it after every epoch from --decay-after on.")] = None,
    decay_after: Annotated[int | None, typer.Option(help="Epochs with the first step size.")] = None,
    weight_decay: Annotated[float, typer.Option(help="Fraction of a weight that a step of size 1 takes off.")] = 0.0,
    clip_gradients: Annotated[float | None, typer.Option(help="Largest norm of a step's gradient; 0: none.")] = None,
    teach: Teach = 0.0,
    written: Annotated[int, typer.Option(help="With --teach: words that the dense model writes, read as well.")] = 0,
    ratio: Ratio = 0.5,
    of: Of = "units",
    scope: ScopeOption = "recurrent",
    method: TrainMethodOption = "reconstruct",
    inputs: Annotated[
        bool, typer.Option(help="neuron-selection: remove columns of the embedding, too, as units.")
    ] = False,
    schedule: Schedule = "after",
    dense: Dense = "",
    calibration_batches: CalibrationBatches = 100,
    seed: Seed = 0,
    precision: Precision = "32-true",
    accelerator: Accelerator = "auto",
    devices: Devices = "1",
    num_nodes: NumNodes = 1,
    strategy: Strategy = "auto",
    framework: Annotated[str, typer.Option(metavar="torch|keras", help="What trains and runs the model.")] = "torch",
    checkpoint_steps: CheckpointSteps = 500,
    progress: Progress = True,
) -> None:
    """Train a word-level language model, prune it, fine-tune it, and measure the perplexity of both models.

    Interrupted at any moment, the same command with --resume goes on where it was.

    Example: `reprune train language-model --train ptb.train.txt --valid ptb.valid.txt --test ptb.test.txt --layers 2
    --hidden 1500 --epochs 55 --ratio 0.5 --out run`
    """
    given = dict(locals())
    _check_trainer(framework)
    for name in ("out", "resume", "preset"):
        del given[name]
    from reprune.recipes.language.options import with_preset

    options = with_preset(preset, given)
    from reprune.recipes.language.recipe import run, table

    typer.echo(table(run(options, out, resume=resume, say=typer.echo)))
    typer.echo(f"Report: {out / 'report.html'}")


@evaluate_app.command("youtube8m", cls=ListCommand)
def evaluate_youtube8m(
    checkpoint: RunFolderOption,
    data: Annotated[list[str], typer.Option(metavar="GLOB", help="Records to measure on; quoted, repeatable.")],
    batch_size: Annotated[int | None, typer.Option(help="Videos at a time; that of training if not given.")] = None,
    accelerator: Accelerator = "auto",
) -> None:
    """Measure the dense and the pruned model of a run: GAP, mAP, Hit@1, PERR.

    Example: `reprune evaluate youtube8m --checkpoint run --data 'yt8m/test*.tfrecord'`
    """
    from reprune.recipes.video.recipe import evaluate_folder, table

    typer.echo(table(evaluate_folder(checkpoint, tuple(data), batch_size=batch_size, accelerator=accelerator)))


@evaluate_app.command("language-model")
def evaluate_language_model(
    checkpoint: RunFolderOption,
    data: Annotated[str, typer.Option(metavar="FILE", help="Text to measure on: plain or .gz.")],
    batch_size: Annotated[
        int | None, typer.Option(help="Streams it is cut into; 1 reads it in one go. As in training if not given.")
    ] = None,
    accelerator: Accelerator = "auto",
) -> None:
    """Measure the perplexity of the dense and the pruned model of a run.

    Example: `reprune evaluate language-model --checkpoint run --data ptb.test.txt --batch-size 1`
    """
    from reprune.recipes.language.recipe import evaluate_folder, table

    typer.echo(table(evaluate_folder(checkpoint, data, batch_size=batch_size, accelerator=accelerator)))
