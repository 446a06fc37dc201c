"""The language model recipe: its perplexity against an LSTM in NumPy, its streams, and what its folder holds."""

from __future__ import annotations

import doctest
import gzip
import json
import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import reprune.torch as verbs
from reprune.core.errors import RecipeError
from reprune.core.plan import Plan
from reprune.recipes.language import options as language_options
from reprune.recipes.language import recipe as language_model
from reprune.recipes.language import word_model
from reprune.recipes.language.data import Text, Windows
from reprune.recipes.language.options import LanguageOptions, with_preset
from reprune.recipes.language.text import IGNORED, Vocabulary
from reprune.recipes.language.torch_recipe import LanguageModel
from reprune.recipes.language.word_model import LanguageModule, WordModel
from reprune.recipes.run.quiet import quiet

WAR_AND_PEACE = (
    Path(os.environ.get("REPRUNE_DATA", Path(__file__).parents[3].parent / "shared" / "data")) / "war_and_peace"
)


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def numpy_loss(tensors: dict[str, torch.Tensor], words: list[int]) -> float:
    """Summed negative log-likelihood of each word but the first, from a zero state, by the LSTM's equations."""
    w = {name: tensor.double().numpy() for name, tensor in tensors.items()}
    layers = sum(name.endswith("weight_hh_l0") for name in w)
    units = [w[f"recurrent.{k}.weight_hh_l0"].shape[1] for k in range(layers)]
    h, c = ([np.zeros(n) for n in units] for _ in range(2))
    total = 0.0
    for word, following in pairwise(words):
        x = w["embedding.weight"][word]
        for k in range(layers):
            name = f"recurrent.{k}."
            gates = w[name + "weight_ih_l0"] @ x + w[name + "weight_hh_l0"] @ h[k]
            i, f, g, o = np.split(gates + w[name + "bias_ih_l0"] + w[name + "bias_hh_l0"], 4)
            c[k] = sigmoid(f) * c[k] + sigmoid(i) * np.tanh(g)
            x = h[k] = sigmoid(o) * np.tanh(c[k])
        logits = w["output.weight"] @ x + w["output.bias"]
        total += np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[following]
    return total


