"""What refitting gates gains (see docs/methods.md): one shot, with consumers alone refitted and with gates as well.

Tasks and dense models are those of accuracy.py, seed 0; --out keeps the dense ones.

    python benchmarks/gates.py [--tasks g2pm,words] [--ratios 0.25,0.5,0.75] [--out out/accuracy]
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from unittest.mock import patch

from accuracy import dense
from tasks import TASKS

import reprune
from reprune.verbs.panel import Panel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="g2pm,words")
    parser.add_argument("--ratios", default="0.25,0.5,0.75")
    parser.add_argument("--out", type=Path, default=Path("out/accuracy"))
    options = parser.parse_args()
    data = Path(os.environ.get("REPRUNE_DATA", Path(__file__).parents[2] / "shared" / "data"))
    print("| task | removed | consumers alone | divergence | seconds | gates, too | divergence | seconds |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|", flush=True)
    for name in options.tasks.split(","):
        task = TASKS[name](data)
        model = dense(task, 0, options.out / name / "0")
        calibration = reprune.calibrate(model, task.calibration(), methods=["reconstruct"], forward=task.forward)
        for ratio in map(float, options.ratios.split(",")):
            cells = []
            for regated in (lambda panel, value, plan: plan, Panel.regated):
                with patch.object(Panel, "regated", regated):
                    started = time.perf_counter()
                    result = calibration.prune(ratio)
                seconds = time.perf_counter() - started
                divergence = result.fidelity.divergence if result.fidelity else float("nan")
                cells += [f"{task.evaluate(result.model):.4g}", f"{divergence:.3g}", f"{seconds:.1f}"]
            print(f"| {name}, {task.metric} | {ratio:.0%} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
