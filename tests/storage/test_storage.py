"""Artifacts are whole or not there, survive kills and full disks, and are made once."""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from call_jobs import CallJob

from neulig_ray.cli import main
from neulig_ray.cluster.jobs import Job, ensure
from neulig_ray.cluster.run_context import Failures
from neulig_ray.errors import InputError, StageError
from neulig_ray.storage.artifact import Artifact, canonical_json, fingerprint
from neulig_ray.storage.inventory import damaged, inventory
from neulig_ray.storage.storage import MANIFEST, Storage

FILES = {"a.bin": b"alpha" * 1000, "b.bin": b"beta"}


def artifact(name: str = "one", kind: str = "test") -> Artifact:
    return Artifact.of(kind, name, 1, {"name": name})


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "storage"))


def everything(storage: Storage) -> list[str]:
    return sorted(info.path[len(storage.root) + 1 :] for info in storage.files(""))


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: the kernel refuses the write half-way, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_is_committed_is_read_back(storage: Storage) -> None:
    one = artifact()
    assert not storage.exists(one)
    with pytest.raises(FileNotFoundError):
        storage.manifest(one)
    storage.commit(one, FILES, {"info": [1, 2]})
    assert storage.exists(one)
    assert {name: storage.load(one, name) for name in FILES} == FILES
    manifest = storage.manifest(one)
    assert manifest["info"] == {"info": [1, 2]}
    assert manifest["files"]["b.bin"]["bytes"] == 4
    assert everything(storage) == sorted(f"{one.path}/{name}" for name in (*FILES, MANIFEST))


def test_the_manifest_is_written_last(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    write = Storage.write

    def recorded(self: Storage, path: str, data: bytes) -> None:
        assert not storage.exists(artifact())
        write(self, path, data)
        written.append(path.rpartition("/")[2])

    monkeypatch.setattr(Storage, "write", recorded)
    storage.commit(artifact(), FILES, {})
    assert written[-1] == MANIFEST
    assert sorted(written) == sorted([*FILES, MANIFEST])


def test_a_write_that_fails_half_way_leaves_nothing(storage: Storage) -> None:
    storage.write("folder/kept", b"before")
    with small_disk(1000), pytest.raises(StageError, match="cannot write"):
        storage.write("folder/big", b"x" * 100_000)
    assert everything(storage) == ["folder/kept"]
    with small_disk(1000), pytest.raises(StageError):
        storage.write("folder/kept", b"y" * 100_000)
    assert storage.read("folder/kept") == b"before"


def test_a_commit_on_a_full_disk_makes_no_artifact(storage: Storage) -> None:
    with small_disk(1000), pytest.raises(StageError):
        storage.commit(artifact(), {"small": b"fits", "big": b"x" * 100_000}, {})
    assert not storage.exists(artifact())
    storage.commit(artifact(), FILES, {})
    assert storage.exists(artifact())


_KILLED = """
import os, signal, sys
from neulig_ray.storage.artifact import Artifact
from neulig_ray.storage.storage import Storage

write = Storage.write
def killed(self, path, data):
    if path.endswith(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, path, data)
Storage.write = killed
Storage(sys.argv[1]).commit(Artifact.of("test", "one", 1, {"name": "one"}),
                            {"a.bin": b"alpha" * 1000, "b.bin": b"beta"}, {})
"""


@pytest.mark.parametrize("before", ["b.bin", MANIFEST])
def test_a_killed_commit_makes_no_artifact(storage: Storage, before: str) -> None:
    child = subprocess.run([sys.executable, "-c", _KILLED, storage.root, before], timeout=60)
    assert child.returncode == -signal.SIGKILL
    assert not storage.exists(artifact())
    (left,) = inventory(storage)
    assert not left.whole
    storage.commit(artifact(), FILES, {})
    (made,) = inventory(storage)
    assert made.whole
    assert not list(damaged(storage, made))


def test_fingerprints_are_of_values_not_of_their_order() -> None:
    assert fingerprint({"a": 1, "b": (1, 2)}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 1.5})
    assert canonical_json({"b": 1, "a": artifact()}) == f'{{"a":"{artifact().fingerprint}","b":1}}'
    with pytest.raises(TypeError, match="cannot be part of a fingerprint"):
        fingerprint(object())


def test_paths_are_readable_and_safe() -> None:
    path = Artifact.of("kind", "../a b/ünï@x," + "y" * 200, 1, {}).path
    assert path.startswith("artifacts/kind/.._a_b_")
    assert path.count("/") == 2
    assert len(path) < 130


