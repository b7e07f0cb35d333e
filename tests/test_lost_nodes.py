"""Three nodes on one machine: `smallest`, with a node killed in the middle of every stage.

One run is disturbed in each of its stages, each time seen to be in the middle of it; a new node comes in
place of the lost one. A stage is kept from ending before that by a claim on its last artifact, held by this
process as another driver would. In the trainings and the search a single process is killed before the node
is. The head is the driver's node: losing it is losing the driver (tests/test_resume.py).
"""

import contextlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from conftest import Command
from disturbed import FLAGS, SMALLEST, checkpoints, hashes, results
from nodes import PROGRAM, Nodes, title

from neulig_ray.cli.experiments import load
from neulig_ray.cli.options import parse
from neulig_ray.stages.plan import Plan, make_plan
from neulig_ray.stages.storage import Storage

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.environ.get("NEULIG_TEST_CLUSTER"),
        reason="three nodes, one killed in every stage: not yet seen to pass on a quiet 2-core machine; "
        "NEULIG_TEST_CLUSTER=1 runs it",
    ),
]

SMALL = "ray::_execute"
TRAINING = "ray::RayTrainWorker"
TRIAL = "ray::ImplicitFunc.train"
STAGES = {
    "tasks": SMALL,
    "origins": TRAINING,
    "heads": SMALL,
    "experts": TRAINING,
    "embeddings": SMALL,
    "search": TRIAL,
    "evaluations": SMALL,
}


@pytest.fixture(scope="module")
def plan() -> Plan:
    experiment, _ = load(SMALLEST)
    return make_plan(parse(experiment, FLAGS, prog="test", description="")[0])


@pytest.fixture(scope="module")
def disturbed(
    plan: Plan, start_command: Callable[..., Command], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Command]:
    """The storage of the run whose nodes were killed, and its command."""
    nodes = Nodes(start_command(program=PROGRAM))
    folder = tmp_path_factory.mktemp("disturbed")
    storage = Storage(str(folder))
    with contextlib.ExitStack() as held:
        claims = {}
        for stage in STAGES:
            if stage != "origins":  # it has one artifact only
                last = plan.artifacts()[stage][-1]
                claims[stage] = held.enter_context(contextlib.ExitStack())
                assert claims[stage].enter_context(storage.claim(last, wait=False))
        command = start_command("run", SMALLEST, "--storage", folder, *FLAGS, "--address", nodes.address)
        for stage, work in STAGES.items():
            disturb(stage, work, nodes, command, folder)
            if stage in claims:
                claims[stage].close()
    assert command.wait(600) == 0, command.output
    return folder, command


def disturb(stage: str, work: str, nodes: Nodes, command: Command, folder: Path) -> None:
    seen: set[Path] = set()

    def new_checkpoint() -> bool:
        return bool(set(checkpoints(folder, stage)) - seen)

    if work == TRAINING:
        command.wait_until(new_checkpoint, f"a checkpoint of stage {stage}")
    if work != SMALL:
        _, worker = nodes.caught(work, command)
        seen.update(checkpoints(folder, stage))
        os.kill(worker, signal.SIGKILL)
    if work == TRAINING:
        command.wait_until(new_checkpoint, f"a further checkpoint of stage {stage}")
    node, _ = nodes.caught(work, command)
    nodes.kill(node)


def test_the_results_are_those_of_an_undisturbed_run(
    disturbed: tuple[Path, Command], undisturbed: Path
) -> None:
    folder, _ = disturbed
    expected = results(undisturbed)
    assert set(expected["status"]) == {"ok"}
    pd.testing.assert_frame_equal(results(folder), expected, check_exact=True)
    assert hashes(folder) == hashes(undisturbed)


def test_trainings_went_on_from_their_checkpoints(disturbed: tuple[Path, Command], plan: Plan) -> None:
    folder, command = disturbed
    told = " ".join(command.output.split())
    for job in (*plan.experts[:1], *(origin.job for origin in plan.origins)):
        assert job is not None
        assert f"{job.artifact.label} goes on from its last checkpoint after" in told
        curve = Storage(str(folder)).manifest(job.artifact)["info"]["curve"]
        places = [point.get("epoch", point.get("step")) for point in curve]
        assert places == ([1, 2, 3, 4] if job in plan.experts else [100, 200, 300])


def test_nothing_is_left_over(disturbed: tuple[Path, Command], start_command: Callable[..., Command]) -> None:
    folder, _ = disturbed
    assert not [file for file in (folder / "ray").rglob("*") if file.is_file()]
    command = start_command("storage", "verify", "--storage", folder)
    assert command.wait(120) == 0, command.output


@pytest.mark.parametrize("killed", ["ray::TrainQueue", "ray::TrainController ray::PlacementGroupCleaner"])
def test_what_keeps_the_trainings_going_is_killed(
    killed: str, start_command: Callable[..., Command], tmp_path: Path
) -> None:
    """As Ray does on a head that is short of memory. What a dead controller reserved is given back."""
    command = start_command("finetune", SMALLEST, "--storage", tmp_path, "--finetune.epochs", "4")
    command.wait_until(lambda: bool(checkpoints(tmp_path, "experts")), "a checkpoint of an expert")
    names = tuple(killed.split())
    found = [pid for pid in command.family() if title(pid).startswith(names)]
    assert found
    for pid in found:
        os.kill(pid, signal.SIGKILL)
    assert command.wait(600) == 0, command.output
    told = " ".join(command.output.split())
    assert (
        "the queue is begun again after" if len(names) == 1 else "goes on from its last checkpoint"
    ) in told
    curves = [
        json.loads(file.read_text())["info"]["curve"]
        for file in (tmp_path / "artifacts/expert").glob("*/manifest.json")
    ]
    assert [[point["epoch"] for point in curve] for curve in curves] == [[1, 2, 3, 4]] * 2
    assert not [file for file in (tmp_path / "ray").rglob("*") if file.is_file()]
