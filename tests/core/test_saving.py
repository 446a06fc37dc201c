"""The folder of a saved result: every byte counts, and it is whole at any moment."""

from __future__ import annotations

import ast
import errno
import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from reprune.core.errors import PlanError, SaveError
from reprune.core.plan import Diagnostics, Plan
from reprune.core.saving.files import reason, replacing, sole_writer, sync_folder
from reprune.core.saving.saving import (
    PLAN,
    WEIGHTS,
    check_savable,
    check_tensors,
    check_values,
    read_folder,
    unreadable,
    write_folder,
)
from tests.helpers.builders import stack


def small_plan(keep: int = 1) -> Plan:
    """A plan as short as one can be, which keeps some units of one layer."""
    return Plan(stack((2,)).structure, {"a": list(range(keep))}, diagnostics=Diagnostics())


def write(folder: Path, seed: int, plan: Plan | None = None) -> None:
    weights = np.random.default_rng(seed).standard_normal(3).astype("f4")
    write_folder(folder, plan or small_plan(), {WEIGHTS: lambda path: save_file({"w": weights}, path)})


def read(folder: Path) -> tuple[Plan, list[float], bool]:
    return read_folder(folder, lambda plan, path, sealed: (plan, load_file(path)["w"].tolist(), sealed))


def test_round_trip(tmp_path: Path) -> None:
    write(tmp_path, 0)
    plan, weights, sealed = read(tmp_path)
    assert (plan, sealed) == (small_plan(), True)
    assert weights == np.random.default_rng(0).standard_normal(3).astype("f4").tolist()
    assert Plan.from_json((tmp_path / PLAN).read_bytes()) == plan
    assert sorted(path.name for path in tmp_path.iterdir()) == [WEIGHTS, PLAN]


@pytest.mark.parametrize("name", [PLAN, WEIGHTS])
def test_every_byte_counts(tmp_path: Path, name: str) -> None:
    write(tmp_path, 0)
    path, weights_read = tmp_path / name, []
    content = path.read_bytes()
    for place in range(len(content)):
        # The lowest bit, the highest, the case of a letter, and what turns the end of a line into a space.
        flip = (0x01, 0x80, 0x20, 0x2A)[place % 4]
        path.write_bytes(content[:place] + bytes([content[place] ^ flip]) + content[place + 1 :])
        with pytest.raises(PlanError, match=name):
            read_folder(tmp_path, lambda plan, path, sealed: weights_read.append(sealed))
    assert True not in weights_read  # Nothing was taken for whole.
    for place in (i for i, byte in enumerate(content) if byte in b"\n "):
        path.write_bytes(content[:place] + b"\t" + content[place + 1 :])
        with pytest.raises(PlanError, match=name):
            read(tmp_path)


@pytest.mark.parametrize("name", [PLAN, WEIGHTS])
def test_cut_short_or_longer(tmp_path: Path, name: str) -> None:
    write(tmp_path, 0)
    path = tmp_path / name
    content = path.read_bytes()
    for damaged in [content[:length] for length in range(0, len(content), 7)] + [content + b"\n", content + content]:
        path.write_bytes(damaged)
        with pytest.raises(PlanError, match=name):
            read_folder(tmp_path, lambda plan, path, sealed: None)


@pytest.mark.parametrize("name", [PLAN, WEIGHTS])
def test_a_file_of_another_run(tmp_path: Path, name: str) -> None:
    write(tmp_path / "one", 0)
    write(tmp_path / "other", 1)
    (tmp_path / "other" / name).replace(tmp_path / "one" / name)
    with pytest.raises(PlanError, match="of another run"):
        read(tmp_path / "one")

    def refuse(plan: Plan, path: Path, sealed: bool) -> None:
        raise PlanError(f"no tensor of {path.name}, {sealed}")

    with pytest.raises(PlanError, match=f"no tensor of {WEIGHTS}, False"):  # It says more.
        read_folder(tmp_path / "one", refuse)


def test_folders_of_before_there_were_digests(tmp_path: Path) -> None:
    write(tmp_path, 0)
    document = json.loads((tmp_path / PLAN).read_text())
    for name in ("weights_file", "digest", "fitted_to", "folded"):
        del document[name]
    assert document["version"] == 1
    (tmp_path / PLAN).write_text(
        "{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in document.items()) + "\n}\n"
    )
    plan, _, sealed = read(tmp_path)
    assert (plan, sealed) == (small_plan(), False)


