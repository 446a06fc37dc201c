"""The commands `reprune export` and `reprune bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from reprune.cli.checks import check_file, check_installed
from reprune.cli.options import ModelOption
from reprune.cli.references import build, function, value
from reprune.core.errors import RepruneError
from reprune.core.saving.files import replacing

deploy_app = typer.Typer(rich_markup_mode="markdown")

ExampleOption = Annotated[
    str, typer.Option(metavar="MODULE:NAME", help="An input as the model takes it, or a function that returns one.")
]


@deploy_app.command("export")
def export_command(
    model: ModelOption,
    example: ExampleOption,
    out: Annotated[Path, typer.Option(help="The file; its suffix is the format: .onnx .tflite .pte .pt2 .mlpackage.")],
    pruned: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="Folder that `reprune prune` wrote for it.")
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Quantise to 8 bits as well.")] = False,
    calibration: Annotated[
        str | None,
        typer.Option(metavar="MODULE:NAME", help="Batches: quantise to 8 bits with fixed ranges of activations."),
    ] = None,
    opset: Annotated[int | None, typer.Option(help=".onnx: the version of the standard's operators.")] = None,
    submodule: Annotated[str | None, typer.Option(help="Write this part of the model only.")] = None,
    dynamic: Annotated[str | None, typer.Option(help="Sizes to leave free, separated by commas: batch,time.")] = None,
    fixed: Annotated[str | None, typer.Option(help="Sizes to fix at the example's, separated by commas.")] = None,
    streaming: Annotated[bool, typer.Option("--streaming", help="States as optional inputs and outputs.")] = False,
    required_states: Annotated[
        bool, typer.Option("--required-states", help=".onnx: no state can be left out, as JavaScript and Java need it.")
    ] = False,
    evaluate: Annotated[
        str | None,
        typer.Option(metavar="MODULE:NAME", help="A function of a runner, arrays in and out, that returns a number."),
    ] = None,
) -> None:
    """Write a model for a device, run the file in its own runtime and print how far it is from the model.

    Example: `reprune export --model shop.models:build --pruned small --example shop.data:example --out small.onnx`
    """
    import reprune

    check_file("--out", out)
    measure = function("--evaluate", evaluate, "a runner")
    network = build(model)
    if pruned is not None:
        network = reprune.load(network, pruned)
    options: dict[str, Any] = {
        "int8": "static" if calibration else int8,
        "calibration": value(calibration) if calibration else None,
        "opset": opset,
        "submodule": submodule,
        "dynamic": dynamic.split(",") if dynamic else None,
        "fixed": fixed.split(",") if fixed else None,
        "streaming": streaming,
        "evaluate": measure,
    }
    if required_states:
        options["optional_states"] = False
    typer.echo(str(reprune.export(network, value(example), out, **options)))


@deploy_app.command("bench")
def bench_command(
    dense: Annotated[str, typer.Argument(metavar="MODULE:NAME|FILE", help="What to compare with.")],
    pruned: Annotated[
        list[str],
        typer.Argument(
            metavar="MODULE:NAME|FILE|FOLDER …",
            help="The others; a folder is one that `reprune prune` wrote for DENSE.",
        ),
    ],
    example: Annotated[
        str | None, typer.Option(metavar="MODULE:NAME", help="An input, or a function that returns one.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Batch of random input, if there is no --example.")] = 1,
    frames: Annotated[int, typer.Option(help="Steps of random input.")] = 300,
    features: Annotated[
        int | None, typer.Option(help="Features of random input; else what the first layer of DENSE reads.")
    ] = None,
    runtime: Annotated[
        str, typer.Option(help="torch, onnxruntime, onnxruntime-int8, litert, executorch; separated by commas.")
    ] = "torch,onnxruntime",
    threads: Annotated[str, typer.Option(help="Numbers of threads, separated by commas.")] = "1",
    repeats: Annotated[int, typer.Option(help="Timed calls of each model.")] = 20,
    json: Annotated[Path | None, typer.Option(help="Write the numbers here.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw them here (.png or .svg).")] = None,
) -> None:
    """Measure models side by side: latency, throughput, peak memory, file size, beside the MAC ratio.

    Example: `reprune bench shop.models:build small --runtime torch,onnxruntime --frames 300 --threads 1,2`
    """
    from reprune.recipes.bench.bench import bench

    counts = _numbers(threads)
    if min(batch, frames, repeats) < 1 or (features is not None and features < 1):
        raise RepruneError("--batch, --frames, --features and --repeats must be at least 1.")
    if plot is not None and plot.suffix not in (".png", ".svg"):
        raise RepruneError(f"--plot {plot}: give a name that ends in .png or .svg.")
    if plot is not None:
        check_installed("matplotlib")
    for option, path in (("--json", json), ("--plot", plot)):
        if path is not None:
            check_file(option, path)
    models = {"dense": _subject(dense, None)}
    base = models["dense"]
    for name in pruned:
        label = f"pruned {len(models)}" if name in models else name
        models[label] = _subject(name, base)
    found = bench(
        models,
        value(example) if example else _random_input(base, batch, frames, features),
        runtimes=[name.strip() for name in runtime.split(",")],
        threads=counts,
        repeats=repeats,
    )
    typer.echo(str(found))
    if json is not None:
        with replacing(json) as part:
            part.write_text(found.to_json(), encoding="utf-8")
    if plot is not None:
        found.plot(plot)


def _random_input(model: Any, batch: int, frames: int, features: int | None) -> Any:
    from reprune.recipes.bench.bench import bench_of

    if not isinstance(model, Path):
        return bench_of(model).random_input(model, batch, frames, features)
    import numpy as np

    from reprune.runtimes import open_file

    rng = np.random.default_rng(0)
    if features is not None:
        return rng.standard_normal((batch, frames, features), dtype=np.float32)
    run: Any = open_file(model)
    required = list(getattr(run, "required", {}).items())
    if len(required) != 1:
        raise RepruneError(f"{model} does not say that it reads one input: give --features, or an --example.")
    name, kind = required[0]
    # Exports name their free sizes; one of any other name is taken for the batch.
    free = {axis: frames if "time" in axis else batch for axis in run.inputs[name] if isinstance(axis, str)}
    shape = tuple(free.get(axis, axis) for axis in run.inputs[name])
    ids = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}
    if kind in ids:
        return rng.integers(0, 2, shape, dtype=ids[kind])
    return rng.standard_normal(shape, dtype=np.float32)


def _subject(reference: str, dense: Any) -> Any:
    """A file, the pruned form of `dense` that a folder holds, or what `module:name` builds."""
    import reprune

    path = Path(reference)
    if path.is_file():
        return path
    if path.is_dir():
        if dense is None or isinstance(dense, Path):
            raise RepruneError(f"{reference}: a folder needs the dense model as MODULE:NAME first, to build from.")
        return reprune.load(dense, path)
    if ":" not in reference:
        raise RepruneError(f"{reference}: there is no such file or folder, and MODULE:NAME has a colon.")
    return build(reference)


def _numbers(text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = [0]
    if min(found) < 1:
        raise RepruneError(f"--threads {text}: give positive numbers separated by commas, such as 1,2.")
    return found