@pytest.mark.parametrize("below", ["file", "proc"])
def test_a_storage_that_cannot_be_written_is_refused(below: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    uri = str(tmp_path / "file/storage") if below == "file" else "/proc/neulig-storage"
    with pytest.raises(InputError, match="cannot be written") as caught:
        Storage(uri).check_writable()
    assert uri in str(caught.value)
    assert "Name another folder" in str(caught.value)


def test_a_writable_storage_is_left_as_it_was(storage: Storage) -> None:
    storage.check_writable()
    assert everything(storage) == []


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(InputError, match="nowhere://bucket"):
        Storage("nowhere://bucket/prefix")


def test_file_uris_are_local_paths(tmp_path: Path) -> None:
    assert Storage(f"file://{tmp_path}/s").root == Storage(f"{tmp_path}/s").root == f"{tmp_path}/s"
    assert Storage(f"{tmp_path}/s").child_uri("ray/train") == f"{tmp_path}/s/ray/train"


# Claims ---------------------------------------------------------------------------------------------------

_CLAIMS = """
import sys
from neulig_ray.storage.artifact import Artifact
from neulig_ray.storage.storage import Storage

with Storage(sys.argv[1]).claim(Artifact.of("test", "one", 1, {"name": "one"}), wait=True) as granted:
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_process(storage: Storage) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the claim of `artifact()` until it is told, or killed."""
    child = subprocess.Popen(
        [sys.executable, "-c", _CLAIMS, storage.root],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        yield child
    finally:
        child.kill()
        child.wait()
        for stream in (child.stdin, child.stdout):
            if stream is not None:
                stream.close()


def test_a_claim_is_held_by_one_process(storage: Storage) -> None:
    with another_process(storage):
        with storage.claim(artifact(), wait=False) as granted:
            assert not granted
        with storage.claim(artifact("another"), wait=False) as granted:
            assert granted


@pytest.mark.parametrize("killed", [False, True], ids=["released", "killed"])
def test_a_second_process_waits_until_the_first_lets_go(storage: Storage, killed: bool) -> None:
    got = threading.Event()

    def wait() -> None:
        with storage.claim(artifact(), wait=True) as granted:
            assert granted
            got.set()

    with another_process(storage) as child:
        waiting = threading.Thread(target=wait, daemon=True)
        waiting.start()
        assert not got.wait(0.3)
        if killed:
            os.kill(child.pid, signal.SIGKILL)
        else:
            assert child.stdin is not None
            child.stdin.close()
        assert got.wait(20)
        waiting.join()


def test_what_another_driver_makes_is_waited_for_and_not_made_again(storage: Storage) -> None:
    """The other driver is a process that holds the claim; this one commits in its name, then lets it go."""
    jobs = [
        CallJob(artifact(), lambda storage: (FILES, {})),
        CallJob(artifact("mine"), lambda storage: (FILES, {})),
    ]
    made: list[str] = []
    first = threading.Event()

    def make(missing: list[Job]) -> Failures:
        made.extend(job.artifact.label for job in missing)
        for job in missing:
            job.run(storage)
        first.set()
        return {}

    with another_process(storage) as child:
        driver = threading.Thread(target=lambda: ensure(storage, jobs, make), daemon=True)
        driver.start()
        assert first.wait(20)
        storage.commit(artifact(), FILES, {"by": "the other"})
        child.kill()
        driver.join(20)
        assert not driver.is_alive()
    assert made == ["mine"]
    assert storage.manifest(artifact())["info"] == {"by": "the other"}


def test_what_a_killed_driver_did_not_make_is_made(storage: Storage) -> None:
    made: list[str] = []

    def make(missing: list[Job]) -> Failures:
        made.extend(job.artifact.label for job in missing)
        return {missing[0].artifact.fingerprint: "no"}

    with another_process(storage) as child:
        threading.Timer(0.3, child.kill).start()
        failures = ensure(storage, [CallJob(artifact(), lambda storage: (FILES, {}))], make)
    assert made == ["one"]
    assert failures == {artifact().fingerprint: "no"}


# `neulig storage` -----------------------------------------------------------------------------------------


def test_verify_finds_what_is_damaged(storage: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("good", "flipped", "truncated", "missing")
    for name in names:
        storage.commit(artifact(name), FILES, {})
    assert main(["storage", "verify", "--storage", storage.root]) == 0
    assert "4 artifacts verified, 0 damaged files" in capsys.readouterr().out

    def place(name: str) -> Path:
        return Path(storage.full(f"{artifact(name).path}/a.bin"))

    data = bytearray(place("flipped").read_bytes())
    data[len(data) // 2] ^= 1
    place("flipped").write_bytes(data)
    place("truncated").write_bytes(FILES["a.bin"][:-1])
    place("missing").unlink()
    assert main(["storage", "verify", "--storage", storage.root]) == 1
    lines = capsys.readouterr().out.splitlines()
    told = {name: [line for line in lines if artifact(name).path in line] for name in names}
    assert told["good"] == []
    assert "sha256" in told["flipped"][0]
    assert "4999 bytes instead of 5000" in told["truncated"][0]
    assert told["missing"][0].endswith("missing")
    assert lines[-1] == "4 artifacts verified, 3 damaged files"


def test_ls_counts_whole_and_unfinished(storage: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    storage.commit(artifact("a"), FILES, {})
    storage.commit(artifact("b", kind="other"), FILES, {})
    storage.write(f"{artifact('c').path}/a.bin", b"begun")
    assert main(["storage", "ls", "--storage", storage.root]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["kind", "whole", "unfinished", "size"] in rows
    assert [row[:3] for row in rows if row[0] == "test"] == [["test", "1", "1"]]
    assert [row[:3] for row in rows if row[0] == "other"] == [["other", "1", "0"]]


def test_prune_keeps_what_results_refer_to(storage: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    last, earlier, useless, begun = (artifact(name) for name in ("last", "earlier", "useless", "begun"))
    for one in (last, earlier, useless):
        storage.commit(one, FILES, {})
    storage.write(f"{begun.path}/a.bin", b"begun")
    for folder, one in (("exp", last), ("exp/history/0123", earlier)):
        storage.write(f"{folder}/results.json", json.dumps({"artifacts": [one.fingerprint]}).encode())
    prune = ["storage", "prune", "--storage", storage.root]
    assert main(prune) == 1, "standard input is no terminal, and nobody said yes"
    assert storage.exists(useless)
    assert main([*prune, "--yes"]) == 0
    assert storage.exists(last)
    assert storage.exists(earlier)
    assert not storage.exists(useless)
    assert {item.fingerprint for item in inventory(storage)} == {last.fingerprint, earlier.fingerprint}
    assert "removed 2 artifacts" in capsys.readouterr().out
    assert main(prune) == 0
