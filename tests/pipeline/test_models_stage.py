"""Stage `models`: whose models are artifacts, when they are asked for, and what becomes of failures."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from neulig_ray.cli.storage import main
from neulig_ray.cluster.jobs import is_done, runnable
from neulig_ray.cluster.progress import Reporter
from neulig_ray.cluster.run_context import Failures, RunContext
from neulig_ray.cluster.session import ClusterSession
from neulig_ray.errors import InputError
from neulig_ray.experiment.config import Experiment, Search
from neulig_ray.pipeline.costs import estimate
from neulig_ray.pipeline.pipeline import Pipeline
from neulig_ray.pipeline.plan import Plan, make_plan
from neulig_ray.pipeline.stages import STAGES
from neulig_ray.stages.evaluation_jobs import ROWS_FILE
from neulig_ray.stages.evaluations import PlannedEvaluation, evaluation_rows
from neulig_ray.stages.merged_models import ModelJob
from neulig_ray.storage.inventory import inventory
from neulig_ray.storage.storage import Storage

METHODS = (
    "average", "zeroshot", "ensemble-vote", "task-arithmetic", "task-arithmetic:scaling=0.3", "fisher",
    "adamerging", "wemoe", "tall-mask", "ligand", "hard-routing",
)  # fmt: skip
[MODELS] = [stage for stage in STAGES if stage.name == "models"]


@pytest.fixture
def plan() -> Plan:
    return make_plan(
        Experiment(
            name="models", archs=("tiny-rn",), tasks=("digits", "textures"), n=(2,), alignment=("sup",),
            methods=METHODS, search=Search(trials=1),
        )
    )  # fmt: skip


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


def pipeline(plan: Plan, storage: Storage) -> Pipeline:
    reporter = Reporter(Console(quiet=True), quiet=True)
    return Pipeline(plan, RunContext(storage, ClusterSession("local", ()), reporter))


def counted(plan: Plan, storage: Storage) -> tuple[int, int] | None:
    """Planned and stored models."""
    found = {count.stage.name: count for count in pipeline(plan, storage).count()}
    return (found["models"].planned, found["models"].stored) if "models" in found else None


def measure(evaluation: PlannedEvaluation, storage: Storage) -> None:
    rows = [{"task": task, "seconds": 1.0} for task in evaluation.tasks]
    storage.commit(evaluation.job.artifact, {ROWS_FILE: json.dumps(rows).encode()}, {})


def model_of(plan: Plan, evaluation: PlannedEvaluation) -> ModelJob | None:
    asked = evaluation.job.settings.get("model")
    return next((job for job in plan.merged if job.artifact == asked), None)


def of(plan: Plan, method: str) -> tuple[PlannedEvaluation, ModelJob]:
    """An evaluation of the method whose models are made before, and the job that makes them."""
    pairs = ((e, model_of(plan, e)) for e in plan.evaluations if e.common["method"] == method)
    return next((evaluation, model) for evaluation, model in pairs if model)


def test_what_costs_more_than_reading_it_again_is_kept(plan: Plan) -> None:
    pairs = [(e, model) for e in plan.evaluations if (model := model_of(plan, e))]
    kept = {(e.common["method"], json.dumps(e.common["options"]), e.common["granularity"]) for e, _ in pairs}
    assert kept == {
        ("task-arithmetic", "{}", "global"),
        ("fisher", "{}", "global"),
        ("adamerging", "{}", "global"),
        ("wemoe", "{}", "sample"),
        ("tall-mask", "{}", "task"),
        ("ligand", "{}", "task"),
        ("ligand", "{}", "global"),
    }
    assert len(pairs) == len(plan.merged)
    for evaluation, model in pairs:
        assert evaluation.job.inputs[-1] == model.artifact
        assert model.only_for == (evaluation.job.artifact,)
        assert model.artifact.kind == "model"
        assert model.needs.gpu == (evaluation.common["method"] != "ligand")
    assert {a.kind for a in of(plan, "fisher")[1].inputs} >= {"statistics", "expert"}


def test_models_are_asked_for_by_what_is_missing_alone(plan: Plan, storage: Storage) -> None:
    """As in a storage that a version without them made."""
    assert counted(plan, storage) == (7, 0)
    for evaluation in plan.evaluations:
        measure(evaluation, storage)
    assert counted(plan, storage) is None
    assert all(is_done(storage, job) for job in MODELS.jobs(plan))
    assert estimate(plan, storage)["models"].cost.flops == 0
    missing, model = of(plan, "adamerging")
    storage.delete_tree(missing.job.artifact.path)
    assert [job for job in MODELS.jobs(plan) if not is_done(storage, job)] == [model]
    assert counted(plan, storage) == (1, 0)
    cost = estimate(plan, storage)["models"].cost
    assert cost.flops == model.cost(plan.sizes(storage)).flops > 0


def test_models_that_are_stored_are_counted_and_listed(plan: Plan, storage: Storage) -> None:
    _, model = of(plan, "adamerging")
    for evaluation in plan.evaluations:
        measure(evaluation, storage)
    storage.commit(model.artifact, {"model.json": b"{}"}, {})
    assert counted(plan, storage) == (1, 1)
    (stored,) = [item for item in inventory(storage) if item.kind == "model"]
    assert stored.fingerprint == model.artifact.fingerprint


def test_a_model_that_failed_is_told_as_its_evaluations_failure(plan: Plan, storage: Storage) -> None:
    evaluation, model = of(plan, "adamerging")
    failures: Failures = {model.artifact.fingerprint: "TrainingDiverged: the loss is nan"}
    assert not runnable([evaluation.job], failures)
    statuses = [row["status"] for row in evaluation_rows(evaluation, storage, failures)]
    assert statuses == ["failed: TrainingDiverged: the loss is nan"] * 2


def test_an_experts_failure_is_told_as_before(plan: Plan, storage: Storage) -> None:
    evaluation, model = of(plan, "adamerging")
    expert = plan.experts[0].artifact
    failures: Failures = {expert.fingerprint: "OSError: away"}
    assert not runnable([model], failures)
    assert not runnable([evaluation.job], failures)
    (status, _) = [row["status"] for row in evaluation_rows(evaluation, storage, failures)]
    assert status == f"failed: expert {expert.label}: OSError: away"


def test_stored_models_are_listed_by_name(
    plan: Plan, storage: Storage, capsys: pytest.CaptureFixture[str]
) -> None:
    _, model = of(plan, "fisher")
    storage.commit(model.artifact, {"model.json": b"{}"}, {})
    measure(of(plan, "ligand")[0], storage)
    main("storage", ["ls", "model", "--storage", storage.root])
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith(model.artifact.path.rpartition("/")[2])
    with pytest.raises(InputError, match=r"unknown kind of artifact.*'models'\. Did you mean 'model'"):
        main("storage", ["ls", "models", "--storage", storage.root])
    with pytest.raises(SystemExit):
        main("storage", ["prune", "model", "--storage", storage.root])
