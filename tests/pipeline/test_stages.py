"""A further stage is one file and one entry: plan table, dry run, command line, costs and the run follow."""

import importlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from without_ray import no_ray_runs

import neulig_ray.cli
import neulig_ray.stages
from neulig_ray.cluster.run_context import RunContext
from neulig_ray.experiment.config import Cluster, Experiment, Finetune
from neulig_ray.pipeline import pipeline
from neulig_ray.pipeline.costs import CPU_FLOPS, estimate
from neulig_ray.pipeline.pipeline import Pipeline
from neulig_ray.pipeline.plan import make_plan
from neulig_ray.pipeline.stages import GPU_FLOAT32_FLOPS, GPU_FLOPS, STAGES, Stage, up_to
from neulig_ray.storage.storage import Storage

FILE = '''
"""Stage `checks`: how large the numbers of each expert are."""

from dataclasses import dataclass

from neulig_ray.cluster.cost import Cost
from neulig_ray.cluster.jobs import Job
from neulig_ray.storage.artifact import Artifact


@dataclass(frozen=True)
class Check(Job):
    artifact: Artifact
    expert: Artifact

    @property
    def inputs(self):
        return (self.expert,)

    def cost(self, sizes):
        return Cost(flops=5e14, bytes=1000)

    def make(self, storage):
        return {"check.json": b"{}"}, {}


def jobs(plan):
    return [
        Check(Artifact.of("check", job.artifact.label, 1, {"expert": job.artifact}), job.artifact)
        for job in plan.experts
    ]
'''
ENTRY = Stage(
    "checks", workers="trial", order="longest first", command="check", about="the pipeline up to the checks"
)
EXPERIMENT = Experiment(
    name="checked",
    archs=("tiny-rn",),
    tasks=("digits", "textures"),
    methods=("expert",),
)


@pytest.fixture
def with_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "rooms").mkdir()
    (tmp_path / "rooms" / "checks.py").write_text(FILE)
    monkeypatch.setattr(neulig_ray.stages, "__path__", [*neulig_ray.stages.__path__, str(tmp_path / "rooms")])
    STAGES.insert([stage.name for stage in STAGES].index("experts") + 1, ENTRY)
    importlib.reload(neulig_ray.cli)  # which reads the list once, when it is imported
    yield
    STAGES.remove(ENTRY)
    importlib.reload(neulig_ray.cli)


def test_the_command_line_has_its_command_and_the_dry_run_its_line(
    with_checks: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    no_ray_runs(monkeypatch)
    assert neulig_ray.cli.main(["--help"]) == 0
    assert "  check     the pipeline up to the checks\n" in capsys.readouterr().out
    flags = ["--tasks", "digits", "signs", "--dry-run", "--storage", str(tmp_path / "storage")]
    assert neulig_ray.cli.main(["check", str(REPOSITORY / "experiments/smallest.py"), *flags]) == 0
    planned, _, costs = capsys.readouterr().out.partition("GPU hours")
    lines = [line.split() for line in planned.splitlines() if line.strip()]
    names = [line[0] for line in lines if line[0] in {stage.name for stage in STAGES}]
    assert names[names.index("experts") + 1] == "checks"
    (line,) = (line for line in lines if line[0] == "checks")
    assert line[1:4] == ["2", "0", "2"]
    assert " ".join(line[-2:]) == "longest first"
    (line,) = (line.split() for line in costs.splitlines() if line.startswith("checks"))
    assert line[1:] == [f"{2 * 5e14 / CPU_FLOPS / 3600:.1f}", "2.0", "KiB"]


def test_the_run_makes_its_artifacts_between_its_neighbours(
    with_checks: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(EXPERIMENT)
    assert [artifact.kind for artifact in plan.artifacts()["checks"]] == ["check", "check"]
    storage = Storage(str(tmp_path / "storage"))
    assert estimate(plan, storage)["checks"].cost.bytes == 2000
    ran: list[str] = []
    given: Any = None
    context = RunContext(storage, type("Cluster", (), {"needs": ()})(), given)
    monkeypatch.setattr(Stage, "runner", lambda self: None)  # some files' own, which need Ray
    monkeypatch.setattr(pipeline, "run_jobs", lambda name, *_, **__: ran.append(name))
    monkeypatch.setattr(pipeline, "run_trainings", lambda name, *_, **__: ran.append(name))
    run = Pipeline(plan, context)
    run.run("check")
    assert ran[-2:] == ["experts", "checks"]
    assert up_to("check")[-1] is ENTRY
    assert run.takes(ENTRY)[1].cpus == EXPERIMENT.cluster.trial_cpus
    (need,) = (need for need in context.cluster.needs if "checks" in need.what)
    assert need.cpus == EXPERIMENT.cluster.trial_cpus


@pytest.mark.parametrize(("precision", "rate"), [("float32", GPU_FLOAT32_FLOPS), ("bfloat16", GPU_FLOPS)])
def test_hours_follow_the_precision_of_whichever_stage_fine_tunes(
    precision: Any, rate: float, with_checks: None, tmp_path: Path
) -> None:
    place = STAGES.index(ENTRY)
    STAGES[place] = tuned = replace(ENTRY, workers="gpu", flops=GPU_FLOPS, finetunes=True)
    try:
        settings = {"cluster": Cluster(gpus_per_worker=1), "finetune": Finetune(precision=precision)}
        costs = estimate(make_plan(replace(EXPERIMENT, **settings)), Storage(str(tmp_path / "storage")))
    finally:
        STAGES[STAGES.index(tuned)] = ENTRY
    assert costs["checks"].gpu == costs["experts"].gpu == rate
