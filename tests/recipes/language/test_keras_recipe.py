"""The recipe in Keras: the same texts, options and summary as in PyTorch."""

from __future__ import annotations

from dataclasses import replace
from itertools import count, islice, pairwise
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from safetensors.numpy import load_file

from reprune.core.errors import RecipeError
from reprune.core.plan import Plan
from reprune.recipes.language import recipe as language_model
from reprune.recipes.language.options import LanguageOptions
from reprune.recipes.language.text import IGNORED

keras = pytest.importorskip("keras")
keras_model = pytest.importorskip("reprune.recipes.language.keras_model")
keras_recipe = pytest.importorskip("reprune.recipes.language.keras_recipe")
verbs = pytest.importorskip("reprune.keras")

# Keras 3.15 on TensorFlow 2.21 with NumPy 2: its `predict` and `fit` convert tensors in a way that NumPy warns about.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)
CRASHES = (20, 45)
"""Steps: in training and in fine-tuning, each between two checkpoints."""


class CrashError(Exception):
    """Stands for the end of the process."""


@pytest.fixture(scope="module")
def options(talk: LanguageOptions) -> LanguageOptions:
    return replace(talk, framework="keras", epochs=1, finetune_epochs=1, teach=0.5, calibration_batches=9)


@pytest.fixture(scope="module")
def run(options: LanguageOptions, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("run")
    return folder, language_model.run(options, folder)


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def numpy_loss(weights: dict[str, Any], words: list[int]) -> float:
    """Summed negative log-likelihood of each word but the first, from a zero state, by the LSTM's equations."""
    w = {name: value.astype("float64") for name, value in weights.items()}
    layers = [f"lstm_{k}/" for k in range(sum(name.endswith("recurrent_kernel") for name in w))]
    h, c = ([np.zeros(len(w[name + "recurrent_kernel"])) for name in layers] for _ in range(2))
    total = 0.0
    for word, following in pairwise(words):
        x = w["embedding/embeddings"][word]
        for k, name in enumerate(layers):
            gates = x @ w[name + "kernel"] + h[k] @ w[name + "recurrent_kernel"] + w[name + "bias"]
            i, f, g, o = np.split(gates, 4)
            c[k] = sigmoid(f) * c[k] + sigmoid(i) * np.tanh(g)
            x = h[k] = sigmoid(o) * np.tanh(c[k])
        logits = x @ w["output/kernel"] + w["output/bias"]
        total += np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[following]
    return total


def test_perplexity_is_that_of_an_lstm_in_numpy(run: Any, options: LanguageOptions) -> None:
    folder, summary = run
    words = keras_recipe.LanguageModel(options).read(options.test).tolist()
    length = -(-(len(words) - 1) // options.batch_size)
    streams = [words[s * length : (s + 1) * length + 1] for s in range(options.batch_size)]
    for name, file in (("dense", "dense.safetensors"), ("pruned", "model.safetensors")):
        weights = load_file(folder / file)
        expected = np.exp(sum(numpy_loss(weights, stream) for stream in streams) / (len(words) - 1))
        assert summary[name]["perplexity"] == pytest.approx(expected, rel=1e-5)
        products = [value.size for key, value in weights.items() if "kernel" in key]
        assert summary[name]["macs"] == sum(products)
        assert summary[name]["parameters"] == sum(value.size for value in weights.values())
    before, after = (sum(units[i] for units in summary["units"].values()) for i in (0, 1))
    assert (before, after) == (2 * options.hidden, options.hidden)


def test_pruned_computes_what_the_masked_does_with_its_state(run: Any, options: LanguageOptions) -> None:
    folder, _ = run
    recipe = keras_recipe.LanguageModel(options)
    dense = recipe.load(recipe.build(), folder / "dense.safetensors")
    plan = Plan.from_json((folder / "plan.json").read_bytes())
    small, masked = (verb(dense, plan, compensate=False) for verb in (verbs.apply, verbs.mask))
    for words, _ in list(recipe.training_batches())[:2]:
        np.testing.assert_allclose(small.predict_on_batch(words), masked.predict_on_batch(words), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_crash_and_resume(run: Any, options: LanguageOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, states, dropout and the teacher's state go on as if nothing had happened."""
    steps, original = count(1), keras.Model.train_on_batch

    def step(*given: Any, **named: Any) -> Any:
        if next(steps) in CRASHES:
            raise CrashError
        return original(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(keras.Model, "train_on_batch", step)
        for resume in range(len(CRASHES)):
            with pytest.raises(CrashError):
                language_model.run(options, tmp_path / "run", resume=bool(resume))
    language_model.run(options, tmp_path / "run", resume=True)
    for file in ("dense.safetensors", "model.safetensors"):
        wanted = load_file(run[0] / file)
        for name, value in load_file(tmp_path / "run" / file).items():
            np.testing.assert_array_equal(value, wanted[name], err_msg=f"{file} {name}")


def test_the_loss_is_that_of_the_words(options: LanguageOptions) -> None:
    rng = np.random.default_rng(0)
    logits, following = rng.normal(size=(2, 3, 5)), np.array([[1, 4, IGNORED], [0, 2, 2]])
    log = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = [-log[0, 0, 1] - log[0, 1, 4], -log[1, 0, 0] - log[1, 1, 2] - log[1, 2, 2]]
    found = keras_model.summed_over_words(keras.ops.convert_to_tensor(following), keras.ops.convert_to_tensor(logits))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_loss_is_shared_with_the_dense_model_as_in_pytorch(options: LanguageOptions) -> None:
    likely = pytest.importorskip("reprune.torch.training.likely")
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    dense, own = (torch.from_numpy(rng.normal(size=(2, 3, 300)).astype("float32")) for _ in range(2))
    following = np.array([[1, 4, 7], [0, 2, 2]])
    answers = likely.likely(dense, np.random.default_rng(0))
    given = np.concatenate([following[..., None], answers.classes, answers.logs], axis=-1, dtype="float32")
    found = keras_model.taught_over_words(0.3)(*map(keras.ops.convert_to_tensor, (given, own.numpy())))
    for stream in range(2):
        part = likely.Likely(answers.classes[stream], answers.logs[stream])
        wanted = likely.shared_cross_entropy(own[stream], torch.from_numpy(following[stream]), part, 0.3)
        assert float(found[stream]) == pytest.approx(wanted.item(), rel=1e-5)


def test_of_answers_the_same_is_kept_as_in_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    likely = pytest.importorskip("reprune.torch.training.likely")
    torch = pytest.importorskip("torch")
    logits = np.random.default_rng(1).normal(scale=2, size=(2, 3, 300)).astype("float32")  # streams × words
    monkeypatch.setattr(keras_model, "reset", lambda model: None)
    model = Mock(predict_on_batch=Mock(return_value=keras.ops.convert_to_tensor(logits)))
    (found,) = keras_model.answers_to([(None, None)], model)
    wanted = likely.likely(torch.from_numpy(logits.swapaxes(0, 1)), np.random.default_rng(0))
    for row in np.ndindex(3, 2):
        ours, theirs = (
            sorted(zip(classes.tolist(), np.asarray(logs, "float32").tolist(), strict=True))
            for classes, logs in ((found["classes"][row], found["logs"][row]), (wanted.classes[row], wanted.logs[row]))
        )
        assert [number for number, _ in ours] == [number for number, _ in theirs]
        assert [log for _, log in ours] == pytest.approx([log for _, log in theirs], rel=2e-3)


def test_it_takes_the_steps_that_pytorch_takes(options: LanguageOptions) -> None:
    """On the same windows from the same weights, which decay, with clipped gradients and words that come twice."""
    torch_recipe = pytest.importorskip("reprune.recipes.language.torch_recipe")
    torch = pytest.importorskip("torch")
    plain = replace(options, dropout=0.0, init=0.5, clip_gradients=0.5, hidden=5, weight_decay=0.1)
    theirs, ours = (part.LanguageModel(plain) for part in (torch_recipe, keras_recipe))
    model, twin = theirs.build(), ours.build()
    twin.set_weights(_as_keras(model))
    before = twin.get_weights()
    module, clipped = theirs.module(model), 0
    module.log = lambda *given, **named: None
    (descent,), _ = module.configure_optimizers()
    assert descent.defaults["weight_decay"] == 0.1
    ours.compiled(twin)
    for window, batch in islice(zip(theirs.data().train_dataloader(), ours.training_batches(), strict=True), 3):
        np.testing.assert_array_equal(window.words.T, batch[0])
        descent.zero_grad()
        loss = module.training_step(window, 0)
        loss.backward()
        clipped += float(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)) > 0.5
        descent.step()
        assert twin.train_on_batch(*batch, return_dict=True)["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    assert clipped == 3
    for start, found, wanted in zip(before, twin.get_weights(), _as_keras(model), strict=True):
        assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted - start).max()


def _as_keras(model: Any) -> list[Any]:
    """Weights of PyTorch's word model in the order of Keras's, the two biases of each LSTM added up."""
    found = [model.embedding.weight]
    for layer in model.recurrent:
        found += [layer.weight_ih_l0.T, layer.weight_hh_l0.T, layer.bias_ih_l0 + layer.bias_hh_l0]
    return [value.detach().numpy().copy() for value in (*found, model.output.weight.T, model.output.bias)]


def test_what_only_pytorch_does(options: LanguageOptions) -> None:
    with pytest.raises(RecipeError, match=r"--devices 2.* --framework torch"):
        keras_recipe.LanguageModel(replace(options, devices="2"))
    with pytest.raises(RecipeError, match=r"--written 9.* --framework torch"):
        replace(options, written=9, teach=0.5)


def test_columns_of_the_embedding_are_units(run: Any, options: LanguageOptions, tmp_path: Path) -> None:
    asked = replace(options, scope="all", method="magnitude", teach=0.0, finetune_epochs=0, dense=str(run[0]))
    summary = language_model.run(asked, tmp_path / "run")
    weights = load_file(tmp_path / "run" / "model.safetensors")
    columns, *hidden = (summary["units"][name] for name in ("embedding:columns", "lstm_0", "lstm_1"))
    assert weights["embedding/embeddings"].shape[1] == columns[1]
    assert weights["lstm_0/kernel"].shape == (columns[1], 4 * hidden[0][1])
    assert sum(after for _, after in (columns, *hidden)) == 3 * options.hidden / 2
