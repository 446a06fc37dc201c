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
