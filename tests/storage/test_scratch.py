"""Drivers' own folders: nobody shares one, and what a killed driver left is found and removed."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from neulig_ray.cli import main
from neulig_ray.pipeline.active_runs import in_use
from neulig_ray.storage.artifact import Artifact
from neulig_ray.storage.scratch import folders, gone, scratch, size
from neulig_ray.storage.storage import Storage

_DRIVER = """
import sys
from neulig_ray.storage.scratch import scratch
from neulig_ray.storage.storage import Storage

storage = Storage(sys.argv[1])
with scratch(storage, sys.argv[2]) as own:
    storage.write(f"{own.path}/{sys.argv[3]}", sys.argv[4].encode())
    print(own.path, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


@contextmanager
def driver(
    storage: Storage, run: str = "train/experts-1", name: str = "group-0.job", text: str = "one"
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Another driver of the run, which has written a file: its folder and its process."""
    child = subprocess.Popen(
        [sys.executable, "-c", _DRIVER, storage.root, run, name, text],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdin is not None
    try:
        yield child.stdout.readline().strip(), child
    finally:
        child.kill()
        child.wait()
        child.stdin.close()
        child.stdout.close()


def test_two_drivers_of_one_run_have_folders_of_their_own(storage: Storage) -> None:
    with driver(storage) as (theirs, child), scratch(storage, "train/experts-1") as own:
        storage.write(f"{own.path}/a/b.pt", b"four")
        assert own.path != theirs
        assert own.others() == [theirs]
        assert size(storage, own.path) == 4
        assert folders(storage) == sorted([own.path, theirs])
        own.sweep(lambda folder: True)
        assert folders(storage) == sorted([own.path, theirs]), "its driver lives"
        assert not gone(storage, theirs)
        child.kill()
        child.wait()
        assert gone(storage, theirs)
        own.sweep(lambda folder: False)
        assert own.others() == [theirs], "somebody may go on from it"
        own.sweep(lambda folder: True)
        assert folders(storage) == [own.path]
    assert folders(storage) == []


def test_what_an_error_interrupts_stays_for_the_next_driver(storage: Storage) -> None:
    def interrupted() -> None:
        with scratch(storage, "train/experts-1") as own:
            storage.write(f"{own.path}/group-0.job", b"one")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    (left,) = folders(storage)
    with scratch(storage, "train/experts-1") as later:
        assert later.others() == [left]


def test_prune_spares_what_a_live_driver_works_with(
    storage: Storage, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = Artifact.of("test", "fresh", 1, {})
    begun = Artifact.of("test", "begun", 1, {})
    storage.commit(artifact, {"a": b"x"}, {})
    storage.write(f"{begun.path}/a", b"half")
    plan = json.dumps({"artifacts": [artifact.fingerprint, begun.fingerprint]})
    prune = ["storage", "prune", "--yes", "--storage", storage.root]
    with driver(storage, "runs/exp", "plan.json", plan) as (theirs, child):
        assert in_use(storage) == {artifact.fingerprint, begun.fingerprint}
        assert main(prune) == 0
        assert "nothing to remove" in capsys.readouterr().out
        child.kill()
        child.wait()
        assert main(prune) == 0
    told = capsys.readouterr().out
    assert f"{theirs}  (left by an interrupted driver)" in told
    assert "removed 2 artifacts and 1 folders" in told
    assert storage.files("artifacts") == []
    assert folders(storage) == []