# Saves that end, as if by SIGKILL, at the first, second … time that a file is opened, renamed or removed. A program of
# its own, because it forks.
KILLED = """
import os, sys
from pathlib import Path
from tests.core.test_saving import read, small_plan, write
folder, code, last, found = Path(sys.argv[1]), 9, 0, []
while code:
    write(folder, 0)
    assert sorted(path.name for path in folder.iterdir()) == ["model.safetensors", "plan.json"]
    last += 1
    child = os.fork()
    if not child:
        seen = 0
        def watch(event, args):
            global seen
            if event in ("open", "os.rename", "os.remove", "os.chmod") and str(folder) in str(args[0]):
                seen += 1
                if seen == last:
                    os._exit(9)
        sys.addaudithook(watch)
        write(folder, 1, small_plan(2))
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    plan, weights, sealed = read(folder)
    found.append((plan == small_plan(2), weights, sealed))
print(found)
"""


def test_killed_at_any_moment(tmp_path: Path) -> None:
    states = []
    for seed, new in ((0, False), (1, True)):
        write(tmp_path, seed)
        states.append((new, read(tmp_path)[1], True))
    run = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = ast.literal_eval(run.stdout)
    assert len(found) > 8
    assert found[0] == states[0]
    assert all(state in states for state in found)
    assert found.count(states[1]) >= 2  # The last one, and that whose plan was still beside its place.


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    for name in (WEIGHTS, PLAN):
        write(tmp_path, 0)
        (tmp_path / name).rename(tmp_path / "elsewhere")
        with pytest.raises(PlanError, match=f"{name} does not exist: give the directory that"):
            read(tmp_path)
    write(tmp_path, 0)
    (tmp_path / WEIGHTS).unlink()
    (tmp_path / f".{PLAN}.part").touch()
    with pytest.raises(PlanError, match=f"{WEIGHTS} does not exist: give the directory that"):
        read(tmp_path)


def test_killed_between_two_files_of_a_first_save(tmp_path: Path) -> None:
    write(tmp_path, 0)
    (tmp_path / PLAN).rename(tmp_path / f".{PLAN}.part")
    assert read(tmp_path)[0] == small_plan()
    (tmp_path / f".{PLAN}.part").write_bytes(b"half of")
    with pytest.raises(PlanError, match="does not exist"):
        read(tmp_path)


