"""The examples in the docstrings give what they say."""

from __future__ import annotations

import doctest
import pkgutil
from importlib import import_module

import numpy as np
import pytest

import reprune.core

MODULES = [module.name for module in pkgutil.walk_packages(reprune.core.__path__, "reprune.core.")]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    assert doctest.testmod(import_module(name), extraglobs={"np": np}).failed == 0
