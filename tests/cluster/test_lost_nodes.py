"""Three nodes on one machine: `smallest`, with a node killed in the middle of every stage.

In each stage the workers wait at a gate, their work done and not yet stored. There one is killed with its
node, and a new node comes in its place. In the trainings and the search the process alone is killed before;
in two stages the end of the node is announced, as that of spot nodes is.
The head is the driver's node: losing it is losing the driver (tests/pipeline/test_resume.py).
"""

import json
import os
import signal
from collections.abc import Callable, Collection
from pathlib import Path

import pandas as pd
import pytest
from conftest import Command
from disturbed import FLAGS, SMALLEST, hashes, results
from gates import Gates, Waiting
from nodes import PATIENCE, PROGRAM, Nodes, title

from neulig_ray.cli.experiments import load
from neulig_ray.cli.options import parse
from neulig_ray.pipeline.plan import Plan, make_plan
from neulig_ray.stages.origins import PretrainJob
from neulig_ray.storage.storage import Storage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3 * PATIENCE)]

STAGES = ("tasks", "origins", "heads", "experts", "embeddings", "search", "evaluations")
LONG = ("origins", "experts", "search")  # where Ray Train and Tune begin again what lost a process
TAKEN_BACK = ("experts", "evaluations")  # where the node is a spot node


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
    folder, gates = tmp_path_factory.mktemp("disturbed"), Gates(tmp_path_factory.mktemp("gates"))
    kinds = {stage: plan.artifacts()[stage][0].kind for stage in STAGES}
    for kind in kinds.values():
        gates.close(kind)
    storage = ("--storage", folder, "--address", nodes.address)
    command = start_command("run", SMALLEST, *storage, *FLAGS, *gates.flags)
    with nodes.told_on_failure():
        for stage, kind in kinds.items():
            killed = []
            if stage in LONG:
                killed.append(came(gates, kind, command).worker)
                os.kill(killed[0], signal.SIGKILL)
            node = came(gates, kind, command, killed).node
            nodes.take_away(node, announced=stage in TAKEN_BACK)
            gates.open(kind)
        assert command.wait(PATIENCE) == 0, command.output
    return folder, command


def came(gates: Gates, kind: str, command: Command, before: Collection[int] = ()) -> Waiting:
    """Who comes first to the gate but the processes `before`, when somebody has."""
    found: list[Waiting] = []

    def somebody() -> bool:
        found[:] = [one for one in gates.waiting(kind) if one.worker not in before]
        return bool(found)

    command.wait_until(somebody, f"work at the gate of {kind}, other than {before}'s", PATIENCE)
    return found[0]


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
    origins = [origin.job for origin in plan.origins if isinstance(origin.job, PretrainJob)]
    for jobs in (plan.experts, origins):
        assert any(f"{job.artifact.label} goes on from its last checkpoint after" in told for job in jobs)
        for job in jobs:
            curve = Storage(str(folder)).manifest(job.artifact)["info"]["curve"]
            places = [point.get("epoch", point.get("step")) for point in curve]
            assert places == ([1, 2, 3, 4] if job in plan.experts else [100, 200, 300])


def test_nothing_is_left_over(disturbed: tuple[Path, Command], start_command: Callable[..., Command]) -> None:
    folder, _ = disturbed
    assert not [file for file in (folder / "ray").rglob("*") if file.is_file()]
    command = start_command("storage", "verify", "--storage", folder)
    assert command.wait(PATIENCE) == 0, command.output


def test_what_keeps_the_trainings_going_is_killed(
    start_command: Callable[..., Command], plan: Plan, tmp_path: Path
) -> None:
    """As Ray does on a head that is short of memory: Ray Train's controllers first, then the queue.

    What a dead controller had reserved is given back, else its group would wait for it without end.
    """
    storage, gates = tmp_path / "storage", Gates(tmp_path)
    kind = plan.experts[0].artifact.kind
    gates.close(kind)
    command = start_command(
        "finetune", SMALLEST, "--storage", storage, "--finetune.epochs", "4", *gates.flags
    )

    def kill(*names: str) -> None:
        found = [pid for pid in command.family() if title(pid).startswith(names)]
        assert found, f"no {names}:\n{command.output}"
        for pid in found:
            os.kill(pid, signal.SIGKILL)

    came(gates, kind, command)
    kill("ray::TrainController", "ray::PlacementGroupCleaner")
    came(gates, kind, command, [one.worker for one in gates.waiting(kind)])
    kill("ray::TrainQueue")
    gates.open(kind)
    assert command.wait(PATIENCE) == 0, command.output
    told = " ".join(command.output.split())
    assert "goes on from its last checkpoint after" in told
    assert "the queue is begun again after" in told
    assert "experts 2 done, 0 in the storage" in told
    curves = [
        json.loads(file.read_text())["info"]["curve"]
        for file in (storage / "artifacts/expert").glob("*/manifest.json")
    ]
    assert [[point["epoch"] for point in curve] for curve in curves] == [[1, 2, 3, 4]] * 2
    assert not [file for file in (storage / "ray").rglob("*") if file.is_file()]
