"""Files and folders of others in a storage break no command, and no command removes them (A4)."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from neulig_ray.cli import main
from neulig_ray.errors import InputError
from neulig_ray.pipeline.active_runs import in_use
from neulig_ray.stages.experts import FILE
from neulig_ray.stages.imported_experts import with_stored
from neulig_ray.storage.artifact import Artifact
from neulig_ray.storage.inventory import survey
from neulig_ray.storage.layout import Top
from neulig_ray.storage.lookup import find
from neulig_ray.storage.manifest import MANIFEST
from neulig_ray.storage.storage import Storage

KEPT = Artifact.of("expert", "tiny-vit.digits@seed-0", 1, {"of": "digits"})
USELESS = Artifact.of("expert", "tiny-vit.letters@seed-0", 1, {"of": "letters"})


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    storage = Storage(str(tmp_path / "storage"))
    storage.commit(KEPT, {FILE: b"kept"}, {})
    storage.commit(USELESS, {FILE: b"useless"}, {})
    storage.write("exp/results.json", f'{{"artifacts": ["{KEPT.fingerprint}"]}}'.encode())
    return storage


def file(path: str) -> Callable[[Path], Any]:
    def make(root: Path) -> None:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"somebody's")

    return make


def link(path: str, target: str) -> Callable[[Path], Any]:
    return lambda root: (root / path).symlink_to(target)


STRAYS = {
    "file-at-the-top": (file("notes.txt"), "notes.txt"),
    "DS_Store": (file(".DS_Store"), ".DS_Store"),
    "lost+found": (file("lost+found/x"), "lost+found"),
    "A4-file-among-kinds": (file("artifacts/README"), "artifacts/README"),
    "A4-file-among-artifacts": (file("artifacts/expert/.DS_Store"), "artifacts/expert/.DS_Store"),
    "folder-among-artifacts": (file("artifacts/expert/mine/x"), "artifacts/expert/mine/x"),
    "folder-among-kinds": (file("artifacts/my things/x-0123456789abcdef/y"), "artifacts/my things"),
    "dangling-link": (link("artifacts/expert/gone", "nowhere"), "artifacts/expert/gone"),
    "link-to-itself": (link("artifacts/expert/loop", "."), "artifacts/expert/loop"),
    "link-at-the-top": (link("up.txt", "nowhere"), "up.txt"),
    "pipe": (lambda root: os.mkfifo(root / "artifacts/expert/pipe"), "artifacts/expert/pipe"),
    "not-utf-8": (lambda root: (root / os.fsdecode(b"\xff\xfe")).write_bytes(b""), "\\udcff"),
    "inside-an-artifact": (file(f"{KEPT.path}/.DS_Store"), ""),
    "file-among-runs": (file("ray/x"), ""),
    "file-of-no-owner": (file("ray/runs/exp/mine/x"), ""),
}


@pytest.mark.parametrize(("make", "told"), STRAYS.values(), ids=STRAYS.keys())
def test_a_stray_is_told_and_breaks_nothing(
    storage: Storage, make: Callable[[Path], Any], told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    root = Path(storage.root)
    make(root)
    before = sorted(path for path in root.rglob("*") if USELESS.fingerprint not in str(path))
    for command in (["ls"], ["verify"], ["prune", "--yes"]):
        assert main(["storage", *command, "--storage", storage.root]) == 0
        printed = "".join(capfd.readouterr())
        assert told in printed
        assert not told or "left alone" in printed
    assert not storage.exists(USELESS)
    left = sorted(path for path in root.rglob("*") if path.name != Top.CLAIMS)
    assert left == before
    assert find(storage, "expert:tiny-vit.digits@seed-0").fingerprint == KEPT.fingerprint
    assert in_use(storage) == set()
    storage.check_writable()
    storage.check_experiment("exp")


def test_prune_keeps_a_folder_with_somebodys_file_and_says_so(
    storage: Storage, capsys: pytest.CaptureFixture[str]
) -> None:
    storage.write(f"{USELESS.path}/notes.txt", b"somebody's")
    prune = ["storage", "prune", "--yes", "--storage", storage.root]
    assert main(prune) == 0
    assert f"{USELESS.path} is kept: notes.txt is not of it" in capsys.readouterr().out
    assert storage.exists(USELESS)
    Path(storage.full(f"{USELESS.path}/notes.txt")).unlink()
    assert main(prune) == 0
    assert not storage.exists(USELESS)


def test_a_manifest_without_a_byte_is_none(storage: Storage) -> None:
    """As a machine that lost power leaves it."""
    storage.write(f"{KEPT.path}/{MANIFEST}", b"")
    assert not storage.exists(KEPT)
    assert [item.whole for item in survey(storage).stored] == [False, True]
    with pytest.raises(InputError, match="unfinished"):
        find(storage, "expert:tiny-vit.digits@seed-0")
    storage.commit(KEPT, {FILE: b"kept"}, {})
    assert storage.exists(KEPT)


def test_short_names_of_experts_pass_strays_over(storage: Storage) -> None:
    from neulig_ray.experiment.config import Experiment

    Path(storage.full("artifacts/expert/loop")).symlink_to(".")
    storage.write("artifacts/expert/README", b"")
    experiment = Experiment(name="x", experts=("tiny-vit.digits@seed-0",))
    assert with_stored(experiment, storage, lambda _: True) == experiment, "it is fine-tuned, not imported"


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, who alone may become nobody: run it as root")
def test_folders_that_may_not_be_read(storage: Storage, tmp_path: Path) -> None:
    """Of an artifact: told. Of an experiment: prune cannot know what its results refer to, and refuses."""
    for path in (tmp_path, *tmp_path.rglob("*"), *tmp_path.parents[:3]):
        path.chmod(0o777 if path.is_dir() else 0o666)
    Path(storage.full(KEPT.path)).chmod(0)
    status, printed = _as_nobody(["storage", "verify", "--storage", storage.root])
    assert status == 1
    assert f"{KEPT.path}: Permission denied" in printed
    assert _as_nobody(["storage", "ls", "--storage", storage.root])[0] == 0
    Path(storage.full("exp")).chmod(0)
    status, printed = _as_nobody(["storage", "prune", "--yes", "--storage", storage.root])
    assert status == 1
    assert "cannot list" in printed
    assert storage.exists(USELESS)


def _as_nobody(command: list[str]) -> tuple[int, str]:
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        status = 99
        try:
            os.dup2(write, 1)
            os.dup2(write, 2)
            import sys

            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            status = main(command)
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read, errors="replace") as stream:
        printed = stream.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), printed


IN_THE_WAY = {
    "artifacts": "artifacts",
    "ray": "ray",
    "mlflow-artifacts": "mlflow-artifacts",
    "claims": ".claims/x",
    "experiment": "mine",
    "table": "mine/results.parquet/x",
    "about": "mine/results.json/x",
    "page": "mine/report.html/x",
}


@pytest.mark.parametrize("path", IN_THE_WAY.values(), ids=IN_THE_WAY.keys())
def test_a_file_in_place_of_a_folder_is_told_before_the_work(tmp_path: Path, path: str) -> None:
    storage = Storage(str(tmp_path / "storage"))
    file(path)(Path(storage.root))

    def check() -> None:
        storage.check_writable()
        storage.check_experiment("mine")

    with pytest.raises(InputError, match=r"where a (file|folder) is to be: move it away"):
        check()


@pytest.mark.parametrize("link", ["exp", "exp/history"])
def test_results_behind_links_are_not_taken_for_none(storage: Storage, link: str, tmp_path: Path) -> None:
    """prune cannot know what they refer to, and removes nothing."""
    place = Path(storage.full(link))
    (tmp_path / "away").mkdir()
    if place.exists():
        (place / "results.json").rename(tmp_path / "away/results.json")
        place.rmdir()
    place.symlink_to(tmp_path / "away")
    assert main(["storage", "prune", "--yes", "--storage", storage.root]) == 1
    assert storage.exists(KEPT)
    assert storage.exists(USELESS)


def test_names_that_differ_by_case_are_one_folder_somewhere(storage: Storage) -> None:
    storage.check_experiment("exp")
    with pytest.raises(InputError, match=r"'EXP' differs from 'exp'.*by case alone"):
        storage.check_experiment("EXP")
    shutil.copytree(storage.full("exp"), storage.full("EXP"))
    storage.check_experiment("EXP")


def test_a_killed_runs_plan_that_cannot_be_read_is_no_plan(storage: Storage) -> None:
    storage.write("ray/runs/exp/0123456789ab/plan.json", b"")
    assert in_use(storage) == set(), "its driver is gone"
