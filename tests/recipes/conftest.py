from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from reprune.recipes.language.options import LanguageOptions
from reprune.recipes.run.options import Options
from reprune.recipes.video.generated import CLASSES, FEATURES, write_shards
from tests.helpers.made_text import write_text


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small only lose time when their work is shared out."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, train=90, validate=30, shards=3)
    return folder


@pytest.fixture(scope="session")
def tiny(shards: Path) -> Options:
    """Six steps per epoch and phase; a checkpoint every second one."""
    return Options(
        train=(str(shards / "train*.tfrecord"),),
        validate=(str(shards / "validate*.tfrecord"),),
        features=FEATURES,
        classes=CLASSES,
        hidden=8,
        epochs=2,
        finetune_epochs=1,
        batch_size=16,
        learning_rate=3e-3,
        checkpoint_steps=2,
        accelerator="cpu",
        progress=False,
    )


@pytest.fixture(scope="session")
def talk(tmp_path_factory: pytest.TempPathFactory) -> LanguageOptions:
    """About thirty windows a pass, of which the last is short; some letters are unknown."""
    folder = tmp_path_factory.mktemp("talk")
    texts = {}
    for seed, (part, lines) in enumerate({"train": 160, "valid": 30, "test": 30}.items()):
        write_text(folder / f"{part}.txt", lines, seed)
        texts[part] = str(folder / f"{part}.txt")
    return LanguageOptions(
        **texts,
        vocabulary=22,
        hidden=12,
        dropout=0.1,
        init=0.3,
        unroll=10,
        epochs=8,
        finetune_epochs=2,
        batch_size=3,
        decay=0.7,
        decay_after=6,
        clip_gradients=5.0,
        checkpoint_steps=7,
        accelerator="cpu",
        progress=False,
    )
