"""`kill -9` of the driver in the middle of every stage, and the same command again.

One storage is killed in one stage after the other, each time seen to be in the middle of it, then completed
and compared with an undisturbed run of the same seed in a storage of its own.

A stage is kept from ending before the kill by a claim on one of its artifacts, held by this process as
another driver would: the run makes the others, and waits. Trainings need none: they are killed when their
first checkpoint stands in the storage.
"""

import contextlib
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import Command
from disturbed import FLAGS, SMALLEST, checkpoints, hashes, results

from neulig_ray.cli.experiments import load
from neulig_ray.cli.options import parse
from neulig_ray.pipeline.plan import Plan, make_plan
from neulig_ray.storage.artifact import Artifact
from neulig_ray.storage.storage import Storage

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def plan() -> Plan:
    experiment, _ = load(SMALLEST)
    return make_plan(parse(experiment, FLAGS, prog="test", description="")[0])


@pytest.fixture(scope="module")
def run(start_command: Callable[..., Command]) -> Callable[[Path], Command]:
    return lambda storage: start_command("run", SMALLEST, "--storage", storage, *FLAGS)


@dataclass
class Disturbed:
    """The storage that is killed again and again, and what its checkpoints said at the time."""

    folder: Path
    curves: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    killed: list[Command] = field(default_factory=list)


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory: pytest.TempPathFactory) -> Disturbed:
    return Disturbed(tmp_path_factory.mktemp("disturbed"))


def recorded_runs(folder: Path) -> int:
    with contextlib.suppress(sqlite3.Error), contextlib.closing(_database(folder)) as database:
        return int(database.execute("select count(*) from runs where status = 'FINISHED'").fetchone()[0])
    return 0


def _database(folder: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{folder}/mlflow.db?mode=ro", uri=True, timeout=5)


def gone(command: Command, seconds: float, *, agents: bool = False) -> bool:
    """Whether every process that the command started ends by itself.

    `agents`: Ray's two agents of a node too. They hold no work, and notice at once that their node died, but
    they try for a minute to tell its dead control store.
    """
    until = time.monotonic() + seconds
    while any(agents or not _is_agent(pid) for pid in command.family()):
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def _is_agent(pid: int) -> bool:
    with contextlib.suppress(OSError):
        name = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].strip()
        return name in (b"ray::DashboardAgent", b"ray::RuntimeEnvAgent")
    return True  # it ended meanwhile


STAGES = ("tasks", "origins", "heads", "experts", "embeddings", "search", "evaluations", "results")


@pytest.mark.parametrize("stage", STAGES)
def test_a_driver_killed_in_the_middle_of_a_stage(
    stage: str, plan: Plan, disturbed: Disturbed, run: Callable[[Path], Command]
) -> None:
    folder, storage = disturbed.folder, Storage(str(disturbed.folder))
    artifacts: Sequence[Artifact] = plan.artifacts().get(stage, [])

    def made() -> list[Artifact]:
        return [artifact for artifact in artifacts if storage.exists(artifact)]

    middle: Callable[[], bool] = lambda: bool(made())  # noqa: E731
    held = list(artifacts[-1:])
    if stage in ("origins", "experts"):
        middle = lambda: bool(checkpoints(folder, stage))  # noqa: E731
        held = [] if stage == "origins" else held
    if stage == "results":
        middle = lambda: recorded_runs(folder) >= 3  # noqa: E731

    with contextlib.ExitStack() as claims:
        for artifact in held:
            assert claims.enter_context(storage.claim(artifact, wait=False))
        command = run(folder)
        command.wait_until(middle, f"the middle of stage {stage}")
        command.kill()
        disturbed.killed.append(command)
        assert gone(command, 30), "Ray's processes outlive their driver"
        assert len(made()) < len(artifacts) or stage == "results"

    if stage in ("origins", "experts"):
        for file in checkpoints(folder, stage):
            saved = torch.load(file, weights_only=True)
            disturbed.curves[saved["job"]] = saved["curve"]
        assert disturbed.curves
    if stage == "results":
        assert (folder / "smallest/results.parquet").exists()
        assert not (folder / "smallest/report.html").exists()


@pytest.fixture(scope="module")
def completed(disturbed: Disturbed, run: Callable[[Path], Command]) -> Disturbed:
    """The same command once more, to its end."""
    command = run(disturbed.folder)
    assert command.wait(880) == 0, command.output
    assert gone(command, 30), "Ray's processes outlive a run that ended"
    return disturbed


def test_the_results_are_those_of_an_undisturbed_run(completed: Disturbed, undisturbed: Path) -> None:
    expected = results(undisturbed)
    assert len(expected) > 60
    assert set(expected["status"]) == {"ok"}
    pd.testing.assert_frame_equal(results(completed.folder), expected, check_exact=True)


def test_the_artifacts_are_the_same_bytes(completed: Disturbed, undisturbed: Path, plan: Plan) -> None:
    expected = hashes(undisturbed)
    assert len(expected) > sum(len(plan.artifacts()[s]) for s in ("experts", "embeddings", "search"))
    assert hashes(completed.folder) == expected


def test_interrupted_trainings_went_on_from_their_checkpoints(completed: Disturbed, plan: Plan) -> None:
    storage = Storage(str(completed.folder))
    by_name = {a.fingerprint: a for found in plan.artifacts().values() for a in found}
    kinds = set()
    for name, saved in completed.curves.items():
        curve = storage.manifest(by_name[name])["info"]["curve"]
        kinds.add(by_name[name].kind)
        places = [point.get("epoch", point.get("step")) for point in curve]
        assert places == ([1, 2, 3, 4] if by_name[name].kind == "expert" else [100, 200, 300])
        assert 0 < len(saved) < len(curve)
        # The seconds of an epoch that was trained again would be others.
        assert curve[0] == saved[0]
    assert kinds == {"origin", "expert"}


def test_mlflow_holds_every_run_once(completed: Disturbed, undisturbed: Path) -> None:
    def keys(folder: Path) -> list[str]:
        with contextlib.closing(_database(folder)) as database:
            found = database.execute("select value from tags where key = 'neulig.key' order by value")
            listed = [row[0] for row in found.fetchall()]
            states = database.execute("select distinct status from runs").fetchall()
        assert states == [("FINISHED",)]
        return listed

    expected = keys(undisturbed)
    assert len(set(expected)) == len(expected) > 10
    assert keys(completed.folder) == expected


def test_every_process_of_a_killed_driver_ends(completed: Disturbed) -> None:
    assert completed.killed
    for command in completed.killed:
        assert gone(command, 120, agents=True)


def test_nothing_is_left_of_what_was_interrupted(
    completed: Disturbed, start_command: Callable[..., Any]
) -> None:
    command = start_command("storage", "verify", "--storage", completed.folder)
    assert command.wait(120) == 0, command.output
    assert not list((completed.folder / "ray").rglob("checkpoint.pt"))
    again = start_command("run", SMALLEST, "--storage", completed.folder, *FLAGS, "--address", "127.0.0.1:1")
    assert again.wait(120) == 0, "a completed run needs no Ray"
