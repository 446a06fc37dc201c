"""Damage to the folder of a saved result, named and at random, without any framework."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

PLAN, WEIGHTS = "plan.json", "model.safetensors"
VALUES: list[Any] = [
    None, True, -1, 0, 1, 7, 2**31, 2**64, 10**30, -(10**30), 1e308, float("nan"), float("inf"), 0.5,
    "", "x", "\x00", [], {}, [[]], [None], {"a": 1}, [1] * 50,
]  # fmt: skip


def _tensors(change: Callable[[dict[str, Any], str], object]) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        tensors = {name: np.array(value) for name, value in load_file(folder / WEIGHTS).items()}
        change(tensors, next(name for name, value in tensors.items() if value.ndim == 2))
        # What was read is mapped from the file that is written.
        save_file(tensors, folder / "changed")
        (folder / "changed").replace(folder / WEIGHTS)

    return damage


def _plan(change: Callable[[dict[str, Any], str], object]) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        document = json.loads((folder / PLAN).read_text())
        change(document, next(iter(document["kept"])))
        (folder / PLAN).write_text(json.dumps(document))

    return damage


def _header(change: Callable[[dict[str, Any], str], object]) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        header, body = _split((folder / WEIGHTS).read_bytes())
        change(header, next(name for name, entry in header.items() if len(entry.get("shape", ())) == 2))
        (folder / WEIGHTS).write_bytes(_joined(header, body))

    return damage


def _replaced(name: str, by: Callable[[Path], object]) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        by(folder / name)

    return damage


def _float8(header: dict[str, Any], name: str) -> None:
    first, last = header[name]["data_offsets"]
    header[name].update(dtype="F8_E4M3", shape=[last - first])


DAMAGE: dict[str, Callable[[Path], object]] = {
    "no folder": shutil.rmtree,
    **{
        f"{kind} {name}": _replaced(name, by)
        for name in (PLAN, WEIGHTS)
        for kind, by in {
            "no": lambda path: None,
            "empty": lambda path: path.touch(),
            "folder for": lambda path: path.mkdir(),
            "circle of links for": lambda path: path.symlink_to(path),
            "link nowhere for": lambda path: path.symlink_to("/nowhere"),
            "pipe for": os.mkfifo,
            "pickle for": lambda path: path.write_bytes(b"\x80\x04K\x01."),
            "brackets for": lambda path: path.write_text("[" * 100_000),
        }.items()
    },
    "UTF-16": lambda folder: (folder / PLAN).write_bytes((folder / PLAN).read_text().encode("utf-16")),
    "another version": _plan(lambda plan, _: plan.update(version=2)),
    "an enormous version": _plan(lambda plan, _: plan.update(version=10**400)),
    "a unit out of range": _plan(lambda plan, layer: plan["kept"].update({layer: [0, 10**400]})),
    "a negative unit": _plan(lambda plan, layer: plan["kept"].update({layer: [-1, 0]})),
    "a unit twice": _plan(lambda plan, layer: plan["kept"].update({layer: [1, 1]})),
    "no number for a unit": _plan(lambda plan, layer: plan["kept"].update({layer: [float("nan")]})),
    "a fraction for a unit": _plan(lambda plan, layer: plan["kept"].update({layer: [1.0]})),
    "other units": _plan(lambda plan, layer: plan.update(kept={**plan["kept"], layer: plan["kept"][layer][1:]})),
    "a layer of other size": _plan(lambda plan, layer: plan["structure"]["layers"][layer].update(units=10**12)),
    "a tensor less": _tensors(lambda tensors, name: tensors.pop(name)),
    "a tensor more": _tensors(lambda tensors, name: tensors.update(more=tensors[name])),
    "a tensor turned": _tensors(lambda tensors, name: tensors.update({name: tensors[name].T.copy()})),
    "whole numbers": _tensors(lambda tensors, name: tensors.update({name: tensors[name].astype("i8")})),
    "truth values": _tensors(lambda tensors, name: tensors.update({name: tensors[name] > 0})),
    "complex numbers": _tensors(lambda tensors, name: tensors.update({name: tensors[name].astype("c8")})),
    "no numbers": _tensors(lambda tensors, name: tensors.update({name: tensors[name] * np.nan})),
    "eight bits": _header(_float8),
    "an unknown type": _header(lambda header, name: header[name].update(dtype="F7")),
    "a huge shape": _header(lambda header, name: header[name].update(shape=[2**62, 4])),
    "a negative offset": _header(lambda header, name: header[name].update(data_offsets=[-4, 0])),
}


def random_damages(folder: Path, count: int, seed: int = 0) -> Iterator[None]:
    """A folder damaged in one way after the other: values of its JSON replaced, bytes of its files changed."""
    rng = random.Random(seed)
    plan, weights = (folder / PLAN).read_bytes(), (folder / WEIGHTS).read_bytes()
    for _ in range(count):
        kind = rng.random()
        (folder / PLAN).write_bytes(plan)
        (folder / WEIGHTS).write_bytes(weights)
        if kind < 0.5:
            (folder / PLAN).write_text(json.dumps(_mutated(json.loads(plan), rng)))
        elif kind < 0.7:
            header, body = _split(weights)
            (folder / WEIGHTS).write_bytes(_joined(_mutated(header, rng), body))
        else:
            name, content = (PLAN, plan) if kind < 0.85 else (WEIGHTS, weights)
            (folder / name).write_bytes(_scrambled(content, rng))
        yield


def _split(weights: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", weights[:8])
    return json.loads(weights[8 : 8 + length]), weights[8 + length :]


def _joined(header: Any, body: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key, inner in list(value.items()) if isinstance(value, dict) else list(enumerate(value)):
        yield value, key
        if isinstance(inner, dict | list):
            yield from _places(inner)


def _mutated(document: Any, rng: random.Random) -> Any:
    for _ in range(rng.choice([1, 1, 2])):
        container, key = rng.choice(list(_places(document)))
        action = rng.random()
        if action < 0.6:
            container[key] = copy.deepcopy(rng.choice(VALUES))
        elif action < 0.75:
            del container[key]
        elif isinstance(container, list):
            container.append(copy.deepcopy(container[key]))
        else:
            other, place = rng.choice(list(_places(document)))
            container[key] = copy.deepcopy(other[place])
    return document


def _scrambled(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    # Half of the changes fall where names, types and sizes are.
    place = rng.randrange(len(changed) if rng.random() < 0.5 else min(len(changed), 2000))
    action = rng.random()
    if action < 0.6:
        changed[place] = rng.randrange(256)
    elif action < 0.8:
        changed[place : place + rng.choice([0, 1, 9])] = rng.randbytes(rng.choice([0, 1, 9]))
    else:
        del changed[place:]
    return bytes(changed)
