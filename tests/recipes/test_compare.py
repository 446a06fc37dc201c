"""The grid: what it measures, that it goes on where it was, and what it writes."""

from __future__ import annotations

import csv
import doctest
import io
import json
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

import reprune
from reprune.core.errors import RecipeError
from reprune.recipes.compare import compare
from reprune.report import compare_plot, compare_table


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 8, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.lstm(x)[0])


@pytest.fixture
def setting():
    torch.manual_seed(0)
    model = Tagger().eval()
    batches = [torch.randn(16, 6, 4) for _ in range(3)]
    calls = []

    def evaluate(net):
        calls.append(net.lstm.hidden_size)
        with torch.no_grad():
            return -float((net(batches[0]) - model(batches[0])).square().mean())

    return model, batches, evaluate, calls


GRID = {"methods": ["reconstruct", "random"], "ratios": [0.25, 0.5]}


def test_cells_are_what_pruning_one_by_one_gives(setting, tmp_path):
    model, batches, evaluate, _ = setting
    said = []
    cells = compare(model, batches, evaluate, tmp_path, **GRID, metric="minus error", say=said.append)
    assert [(c.method, c.ratio, c.units) for c in cells] == [
        ("dense", 0.0, 8),
        ("reconstruct", 0.25, 6),
        ("reconstruct", 0.5, 4),
        ("random", 0.25, 6),
        ("random", 0.5, 4),
    ]
    calibration = reprune.calibrate(model, batches, methods=GRID["methods"])
    for cell in cells[1:]:
        result = calibration.prune(cell.ratio, method=cell.method)
        small = result.model
        assert cell.divergence == pytest.approx(result.fidelity.divergence)
        assert cell.metric == pytest.approx(evaluate(small), rel=1e-4)
        # A pruned LSTM holds as many parameters as a small one, counted by PyTorch.
        assert cell.parameters == sum(parameter.numel() for parameter in small.parameters())
    assert said[-1].startswith("[4/4] random 50%, 0 steps")


def test_every_width_counts_if_asked(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.LSTM(12, 8)).eval()
    batches = [torch.randn(6, 5, 4) for _ in range(2)]
    grid = {"methods": ["magnitude"], "ratios": [0.5], "scope": "all", "say": lambda line: None}
    dense, half = compare(model, batches, lambda net: net[0].out_features, tmp_path, **grid)
    assert (dense.units, dense.metric) == (12, 12)  # The units of the LSTM are what the model returns.
    plan = reprune.plan(model, batches, ratio=0.5, method="magnitude", scope="all")
    assert (half.units, half.metric) == (6, plan.counts()["0:features"]) == (6, 6)
    with pytest.raises(RecipeError, match="settings"):
        compare(model, batches, lambda net: 0.0, tmp_path, **{**grid, "scope": "recurrent"})


def test_it_goes_on_with_what_is_missing(setting, tmp_path):
    model, batches, evaluate, calls = setting
    stop = RuntimeError("power cut")

    def say(line):
        if line.startswith("[2/4]"):
            raise stop

    with pytest.raises(RuntimeError, match="power cut"):
        compare(model, batches, evaluate, tmp_path, **GRID, say=say)
    assert calls == [8, 6, 4]
    cells = compare(model, batches, evaluate, tmp_path, **GRID, say=lambda line: None)
    assert calls == [8, 6, 4, 6, 4]
    again = compare(model, iter(()), evaluate, tmp_path, **GRID, say=lambda line: None)
    assert again == cells
    with pytest.raises(RecipeError, match="give another folder"):
        compare(model, batches, evaluate, tmp_path, **GRID, of="macs")
    with torch.no_grad():
        model.head.bias += 1
    with pytest.raises(RecipeError, match="give another folder"):
        compare(model, batches, evaluate, tmp_path, **GRID, say=lambda line: None)