def numpy_perplexity(tensors: dict[str, torch.Tensor], words: list[int], streams: int) -> float:
    """Each stream starts anew and ends with the word that the next begins with."""
    length = -(-(len(words) - 1) // streams)
    losses = [numpy_loss(tensors, words[s * length : (s + 1) * length + 1]) for s in range(streams)]
    return float(np.exp(sum(losses) / (len(words) - 1)))


@pytest.fixture(scope="module", params=["after", "soft:5"])
def run(request: pytest.FixtureRequest, talk: LanguageOptions, tmp_path_factory: pytest.TempPathFactory) -> Any:
    method = "reconstruct" if request.param == "after" else "iss-gm"
    options = replace(talk, schedule=request.param, method=method)
    folder = tmp_path_factory.mktemp("run")
    return options, folder, language_model.run(options, folder)


def test_summary(run: Any) -> None:
    options, folder, summary = run
    assert summary == json.loads((folder / "summary.json").read_text())
    assert set(summary) == {"method", "ratio", "dense", "pruned", "units"}
    assert set(summary["dense"]) == set(summary["pruned"]) == {"perplexity", "parameters", "macs", "latency_ms"}
    for name, file in (("dense", "dense.safetensors"), ("pruned", "model.safetensors")):
        tensors = load_file(folder / file)
        assert summary[name]["parameters"] == sum(tensor.numel() for tensor in tensors.values())
        # Every weight but the table of words is multiplied once for each word.
        products = [t.numel() for key, t in tensors.items() if "weight" in key and "embedding" not in key]
        assert summary[name]["macs"] == sum(products)
    before, after = (sum(units[i] for units in summary["units"].values()) for i in (0, 1))
    assert (before, after) == (2 * options.hidden, options.hidden)
    assert "Perplexity" in (folder / "report.html").read_text()


@pytest.mark.parametrize("streams", [1, 3])
def test_perplexity_is_that_of_an_lstm_in_numpy(run: Any, streams: int) -> None:
    options, folder, summary = run
    numbers = {word: k for k, word in enumerate((folder / "vocabulary.txt").read_text().split("\n")[:-1])}
    lines = Path(options.test).read_text().splitlines()
    words = [numbers.get(word, numbers["<unk>"]) for line in lines for word in [*line.split(), "<eos>"]]
    assert numbers["<unk>"] in words
    found = language_model.evaluate_folder(folder, options.test, batch_size=streams, accelerator="cpu")
    for name, file in (("dense", "dense.safetensors"), ("pruned", "model.safetensors")):
        assert found[name]["perplexity"] == pytest.approx(
            numpy_perplexity(load_file(folder / file), words, streams), rel=1e-5
        )
        if streams == options.batch_size:
            assert summary[name]["perplexity"] == pytest.approx(found[name]["perplexity"], rel=1e-6)


def unigram(train: str, test: str, vocabulary: Vocabulary) -> float:
    """Perplexity of a test text to somebody who knows only how frequent words are."""
    counts = np.bincount(vocabulary.encode(train), minlength=len(vocabulary)) + 1
    return float(np.exp(-np.log(counts / counts.sum())[vocabulary.encode(test)].mean()))


def test_it_learns_what_precedes_a_word(run: Any) -> None:
    options, _, summary = run
    words = Vocabulary.of(options.train, options.vocabulary)
    assert summary["dense"]["perplexity"] < 0.7 * unigram(options.train, options.test, words)


def test_measuring_does_not_see_the_windows(run: Any) -> None:
    options, folder, summary = run
    recipe = LanguageModel(replace(options, unroll=options.unroll * 3 + 1))
    dense = recipe.build()
    dense.load_state_dict(load_file(folder / "dense.safetensors"))
    with quiet():
        assert recipe.measure(dense)["perplexity"] == pytest.approx(summary["dense"]["perplexity"], rel=1e-5)


def test_pruned_computes_what_the_masked_does_with_its_state(run: Any) -> None:
    options, folder, _ = run
    dense = LanguageModel(options).build().double().eval()
    plan = Plan.from_json((folder / "plan.json").read_bytes())
    small, masked = (verb(dense, plan, compensate=False) for verb in (verbs.apply, verbs.mask))
    first, second = torch.randint(20, (2, 6, 3))
    with torch.no_grad():
        logits, state = small(first)
        expected, full = masked(first)
        torch.testing.assert_close(logits, expected, atol=1e-10, rtol=0)
        assert [h.shape[-1] for h, _ in state] == list(plan.counts().values())
        torch.testing.assert_close(small(second, state)[0], masked(second, full)[0], atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    "asked",
    [
        {"method": "neuron-selection", "inputs": True, "epochs": 3},
        {"method": "magnitude", "scope": "all", "epochs": 1},
        {"method": "iss-gm", "scope": "all", "epochs": 1, "schedule": "soft:5"},
    ],
    ids=lambda asked: asked["method"],
)
def test_input_units_are_removed(talk: LanguageOptions, tmp_path: Path, asked: dict[str, Any]) -> None:
    options = replace(talk, finetune_epochs=1, **asked)
    summary = language_model.run(options, tmp_path / "run")
    tensors = load_file(tmp_path / "run" / "model.safetensors")
    columns, *hidden = (summary["units"][name] for name in ("embedding:columns", "recurrent.0:l0", "recurrent.1:l0"))
    assert tensors["embedding.weight"].shape == (22, columns[1])
    assert tensors["recurrent.0.weight_ih_l0"].shape == (4 * hidden[0][1], columns[1])
    assert sum(after for _, after in (columns, *hidden)) == 36 / 2
    # Three layers' widths, then a logit for each word; a word is looked up for nothing.
    for name, at in (("dense", 0), ("pruned", 1)):
        e, a, b = columns[at], hidden[0][at], hidden[1][at]
        assert summary[name]["macs"] == 4 * a * (e + a) + 4 * b * (a + b) + 22 * b
    vocabulary = Vocabulary.of(options.train, options.vocabulary)
    words = vocabulary.encode(options.test).tolist()
    assert summary["pruned"]["perplexity"] == pytest.approx(numpy_perplexity(tensors, words, 3), rel=1e-4)
    measured = language_model.evaluate_folder(tmp_path / "run", options.test, accelerator="cpu")
    assert measured["pruned"]["perplexity"] == pytest.approx(summary["pruned"]["perplexity"], rel=1e-6)


def test_training_carries_the_state_and_stops_the_gradient(talk: LanguageOptions) -> None:
    torch.manual_seed(0)
    options = replace(talk, dropout=0.0)
    recipe = LanguageModel(options)
    data, model = recipe.data(), WordModel(len(recipe.vocabulary), 6, init=0.5)
    module = LanguageModule(model, options)
    module.log = lambda *_, **__: None
    one, two = list(data.train_dataloader())[:2]
    assert (one.first, two.first) == (True, False)
    tensors, streams, unroll = model.state_dict(), options.batch_size, options.unroll
    joint = [[*torch.cat([one.words, two.words, two.following[-1:]])[:, s].tolist()] for s in range(streams)]
    both = sum(numpy_loss(tensors, stream) for stream in joint)
    begun = sum(numpy_loss(tensors, stream[: unroll + 1]) for stream in joint)
    first = module.training_step(one, 0)
    second = module.training_step(two, 1)
    assert first.item() == pytest.approx(begun / streams, rel=1e-5)
    assert second.item() == pytest.approx((both - begun) / streams, rel=1e-5)
    # Words of the first window alone have no share in the gradient of the second's loss.
    second.backward()
    moved = model.embedding.weight.grad.abs().sum(1) > 0
    assert set(moved.nonzero().flatten().tolist()) == set(two.words.flatten().tolist())
    assert module.training_step(one, 0).item() == pytest.approx(first.item(), rel=1e-6)


def test_streams(talk: LanguageOptions, tmp_path: Path) -> None:
    path = tmp_path / "abc.txt"
    path.write_text("a b c d e\nf g h i\n")  # twelve with two ends of lines; one is left when three streams take eleven
    vocabulary = Vocabulary.of(path, 100)
    assert vocabulary.words == ("<unk>", "<eos>", *"abcdefghi")
    options = replace(talk, train=str(path), valid=str(path), test=str(path), batch_size=3, unroll=2)
    data = Text(options, vocabulary.encode)
    spell = lambda tensor: ["".join(vocabulary.words[n].replace("<eos>", ".") for n in row) for row in tensor.T]  # noqa: E731
    trained = list(data.train_dataloader())
    assert [spell(window.words) for window in trained] == [["ab", "d e".replace(" ", ""), "fg"], ["c", ".", "h"]]
    assert [spell(window.following) for window in trained] == [["bc", "e.", "gh"], ["d", "f", "i"]]
    measured = list(data.test_dataloader())
    assert [window.first for window in measured] == [True, False]
    words = torch.cat([window.words for window in measured]).T.flatten()
    following = torch.cat([window.following for window in measured]).T.flatten()
    # Every word but the first is predicted once, the padding never.
    assert following[following != IGNORED].tolist() == vocabulary.encode(path)[1:].tolist()
    assert words[following != IGNORED].tolist() == vocabulary.encode(path)[:-1].tolist()


def test_going_on_within_a_pass() -> None:
    words = torch.arange(14).view(7, 2)
    windows = Windows(words, words, 3)
    whole = list(windows)
    windows.skip(1)
    rest = list(windows)
    assert [window.words.tolist() for window in rest] == [window.words.tolist() for window in whole[1:]]
    assert [window.first for window in rest] == [False, False]
    assert len(list(windows)) == 3


def test_calibration_carries_the_state(talk: LanguageOptions) -> None:
    recipe = LanguageModel(replace(talk, calibration_batches=3))
    model = recipe.build().eval()
    windows = list(recipe.data().calibration(model, torch.device("cpu")))
    assert len(windows) == 3
    with torch.no_grad():
        _, state = model(torch.cat([windows[0][0], windows[1][0]]))
    for (h, c), (expected_h, expected_c) in zip(windows[2][1], state, strict=True):
        torch.testing.assert_close(h, expected_h)
        torch.testing.assert_close(c, expected_c)


def test_vocabulary_keeps_the_most_frequent(tmp_path: Path) -> None:
    path = tmp_path / "text.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("der die die <unk> das\nüber die das der\n")
    vocabulary = Vocabulary.of(path, 4)
    assert vocabulary.words == ("<unk>", "<eos>", "die", "der")
    assert vocabulary.encode(path).tolist() == [3, 2, 2, 0, 0, 1, 0, 2, 0, 3, 1]


def test_presets_are_those_of_the_paper() -> None:
    files = {"train": "a", "valid": "b", "test": "c"}
    large = with_preset("large", files)
    assert (large.hidden, large.dropout, large.init, large.epochs, large.unroll) == (1500, 0.65, 0.04, 55, 35)
    assert (large.clip_gradients, large.batch_size, large.layers, large.learning_rate) == (10, 20, 2, 1)
    assert large == LanguageOptions(**files)
    medium = with_preset("medium", {**files, "hidden": 100, "epochs": None})
    assert (medium.hidden, medium.dropout, medium.init, medium.epochs, medium.unroll) == (100, 0.5, 0.05, 39, 35)
    with pytest.raises(RecipeError, match="small, medium, large"):
        with_preset("huge", files)


def rates(options: LanguageOptions, epochs: int, *, finetune: bool = False) -> list[float]:
    module = LanguageModule(WordModel(5, 2), options, finetune=finetune)
    [optimizer], [falling] = module.configure_optimizers()
    found = []
    for _ in range(epochs):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        falling.step()
    return found


def test_step_size_falls_from_epoch_to_epoch() -> None:
    small = with_preset("small", {"train": "a", "valid": "b", "test": "c", "finetune_epochs": 3})
    expected = [1, 1, 1, 1, *(0.5**k for k in range(1, 10))]
    assert rates(small, 13) == pytest.approx(expected)
    # Fine-tuning repeats the last step sizes.
    assert rates(small, 3, finetune=True) == pytest.approx(expected[-3:])


def test_texts_that_cannot_be_used(talk: LanguageOptions, tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes("für".encode("latin-1"))
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"a b c d " * 100)[:20])
    (tmp_path / "empty").write_text("")
    (tmp_path / "short").write_text("a\n")
    for name, message in (
        ("nowhere", "No such file"),
        ("latin", "iconv"),
        ("cut.gz", "cannot be read"),
        ("empty", "at least two"),
        ("short", "lower --batch-size"),
    ):
        with pytest.raises(RecipeError, match=message):
            language_model.run(replace(talk, train=str(tmp_path / name)), tmp_path / f"run-{name}")