def test_a_save_that_was_stopped_is_finished_before_the_next_begins(tmp_path: Path) -> None:
    """So that the next one leaves what was there when it fails. A plan that belongs to no weights is not taken."""
    old, new, folder = tmp_path / "old", tmp_path / "new", tmp_path / "folder"
    for whole, seed in ((old, 0), (new, 1)):
        write(whole, seed, small_plan(seed + 1))

    def fail(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for weights, plan, part, expected in [
        (new, old, (new / PLAN).read_bytes(), new),
        (old, old, (new / PLAN).read_bytes(), old),
        (old, old, (old / PLAN).read_bytes()[:-1], old),
    ]:
        folder.mkdir(exist_ok=True)
        (folder / WEIGHTS).write_bytes((weights / WEIGHTS).read_bytes())
        (folder / PLAN).write_bytes((plan / PLAN).read_bytes())
        (folder / f".{PLAN}.part").write_bytes(part)
        with pytest.raises(SaveError, match="What it held is as it was"):
            write_folder(folder, small_plan(), {WEIGHTS: fail})
        assert read(folder) == read(expected)
        assert sorted(path.name for path in folder.iterdir()) == [WEIGHTS, PLAN]
    (folder / WEIGHTS).unlink()
    (folder / f".{PLAN}.part").write_bytes((new / PLAN).read_bytes())
    write(folder, 0)
    assert read(folder) == read(tmp_path / "old")


def test_what_is_made_for_nothing_is_removed(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    def fail_beside(path: Path) -> None:
        (path.parent / "log").touch()
        fail(path)

    (tmp_path / "empty").mkdir()
    for name, write_weights, left in [("new", fail, False), ("empty", fail, True), ("log", fail_beside, True)]:
        with pytest.raises(SaveError, match="Permission denied: give a place that can be"):
            write_folder(tmp_path / name, small_plan(), {WEIGHTS: write_weights})
        assert (tmp_path / name).exists() == left

    def fail_within(path: Path) -> None:
        raise SafetensorError("I/O error: full")

    with pytest.raises(SaveError, match=r"cannot be written\. I/O error: full: make room there"):
        write_folder(tmp_path / "new", small_plan(), {WEIGHTS: fail_within})


def test_all_is_on_disk_before_the_first_takes_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    synced, moved = os.fsync, Path.replace

    def sync(descriptor: int) -> None:
        done.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        synced(descriptor)

    def move(path: Path, target: Path) -> Path:
        done.append(f"{path.name} to {target.name}")
        return moved(path, target)

    if not Path("/proc/self/fd").exists():
        pytest.skip("there is no /proc to look at")
    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", move)
    folder, other = tmp_path / "folder", ".report.part"
    write_folder(folder, small_plan(), {"report": Path.touch, WEIGHTS: lambda path: save_file({}, path)})
    parts, places = [f".{WEIGHTS}.part", f".{PLAN}.part"], [WEIGHTS, PLAN, "report"]
    assert done == [other, *parts, "folder", *(f".{name}.part to {name}" for name in places), "folder"]
    done.clear()
    with replacing(folder / "new" / "file") as part:
        part.write_text("all")
    assert done == [".file.part", ".file.part to file", "new"]


def test_the_second_writer_is_told(tmp_path: Path) -> None:
    write(tmp_path, 0)
    before = read(tmp_path)
    script = "import sys; from pathlib import Path; from reprune.core.saving.files import sole_writer\n"
    script += "with sole_writer(Path(sys.argv[1])): print('writing', flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    with pytest.raises(SaveError, match="another process is writing there"):
        write(tmp_path, 1)
    assert read(tmp_path) == before
    process.kill()
    process.communicate()
    write(tmp_path, 1)
    assert read(tmp_path) != before


def test_the_writer_may_ask_again(tmp_path: Path) -> None:
    with sole_writer(tmp_path):
        write(tmp_path, 0)
        with sole_writer(tmp_path):
            write(tmp_path, 1)
    assert read(tmp_path)[2]


def test_a_folder_is_locked_for_other_threads_and_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def elsewhere() -> str:
        """What another thread is told that asks."""
        told = []

        def ask() -> None:
            try:
                with sole_writer(tmp_path):
                    told.append("welcome")
            except SaveError as error:
                told.append(str(error))

        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
        return told[0]

    free = os.open(tmp_path, os.O_RDONLY)
    os.close(free)
    with sole_writer(tmp_path):
        with sole_writer(tmp_path):
            pass
        assert "another process is writing there now" in elsewhere()
    assert elsewhere() == "welcome"
    # This thread has to ask again, too.
    held, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with sole_writer(tmp_path):
            held.set()
            leave.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    with pytest.raises(SaveError, match="another process"), sole_writer(tmp_path):
        pass
    leave.set()
    holder.join()
    # No file is left open.
    again = os.open(tmp_path, os.O_RDONLY)
    os.close(again)
    assert again == free
    # Where the system locks no folders, or knows no such lock.
    fcntl = pytest.importorskip("fcntl", reason="locks on folders are of Unix")

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with sole_writer(tmp_path):
        assert elsewhere() == "welcome"
    monkeypatch.setattr(os, "fsync", refuse)
    sync_folder(tmp_path)
    again = os.open(tmp_path, os.O_RDONLY)
    os.close(again)
    assert again == free
    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(sys, "platform", "win32")
    with sole_writer(tmp_path):
        sync_folder(tmp_path)


def test_what_helps_is_said() -> None:
    room = "make room there, or give another place"
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        assert reason(OSError(number, "full")) == f"full: {room}"
    assert reason(OSError(errno.EROFS, "read only")) == "read only: give a place that can be"
    assert reason(OSError("odd")) == "odd: give a place that can be"


@pytest.mark.parametrize("damaged", [False, True])
def test_written_to_again_and_again(tmp_path: Path, damaged: bool) -> None:
    """Each read meets a save, and finds half of a file or not."""
    write(tmp_path, 0)
    reads = []

    def slow(plan: Plan, path: Path, sealed: bool) -> None:
        reads.append(sealed)
        write(tmp_path, len(reads))
        if damaged:
            raise PlanError("half of one")

    with pytest.raises(PlanError, match="being written to again and again"):
        read_folder(tmp_path, slow)
    assert reads == [True] * 5


def test_replaced_while_it_is_read(tmp_path: Path) -> None:
    """A reader that meets a writer reads again, instead of a plan of one save with the weights of another."""
    write(tmp_path, 0)
    reads = []

    def slow(plan: Plan, path: Path, sealed: bool) -> tuple[Plan, list[float]]:
        if not reads:
            write(tmp_path, 1, small_plan(2))
        reads.append(plan)
        return plan, load_file(path)["w"].tolist()

    plan, weights = read_folder(tmp_path, slow)
    assert [plan.kept["a"] for plan in reads] == [[0], [0, 1]]
    assert plan.kept["a"] == [0, 1]
    assert weights == np.random.default_rng(1).standard_normal(3).astype("f4").tolist()


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_modes_are_as_the_umask_says(tmp_path: Path, umask: int) -> None:
    out = tmp_path / "new" / "out"
    before = os.umask(umask)
    try:
        write(out, 0)
        # What a save left that was stopped.
        (out / f".{PLAN}.part").touch(0o600)
        write(out, 1)
    finally:
        os.umask(before)
    assert {(out / name).stat().st_mode & 0o777 for name in (PLAN, WEIGHTS)} == {0o666 & ~umask}


def test_what_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SaveError, match="file/out cannot be written"):
        write(tmp_path / "file" / "out", 0)


def test_a_full_disk_keeps_what_was_there(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="limits of processes are of Unix")
    write(tmp_path / "old", 0)
    before = {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Room for the weights, and not for the plan.
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before[PLAN]) // 2, limits[1]))
    try:
        for folder in ("old", "new"):
            with pytest.raises(SaveError, match="make room"):
                write(tmp_path / folder, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()} == before
    assert not (tmp_path / "new").exists()


def test_replacing_keeps_the_old_file_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as part:
            part.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with replacing(path) as part:
        part.write_text("new")
    assert path.read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    # Some file systems change no modes; there is no need to where none differs.
    monkeypatch.setattr(Path, "chmod", lambda *_: fail())
    with replacing(tmp_path / "a" / "b" / "file") as part:
        part.write_text("new")
    assert (tmp_path / "a" / "b" / "file").read_text() == "new"


def test_corrections_are_not_in_the_file(tmp_path: Path) -> None:
    from tests.core.test_plan import full_plan

    plan = full_plan()
    write(tmp_path, 0, plan)
    saved = Plan.from_json((tmp_path / PLAN).read_bytes())
    assert saved == replace(plan, folds=(), refits=(), folded=True)
    with pytest.raises(PlanError, match=r"reprune.load\(\) reads both"):
        saved.check_weights(None)
    saved.cut_only().check_weights("crc32c:0")


def test_tensors_that_a_model_does_not_have(tmp_path: Path) -> None:
    path, model = tmp_path / WEIGHTS, {"w": (2, 3), "b": (3,)}
    check_tensors(path, {"w": (2, 3)}, model, [])
    for found, missing, message in [
        (model, ["b", "a"], r"missing \['a', 'b'\], not known none"),
        (model | {"c": (1,)}, [], r"missing none, not known \['c'\]"),
        (model | {"w": (3, 2)}, [], r"'w' has shape \(3, 2\), the plan beside it gives \(2, 3\)"),
    ]:
        with pytest.raises(PlanError, match=message):
            check_tensors(path, found, model, missing)
    check_values(path, "w", "f4", "f4", fits=True, finite=True)
    for fits, finite, message in [(False, True, "'w' holds i4, the model f4"), (True, False, "'w' holds NaN")]:
        with pytest.raises(PlanError, match=message):
            check_values(path, "w", "i4", "f4", fits=fits, finite=finite)
    assert str(unreadable(path, OSError("odd"))).startswith(f"{path} cannot be read (odd): it is damaged")


def test_weights_that_could_not_be_loaded() -> None:
    for planned in (None, (2, 3)):
        check_savable("w", "f4", (2, 3), planned, fits=True, finite=True)
    for planned, fits, finite, message in [
        ((3, 2), True, True, r"'w' has shape \(2, 3\), the plan of this result gives \(3, 2\)"),
        (None, False, True, r"'w' holds f4, which load\(\) would refuse"),
        ((2, 3), True, False, "'w' holds NaN"),
    ]:
        with pytest.raises(PlanError, match=message):
            check_savable("w", "f4", (2, 3), planned, fits=fits, finite=finite)