def test_fine_tuned_models_are_measured_beside(setting, tmp_path):
    model, batches, evaluate, _ = setting

    def finetune(net, steps):
        with torch.no_grad():
            net.head.bias += steps

    cells = compare(
        model, batches, evaluate, tmp_path, **GRID, finetune=finetune, finetune_steps=3, say=lambda line: None
    )
    assert [(c.method, c.steps) for c in cells[1:]] == [(m, s) for m in GRID["methods"] for s in (0, 3) for _ in "ab"]
    assert cells[3].metric < cells[1].metric - 8
    with pytest.raises(RecipeError, match="at least 0"):
        compare(model, batches, evaluate, tmp_path, **GRID, finetune=finetune, finetune_steps=-1)


def test_without_a_way_to_fine_tune_the_dense_model_is_distilled(setting, tmp_path):
    model, batches, evaluate, _ = setting
    grid = {"methods": ["random"], "ratios": [0.5], "say": lambda line: None}
    nothing = {"finetune": lambda net, steps: None, "finetune_steps": 40}
    cells = compare(model, batches, evaluate, tmp_path, **grid, finetune_steps=40)
    assert cells[2].steps == 40
    assert abs(cells[2].metric) < 0.5 * abs(cells[1].metric)
    assert compare(model, batches, evaluate, tmp_path, **grid, **nothing)[2].metric == cells[1].metric


def test_each_number_of_steps_is_a_fine_tuning_by_itself(setting, tmp_path):
    model, batches, evaluate, _ = setting
    asked = []

    def finetune(net, steps):
        asked.append((steps, bool(net.head.bias.abs().max() > 99)))
        with torch.no_grad():
            net.head.bias += 100

    cells = compare(
        model, batches, evaluate, tmp_path, **GRID, finetune=finetune, finetune_steps=(5, 2), say=lambda line: None
    )
    places = len(GRID["methods"]) * len(GRID["ratios"])
    assert asked == [(2, False), (5, False)] * places
    assert len(cells) == 1 + 3 * places


def test_files(setting, tmp_path):
    model, batches, evaluate, _ = setting
    cells = compare(model, batches, evaluate, tmp_path, **GRID, metric="a < b", say=lambda line: None)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "comparison.csv").read_text())))
    assert [float(row["metric"]) for row in rows] == [cell.metric for cell in cells]
    assert [compare_table.Cell(**entry) for entry in json.loads((tmp_path / "comparison.json").read_text())] == cells
    table = (tmp_path / "comparison.md").read_text().splitlines()
    assert table[0] == "| method | 25% | 50% |"
    assert [line.split(" | ")[0] for line in table[2:5]] == ["| dense", "| reconstruct", "| random"]
    assert table[6] == "| divergence from dense | 25% | 50% |"
    assert table[8] == "| reconstruct | **{:.4g}** | **{:.4g}** |".format(*(cell.divergence for cell in cells[1:3]))
    assert table[9] == "| random | {:.4g} | {:.4g} |".format(*(cell.divergence for cell in cells[3:]))
    root = ElementTree.parse(tmp_path / "comparison.svg").getroot()
    words = ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"dense", "reconstruct", "random", "parameters", "a < b"} <= set(words)
    assert len(list(root.iter("{http://www.w3.org/2000/svg}circle"))) == 4


@pytest.mark.parametrize(("dense", "one", "other", "best"), [(0.9, 0.8, 0.7, "0.8"), (80.0, 95.0, 90.0, "90")])
def test_the_best_is_marked_whichever_direction_is_better(dense, one, other, best):
    metrics = {"dense": dense, "a": one, "b": other}
    cells = [compare_table.Cell(name, 0.5 * (name != "dense"), 0, v, 4, 10, 9.0, 0.0) for name, v in metrics.items()]
    assert [line for line in compare_table.markdown(cells).splitlines() if "**" in line] == [
        f"| {'a' if best == '0.8' else 'b'} | **{best}** |"
    ]