def test_unreadable_texts_are_reported_before_training(talk: LanguageOptions, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="nowhere"):
        language_model.run(replace(talk, test=str(tmp_path / "nowhere")), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("vocabulary", 2, "--vocabulary"),
        ("dropout", 1.0, "--dropout"),
        ("init", 0.0, "--init"),
        ("layers", 0, "--layers"),
        ("weight_decay", -0.1, "--weight-decay"),
        ("written", 5, "--written 5 is for a smaller model to learn from. Add --teach 0.5."),
        ("inputs", True, "--inputs: --method reconstruct removes hidden units only. Give --method neuron-selection"),
    ],
)
def test_options_that_make_no_sense(talk: LanguageOptions, name: str, value: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        replace(talk, **{name: value})


def test_a_folder_of_another_recipe(talk: LanguageOptions, tmp_path: Path) -> None:
    (tmp_path / "options.json").write_text('{"features": {"rgb": 1024}}')
    (tmp_path / "state.json").write_text('{"seconds": {"train": 1.0}}')
    with pytest.raises(RecipeError, match="not the options of a language-model run"):
        language_model.run(talk, tmp_path, resume=True)


@pytest.mark.parametrize("module", [language_options, word_model])
def test_examples(module: Any) -> None:
    assert doctest.testmod(module).failed == 0


@pytest.mark.slow
@pytest.mark.skipif(not WAR_AND_PEACE.is_dir(), reason=f"no War and Peace in {WAR_AND_PEACE}; set REPRUNE_DATA")
def test_war_and_peace(tmp_path: Path) -> None:
    texts = {}
    for part, lines in (("train", 6000), ("valid", 300), ("test", 300)):
        with gzip.open(WAR_AND_PEACE / f"wap.{part}.txt.gz", "rt", encoding="utf-8") as file:
            texts[part] = str(tmp_path / part)
            Path(texts[part]).write_text("".join(line for line, _ in zip(file, range(lines), strict=False)))
    given = {"hidden": 64, "epochs": 5, "finetune_epochs": 1, "vocabulary": 500, "accelerator": "cpu"}
    options = with_preset("small", {**texts, **given, "progress": False})
    summary = language_model.run(options, tmp_path / "run")
    words = Vocabulary.of(texts["train"], options.vocabulary)
    assert summary["dense"]["perplexity"] < 0.9 * unigram(texts["train"], texts["test"], words)
    assert summary["pruned"]["perplexity"] < 1.1 * summary["dense"]["perplexity"]
    assert summary["pruned"]["macs"] < summary["dense"]["macs"]
