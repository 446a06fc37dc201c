"""Methods and ratios side by side: quality, size and speed of what each leaves of one trained model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from reprune.recipes.bench.bench import Comparison, bench
from reprune.recipes.run.options import Options
from reprune.recipes.run.quiet import quiet
from reprune.recipes.video.recipe import run
from reprune.recipes.video.torch_recipe import YouTube8M
from reprune.report.picture import Panel, picture

RUNTIMES = {"torch": "PyTorch", "onnxruntime": "ONNX Runtime"}


def run_variants(
    options: Options, out: Path, variants: Sequence[tuple[str, float]], say: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """The summaries of pruning the dense model of a run in other ways, by their names.

    Args:
        options: Options of the finished run in `out`, which trained the dense model.
        out: Its folder; the others are in folders below, and go on where they were interrupted.
        variants: Method and ratio of each of the others.
        say: Told what is going on.
    """
    found = {}
    for method, ratio in variants:
        other = replace(options, method=method, ratio=ratio, dense=str(out))
        name = name_of(method, ratio)
        say(f"Pruning to {1 - ratio:.0%} with {method}, and fine-tuning")
        found[name] = run(other, _folder(out, name), resume=True, say=lambda _: None)
    return found


def measure_speed(options: Options, out: Path, names: Sequence[str]) -> Comparison:
    """Latency of the dense and of every pruned model for one video on one thread, in the runtimes that are there."""
    recipe = YouTube8M(options)
    folders = [out, *(_folder(out, name) for name in names[1:])]
    models = {"dense": recipe.load(recipe.build(), out / "dense.safetensors")}
    models |= {name: recipe.load_pruned(recipe.build(), folder) for name, folder in zip(names, folders, strict=True)}
    installed = [name for name in RUNTIMES if name == "torch" or find_spec(name)]
    with quiet():
        example = recipe.data().sample()
        return bench({name: model.eval() for name, model in models.items()}, example, runtimes=installed, threads=(1,))


def table(summaries: Mapping[str, Mapping[str, Any]], speed: Comparison) -> str:
    """All of it as a table, and a sentence about the fastest."""
    runtimes = list(dict.fromkeys(row.runtime for row in speed.rows))
    times = {(row.model, row.runtime): row.median_ms for row in speed.rows}
    rows = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    headers = ["GAP@20", "parameters", "MACs per frame"]
    for name in ("", *headers, *(f"ms, {RUNTIMES[runtime]}" for runtime in runtimes)):
        rows.add_column(name, justify="right" if name else "left")
    first = next(iter(summaries.values()))
    for name, measured in {"dense": first["dense"], **{n: s["pruned"] for n, s in summaries.items()}}.items():
        cells = [f"{measured['gap']:.4f}", f"{measured['parameters']:,}", f"{measured['macs']:,}"]
        rows.add_row(name, *cells, *(f"{times[name, runtime]:.2f}" for runtime in runtimes))
    console = Console(width=100, color_system=None)
    with console.capture() as capture:
        console.print(rows)
    lines = [line.rstrip() for line in capture.get().splitlines()]
    return "\n".join([*lines, "", *(_verdict(times, runtime, list(summaries)) for runtime in runtimes)])


def overview_picture(summaries: Mapping[str, Mapping[str, Any]], speed: Comparison) -> str:
    """The dense model beside the smallest that reconstruct left, as an SVG image."""
    name = [name for name in summaries if name.startswith("reconstruct")][-1]
    dense, pruned = summaries[name]["dense"], summaries[name]["pruned"]
    runtime = speed.rows[-1].runtime
    slow, fast = (
        next(r.median_ms for r in speed.rows if (r.model, r.runtime) == (n, runtime)) for n in ("dense", name)
    )
    large, small = (4e-6 * model["parameters"] for model in (dense, pruned))
    return picture(
        [
            Panel("Size", large, small, "MB", f"{large / small:.1f} times smaller"),
            Panel("Time for one video", slow, fast, "ms", f"{slow / fast:.1f} times as fast"),
            Panel("Quality", dense["gap"], pruned["gap"], "", "GAP@20 after fine-tuning; 1 is perfect"),
        ],
        [f"reprune demo: {name} of the hidden units removed", f"{RUNTIMES[runtime]}, one thread of a CPU"],
    )


def _verdict(times: Mapping[tuple[str, str], float], runtime: str, names: Sequence[str]) -> str:
    """What the numbers say, whatever they are."""
    fastest = min(names, key=lambda name: times[name, runtime])
    gain = times["dense", runtime] / times[fastest, runtime]
    where = f"One video in {RUNTIMES[runtime]}, one thread"
    if gain > 1.05:
        return f"{where}: {fastest} takes {times[fastest, runtime]:.2f} ms, {gain:.1f} times as fast as dense."
    return f"{where}: none is faster than dense; layers this small spend their time on calls, not on arithmetic."


def _folder(out: Path, name: str) -> Path:
    return out / name.replace(" ", "-")


def name_of(method: str, ratio: float) -> str:
    """What a variant is called in tables."""
    return f"{method} {round(100 * ratio)}%"
