"""Files appear whole or not at all: where nothing can be reserved, after signals and after kills."""

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from merge_cli_helpers import Run
from safetensors.torch import load_file, save_file

import neulig_ray
from neulig_ray.errors import StageError
from neulig_ray.parts import Part, whole_file, whole_folder
from neulig_ray.storage.storage import Storage
from neulig_ray.weights.tensor_file import Spec
from neulig_ray.weights.tensor_writer import TensorWriter

PACKAGE = Path(neulig_ray.__file__).parent
SPECS = {"t": Spec((2,), torch.float32)}


def left(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.part"))


# Reserving --------------------------------------------------------------------------------------------------

CANNOT = ("EOPNOTSUPP", "EINVAL", "ENOSYS", "EPERM", "EACCES", "ENODEV", "ESPIPE", "EBADF", "EIO", "absent")


def without_reserving(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    def refuse(*arguments: Any) -> None:
        raise OSError(getattr(errno, how), os.strerror(getattr(errno, how)))

    if how == "absent":
        monkeypatch.delattr(os, "posix_fallocate")
    else:
        monkeypatch.setattr(os, "posix_fallocate", refuse)


@pytest.mark.parametrize(
    "how", CANNOT, ids=lambda how: f"F22-{how}" if how in ("EOPNOTSUPP", "EINVAL") else how
)
def test_a_file_system_that_cannot_reserve_is_written_all_the_same(
    neulig: Run, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    without_reserving(monkeypatch, how)
    out = tmp_path / "m.safetensors"
    status, _, told = neulig("merge", "average", "--experts", models["a"], models["b"], "--out", out)
    assert status == 0, told
    a, b, found = (load_file(path) for path in (models["a"], models["b"], out))
    assert torch.equal(found["proj.weight"], (a["proj.weight"] + b["proj.weight"]) / 2)


@pytest.mark.parametrize("how", ["EOPNOTSUPP", "EINVAL", "absent"])
def test_a_full_disk_that_cannot_reserve_is_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    without_reserving(monkeypatch, how)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 17))
    with pytest.raises(StageError, match=r"No space left on device \(it takes 72 bytes; 17 are free"):
        TensorWriter(tmp_path / "f.safetensors", SPECS, {})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("how", ["ENOSPC", "EDQUOT", "EFBIG"])
def test_no_room_is_no_courtesy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    without_reserving(monkeypatch, how)
    with pytest.raises(StageError, match="it takes 72 bytes"):
        TensorWriter(tmp_path / "f.safetensors", SPECS, {})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("call", ["dup", "replace"])
def test_what_cannot_be_kept_at_the_end_is_told_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """File systems on a network tell of a full disk when a file is closed."""

    def full(*arguments: Any) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    def write() -> None:
        with TensorWriter(tmp_path / "f.safetensors", SPECS, {}) as writer:
            writer.write("t", torch.ones(2))
            monkeypatch.setattr(os, call, full)

    with pytest.raises(StageError, match=r"cannot write .*quota"):
        write()
    monkeypatch.undo()
    assert os.listdir(tmp_path) == []


# Signals ----------------------------------------------------------------------------------------------------

WRITING = """
import sys, time
from pathlib import Path
from neulig_ray.cli.signals import cleans_up
from neulig_ray.parts import whole_file, whole_folder

@cleans_up
def main(command, arguments):
    folder = Path(arguments[0])
    with whole_file(folder / "a.safetensors") as stream, whole_folder(folder / "hf") as part:
        stream.write(bytes(10**6))
        (part / "config.json").write_text("{}")
        (folder / "begun").touch()
        time.sleep(60)

main("test", sys.argv[1:])
"""


def no_signal_ignored() -> None:
    """However the tests were started: under nohup, or in the background of a script."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


def writing(folder: Path, *wrapper: str) -> "subprocess.Popen[bytes]":
    """A process in the middle of writing a file and a folder."""
    command = [*wrapper, sys.executable, "-c", WRITING, str(folder)]
    process = subprocess.Popen(
        command, cwd=PACKAGE.parent, stderr=subprocess.DEVNULL, preexec_fn=no_signal_ignored
    )
    until = time.monotonic() + 60
    while not (folder / "begun").exists():
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)
    (folder / "begun").unlink()
    assert len(left(folder)) == 2
    return process


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ids=lambda n: f"F23-{n.name}"
)
def test_a_signal_that_ends_a_process_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    process = writing(tmp_path)
    process.send_signal(number)
    assert process.wait(60) == -number, "it ends by the signal, as its parent expects"
    assert os.listdir(tmp_path) == []


def test_several_signals_do_not_disturb_the_cleaning_up(tmp_path: Path) -> None:
    process = writing(tmp_path)
    for _ in range(5):
        process.send_signal(signal.SIGTERM)
    assert process.wait(60) == -signal.SIGTERM
    assert os.listdir(tmp_path) == []


def test_a_signal_that_is_ignored_stays_so(tmp_path: Path) -> None:
    process = writing(tmp_path, "nohup")
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    process.terminate()
    assert process.wait(60) == -signal.SIGTERM
    assert left(tmp_path) == []


PLUGIN = """
import time
from pathlib import Path
from neulig_ray.merging import streamed

@streamed("test-slow", paper="a test", elementwise=True)
def slow(tensors):
    \"\"\"The mean, after a while.\"\"\"
    Path({mark!r}).touch()
    time.sleep(2)
    return tensors.mean(0)
"""


def test_a_merge_that_is_ended_leaves_nothing(models: dict[str, Path], tmp_path: Path) -> None:
    mark, plugin, out = tmp_path / "begun", tmp_path / "plugin.py", tmp_path / "out"
    out.mkdir()
    plugin.write_text(PLUGIN.format(mark=str(mark)))
    given = ["merge", "test-slow", "--plugins", plugin, "--experts", models["a"], models["b"]]
    command = [sys.executable, "-m", "neulig_ray", *map(str, given), "--out", str(out / "m.safetensors")]
    process = subprocess.Popen(command, cwd=PACKAGE.parent, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 240
    while not mark.exists():
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)
    assert len(left(out)) == 1
    process.terminate()
    assert process.wait(120) == -signal.SIGTERM
    assert os.listdir(out) == []


# Kills ------------------------------------------------------------------------------------------------------


def test_what_a_killed_process_left_goes_with_the_next_writer_of_the_same_name(tmp_path: Path) -> None:
    process = writing(tmp_path)
    process.kill()
    process.wait()
    assert len(left(tmp_path)) == 2
    with whole_file(tmp_path / "b.safetensors") as stream:
        stream.write(b"b")
    assert len(left(tmp_path)) == 2, "it is not this one's"
    with TensorWriter(tmp_path / "a.safetensors", SPECS, {}) as writer:
        assert len(left(tmp_path)) == 2
        writer.write("t", torch.ones(2))
    with whole_folder(tmp_path / "hf"):
        pass
    assert sorted(os.listdir(tmp_path)) == ["a.safetensors", "b.safetensors", "hf"]


def dead(target: Path) -> Path:
    """What a killed process leaves of a file."""
    path = target.with_name(f".{target.name}.{'0123456789abcdef' * 2}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def exported(neulig: Run, folder: Path, out: Path, form: str) -> int:
    from foreign import expert_file

    path, _ = expert_file(folder)
    return neulig("export", path, "--format", form, "--out", out)[0]


def imported_to(neulig: Run, folder: Path, out: Path) -> int:
    from foreign import imported, moved

    save_file(moved()[0], folder / "in.safetensors")
    return imported(folder / "in.safetensors", out)


def merged(neulig: Run, folder: Path, out: Path) -> int:
    experts = [folder / "a.safetensors", folder / "b.safetensors"]
    return neulig("merge", "average", "--experts", *experts, "--out", out)[0]


def masked(neulig: Run, folder: Path, out: Path) -> int:
    masks, *experts = (folder / f"{name}.safetensors" for name in ("masks", "a", "b"))
    given = ["--experts", *experts, "--base", folder / "base.safetensors", "--out", masks]
    assert neulig("merge", "emr", *given)[0] == 0
    return neulig("merge", "emr", "--masks", masks, "--task", "a", "--out", out)[0]


def stored(neulig: Run, folder: Path, out: Path) -> int:
    Storage(str(out.parent)).write(out.name, b"data")
    return 0


WRITERS: dict[str, Any] = {
    "F23-merge": merged,
    "masks": masked,
    "import": imported_to,
    "export safetensors": lambda *given: exported(*given, "safetensors"),
    "export open_clip": lambda *given: exported(*given, "open_clip"),
    "storage": stored,
}


@pytest.mark.parametrize("what", WRITERS)
def test_every_command_removes_what_dead_processes_left(
    neulig: Run, models: dict[str, Path], tmp_path: Path, what: str
) -> None:
    out = tmp_path / "out/m.safetensors"
    gone = dead(out)
    live = Part(out)
    assert WRITERS[what](neulig, tmp_path, out) == 0
    assert not gone.exists()
    assert live.path.exists(), "a live process is writing it"
    live.discard()
    assert left(out.parent) == []


def test_an_exported_folder_and_its_files(neulig: Run, tmp_path: Path) -> None:
    gone = dead(tmp_path / "hf/config.json").parent.rename(tmp_path / f".hf.{'0' * 32}.part")
    card = dead(tmp_path / "e.md")
    assert exported(neulig, tmp_path, tmp_path / "hf", "hf") == 0
    assert exported(neulig, tmp_path, tmp_path / "e.pt", "open_clip") == 0
    assert not gone.exists()
    assert not card.exists()
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    "name",
    [
        ".m.safetensors.part", ".m.safetensors.xyz.part", f".other.{'0' * 32}.part",
        f"m.safetensors.{'0' * 32}.part",
        f".m.safetensors.more.{'0' * 32}.part", f".m.safetensors.{'0' * 32}.part.kept",
    ],
)  # fmt: skip
def test_what_is_not_ours_stays(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("x")
    with whole_file(tmp_path / "m.safetensors"):
        pass
    assert (tmp_path / name).exists()


def test_a_link_is_no_way_to_remove_something_else(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/file").touch()
    (tmp_path / f".m.{'0' * 32}.part").symlink_to(tmp_path / "kept")
    with whole_file(tmp_path / "m"):
        pass
    assert (tmp_path / "kept/file").exists()


@pytest.mark.parametrize(("age", "stays"), [(0, True), (80_000, True), (90_000, False)])
def test_where_nothing_can_be_locked_a_day_without_a_write_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, age: float, stays: bool
) -> None:
    def unlockable(*arguments: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unlockable)
    path = dead(tmp_path / "m.safetensors")
    os.utime(path, (time.time() - age, time.time() - age))
    with whole_file(tmp_path / "m.safetensors") as stream:
        stream.write(b"whole")
    assert path.exists() == stays
    assert (tmp_path / "m.safetensors").read_bytes() == b"whole"


def test_one_that_is_swept_before_it_is_locked_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, calls = fcntl.flock, []

    def late(handle: int, operation: int) -> None:
        calls.append(handle)
        if len(calls) == 1:
            (found,) = tmp_path.glob(".m.*.part")
            found.unlink()
        lock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with whole_file(tmp_path / "m") as stream:
        stream.write(b"whole")
    assert (tmp_path / "m").read_bytes() == b"whole"
    assert len(calls) == 2
