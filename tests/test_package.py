"""What `import reprune` promises."""

from __future__ import annotations

import subprocess
import sys

import pytest

import reprune

FRAMEWORKS = {"torch", "keras", "tensorflow", "jax", "lightning", "matplotlib", "safetensors"}


def modules_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_brings_no_framework():
    assert not FRAMEWORKS & modules_after("import reprune")


def test_command_line_brings_no_framework():
    assert not FRAMEWORKS & modules_after("import reprune.cli.app")


def test_public_names_exist_and_are_documented():
    for name in reprune.__all__:
        assert getattr(reprune, name).__doc__, name


@pytest.mark.parametrize("verb", ["prune", "plan", "inspect"])
def test_verbs_refuse_what_is_no_model(verb):
    with pytest.raises(reprune.UnsupportedModelError, match="is neither a torch"):
        getattr(reprune, verb)(object(), [])


@pytest.mark.parametrize(
    "name", ["torch.Pruner", "torch.register_cell", "torch.RaggedLSTM", "keras.PruningCallback", "youtube8m.metrics"]
)
def test_frameworks_are_imported_when_they_are_asked_for(name):
    package = name.partition(".")[0]
    code = f"import reprune; assert {package!r} in dir(reprune); reprune.{name}"
    assert f"reprune.{package}" in modules_after(code)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'pruen'"):
        reprune.pruen  # noqa: B018


def test_every_error_and_warning_is_public():
    """What a program may want to catch is in `reprune`, wherever it is raised."""
    import reprune.core.errors as errors

    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, (Exception, Warning)) and kind.__module__ == errors.__name__:
            assert name in reprune.__all__, name


def test_verbs_have_their_real_signatures():
    import inspect

    assert reprune.prune is __import__("reprune.torch").torch.prune is __import__("reprune.keras").keras.prune
    options = set(inspect.signature(reprune.prune).parameters)
    assert {"ratio", "of", "method", "exclude", "round_to", "forward", "labels", "loss", "verify"} <= options
    with pytest.raises(TypeError, match="exlcude"):
        reprune.prune(object(), [], exlcude=["a"])


def test_a_source_tree_needs_no_metadata():
    code = (
        "import importlib.metadata as m\n"
        "def missing(name): raise m.PackageNotFoundError(name)\n"
        "m.version = missing\n"
        "import reprune; print(reprune.__version__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0+source"
