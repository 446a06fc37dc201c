"""The commands `reprune inspect` and `reprune prune`."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from reprune.cli.checks import check_file
from reprune.cli.commands import ListCommand
from reprune.cli.options import (
    BatchesOption,
    BatchesOrExample,
    ForwardOption,
    JsonOption,
    LabelsOption,
    LossOption,
    ModelOption,
    Ratio,
    ScopeOption,
    Seed,
)
from reprune.cli.references import build, function, value
from reprune.core.errors import RepruneError
from reprune.core.layers import checked_scope
from reprune.core.methods import METHODS, get_method

prune_app = typer.Typer(rich_markup_mode="markdown")

Layers = Annotated[
    list[str] | None, typer.Option(metavar="GLOB …", help="Layers: lstm means all of a module, *_reverse some.")
]


@prune_app.command("inspect")
def inspect_command(
    model: ModelOption,
    batches: BatchesOrExample,
    scope: ScopeOption = "recurrent",
    forward: ForwardOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show which layers can be pruned, what reads them, and why a layer has to stay.

    Example: `reprune inspect --model shop.models:build --batches shop.data:batches`
    """
    import reprune

    found = reprune.inspect(
        build(model),
        value(batches),
        scope=checked_scope(scope),
        forward=function("--forward", forward, "model", "batch"),
    )
    typer.echo(json.dumps(found.to_dict(), indent=2) if as_json else str(found))


@prune_app.command("prune", cls=ListCommand)
def prune_command(
    model: ModelOption,
    batches: BatchesOption,
    out: Annotated[Path, typer.Option(help="Folder for model.safetensors, plan.json and report.html.")],
    weights: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="Trained weights, unless the model has them: .safetensors, .pt (a state dict), .weights.h5, .keras.",
        ),
    ] = None,
    ratio: Ratio = 0.5,
    of: Annotated[str, typer.Option(metavar="units|parameters|macs|latency", help="What the fraction is of.")] = (
        "units"
    ),
    target_ms: Annotated[
        float | None, typer.Option(help="With --of latency: milliseconds that one call may take, in place of --ratio.")
    ] = None,
    method: Annotated[str, typer.Option(metavar="NAME", help=f"How: {', '.join(METHODS)}.")] = "reconstruct",
    scope: ScopeOption = "recurrent",
    include: Layers = None,
    exclude: Layers = None,
    min_units: Annotated[int, typer.Option(help="Units that every layer keeps at least.")] = 1,
    round_to: Annotated[
        str, typer.Option(metavar="N|auto", help="Units kept are a multiple of this; auto: the one that kernels like.")
    ] = "1",
    uniform: Annotated[
        bool, typer.Option("--uniform", help="Equal sizes in all layers and directions of one module: it stays plain.")
    ] = False,
    labels: LabelsOption = None,
    loss: LossOption = None,
    forward: ForwardOption = None,
    example: Annotated[
        str | None,
        typer.Option(metavar="MODULE:NAME", help="Input whose latency counts; else the first batch."),
    ] = None,
    runtime: Annotated[
        str | None, typer.Option(metavar="torch|onnxruntime|onnxruntime-int8", help="Where latency is measured.")
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads that it is measured with.")] = 1,
    latency_table: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Measured times: read if the file exists, else written there.")
    ] = None,
    distill_steps: Annotated[
        int, typer.Option(min=0, help="Batches to learn the dense model's answers from afterwards, without labels.")
    ] = 0,
    seed: Seed = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Prune a trained model of PyTorch or Keras.

    Example: `reprune prune --model shop.models:build --weights dense.safetensors --batches shop.data:batches
    --ratio 0.5 --method iss-gm --distill-steps 400 --out small`

    To 20 ms in ONNX Runtime: `reprune prune --model shop.models:trained --batches shop.data:batches --of latency
    --target-ms 20 --round-to auto --runtime onnxruntime --example shop.data:example --out small`
    """
    from reprune.recipes.prune import Timing, prune_to
    from reprune.recipes.run.folder import held

    options: dict[str, Any] = {"ratio": ratio, "of": of, "method": method, "min_units": min_units, "seed": seed}
    options |= {"include": include or [], "exclude": exclude or [], "uniform": uniform, "scope": scope}
    options |= {"round_to": _rounding(round_to), "target_ms": target_ms}
    _check_method(method, labels, loss)
    if latency_table is not None and not latency_table.exists():
        check_file("--latency-table", latency_table)
    with held(out), _silent() if quiet else nullcontext():
        timing = Timing(None if example is None else value(example), runtime, threads, latency_table)
        options |= {
            "labels": function("--labels", labels, "batch"),
            "loss": function("--loss", loss, "model", "batch"),
            "forward": function("--forward", forward, "model", "batch"),
        }
        result = prune_to(
            out, build(model), value(batches), weights=weights, timing=timing, distill_steps=distill_steps, **options
        )
    if as_json:
        typer.echo(json.dumps(result.to_dict(), indent=2))
    elif not quiet:
        typer.echo(f"{result}\n\nWritten to {out}: model.safetensors, plan.json, report.html")


@contextmanager
def _silent() -> Iterator[None]:
    """Within this context, neither bars nor warnings are shown."""
    from reprune.verbs.progress import hidden

    with hidden(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _check_method(name: str, labels: str | None, loss: str | None) -> None:
    """What the method needs is asked for in the words of the command line, before anything is loaded."""
    method = get_method(name)
    for needed, given, option in ((method.needs_labels, labels, "--labels"), (method.needs_loss, loss, "--loss")):
        if needed and given is None:
            raise RepruneError(f"--method {name} looks at {option[2:]}: give {option} MODULE:NAME.")


def _rounding(text: str) -> int | str:
    try:
        return text if text == "auto" else int(text)
    except ValueError:
        raise RepruneError(f"--round-to {text}: give a whole number, or auto.") from None