def test_what_is_asked_twice_is_measured_once(setting, tmp_path):
    model, batches, evaluate, calls = setting
    twice = {"methods": ["random", "random"], "ratios": [0.5, 0.5]}
    assert len(compare(model, batches, evaluate, tmp_path, **twice, say=lambda line: None)) == 2
    assert calls == [8, 4]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"methods": ["fsdp"]}, "'fsdp' needs labels= "),
        ({"methods": ["random", "taylor"]}, "'taylor' needs loss= "),
        ({"methods": ["nope"]}, "'nope' is not a known method"),
        ({"ratios": [0.5, 1.5]}, "ratio=1.5 is not a fraction"),
        ({"scope": "every"}, "not one of 'recurrent', 'all'"),
        ({"finetune_steps": 3, "batches": iter(())}, "gives only one pass"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(setting, tmp_path, asked, words):
    model, batches, evaluate, calls = setting
    with pytest.raises(reprune.RepruneError, match=words):
        compare(model, evaluate=evaluate, out=tmp_path, **{"batches": batches, **GRID, **asked})
    assert not calls
    assert not list(tmp_path.iterdir())


def test_a_metric_must_be_a_number(setting, tmp_path):
    model, batches, _, _ = setting
    for found, kind in (("much", "str"), (None, "NoneType"), (torch.ones(2), "Tensor")):
        with pytest.raises(RecipeError, match=f"a {kind}: it must return one number"):
            compare(model, batches, lambda net, found=found: found, tmp_path, **GRID)
    # A perplexity may well overflow.
    metrics = {8: torch.tensor(2.0), 6: 90.0, 4: float("inf")}
    cells = compare(model, batches, lambda net: metrics[net.lstm.hidden_size], tmp_path, **GRID, say=lambda line: None)
    assert [cell.metric for cell in cells] == [2.0, 90.0, float("inf"), 90.0, float("inf")]
    document = json.loads((tmp_path / "comparison.json").read_text(), parse_constant=pytest.fail)
    assert [entry["metric"] for entry in document] == [2.0, 90.0, None, 90.0, None]
    assert "| random | 90 | inf |" in (tmp_path / "comparison.md").read_text()
    root = ElementTree.parse(tmp_path / "comparison.svg").getroot()
    assert len(list(root.iter("{http://www.w3.org/2000/svg}circle"))) == 2


def test_large_spans_stand_on_a_logarithmic_axis():
    def heights(*metrics):
        cells = [compare_table.Cell("random", 0.1, 0, value, 1, 100 + i, 1.0, 0.0) for i, value in enumerate(metrics)]
        root = ElementTree.fromstring(compare_plot.svg(cells))
        words = ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]
        return [float(node.get("cy")) for node in root.iter("{http://www.w3.org/2000/svg}circle")], words

    (low, middle, high), words = heights(10.0, 100.0, 1000.0)
    assert low - middle == pytest.approx(middle - high, abs=0.11)
    assert {"10", "20", "50", "100", "200", "500", "1000"} <= set(words)
    (low, middle, high), _ = heights(10.0, 30.0, 90.0)
    assert low - middle == pytest.approx((middle - high) / 3, abs=0.11)


def test_a_folder_that_cannot_be_is_named(setting, tmp_path):
    model, batches, evaluate, calls = setting
    (tmp_path / "taken").touch()
    with pytest.raises(RecipeError, match="taken cannot be written"):
        compare(model, batches, evaluate, tmp_path / "taken", **GRID)
    assert not calls


def test_a_file_that_holds_no_cell_is_named(setting, tmp_path):
    model, batches, evaluate, _ = setting
    compare(model, batches, evaluate, tmp_path, **GRID, say=lambda line: None)
    for text in ("{}", "[]", "3", '{"method": "random"', ""):
        (tmp_path / "cells" / "random@0.5@0.json").write_text(text)
        with pytest.raises(RecipeError, match=r"random@0\.5@0\.json"):
            compare(model, batches, evaluate, tmp_path, **GRID, say=lambda line: None)


@pytest.mark.parametrize("module", [compare_table, compare_plot])
def test_examples(module):
    assert doctest.testmod(module).failed == 0
