"""What people see of a run: counts, pace, the time left, and a plan before anything begins."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from neulig_ray.cli.experiments import load
from neulig_ray.cli.run.plan_table import plan_table
from neulig_ray.cluster import progress
from neulig_ray.cluster.progress import Reporter
from neulig_ray.cluster.run_context import RunContext
from neulig_ray.cluster.session import ClusterSession
from neulig_ray.experiment.config import Cluster as ClusterSettings
from neulig_ray.pipeline.pipeline import Pipeline
from neulig_ray.pipeline.plan import make_plan
from neulig_ray.pipeline.stages import up_to
from neulig_ray.storage.storage import Storage


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.fixture
def reporter() -> Reporter:
    return Reporter(Console(file=io.StringIO(), width=200))


def printed(reporter: Reporter) -> str:
    assert isinstance(reporter.console.file, io.StringIO)
    return reporter.console.file.getvalue()


def test_counts_and_pace(clock: Clock, reporter: Reporter) -> None:
    with reporter.stage("embeddings", 12, 2) as stage:
        stage.slots = 4
        assert stage.describe() == "4 running, 6 waiting, 0 failed"
        clock.now += 30
        stage.finished("a")
        stage.finished("b", "no image", failed=True)
        assert stage.describe() == "4 running, 4 waiting, 1 failed, 4 a minute, about 0:02:00 left"
        for name in "cdefg":
            stage.finished(name)
        stage.found("h")
        assert stage.describe().startswith("2 running, 0 waiting, 1 failed")
    text = printed(reporter)
    assert "embeddings   b failed: no image" in text
    assert "embeddings   6 done, 1 failed, 1 by another driver, 2 in the storage, 30.0 s" in text


def test_the_time_left_knows_that_what_is_left_is_short(clock: Clock, reporter: Reporter) -> None:
    with reporter.stage("experts", 3, 0) as stage:
        stage.weigh({"long": 8.0, "short": 1.0, "shorter": 1.0}.items())
        clock.now += 80
        stage.finished("long")
        assert stage.describe().endswith("about 0:00:20 left")


def test_a_log_gets_a_line_now_and_then(clock: Clock, reporter: Reporter) -> None:
    with reporter.stage("experts", 9, 0) as stage:
        for epoch in range(1, 9):
            clock.now += 7
            stage.running("one", f"epoch {epoch}")
    lines = [line for line in printed(reporter).splitlines() if "epoch" in line]
    assert [line.split()[-2] for line in lines] == ["3", "6"]


@pytest.mark.parametrize("name", ["a[1].png", "[red]x.png", "[/].png", "[/x].png"])
def test_names_of_files_are_no_markup(reporter: Reporter, name: str) -> None:
    with reporter.stage("tasks", total=2, cached=0) as stage:
        stage.note("x.s0", f"{name} is noted")
        stage.finished("x.s0", f"{name} is damaged", failed=True)
        stage.finished("y.s0", f"{name} is left out")
    for words in ("noted", "damaged", "left out"):
        assert f"{name} is {words}" in printed(reporter)


def test_the_plan_tells_jobs_resources_and_order(tmp_path: object) -> None:
    import dataclasses

    experiment, _ = load("experiments/smallest.py")
    settings = ClusterSettings(cpus_per_worker=4, gpus_per_worker=0.5, cpus_per_trial=0.5)
    experiment = dataclasses.replace(experiment, cluster=settings)
    reporter = Reporter(Console(file=io.StringIO(), width=200))
    context = RunContext(Storage(str(tmp_path)), ClusterSession(None, ()), reporter)
    pipeline = Pipeline(make_plan(experiment), context)
    counts = pipeline.count()
    table = plan_table(pipeline, counts)
    reporter.console.print(table)
    lines = {
        line.split()[0]: " ".join(line.split()) for line in printed(reporter).splitlines() if line.split()
    }
    assert lines["experts"] == "experts 2 0 2 4 CPUs, 0.5 GPU longest first"
    assert lines["search"] == "search 6 0 6 0.5 CPU by setting"
    assert lines["tasks"] == "tasks 2 0 2 4 CPUs as listed"
    assert sum(stage.missing for stage in counts) == sum(
        len(found) for found in pipeline.plan.artifacts().values()
    )
    assert plan_table(pipeline, pipeline.count(up_to("finetune"))).row_count == 4


@pytest.mark.parametrize(
    ("need", "slots"),
    [
        ({"cpus": 2, "gpus": 0}, 4),  # of nodes with 3, 3 and 5 CPUs: not 11 // 2
        ({"cpus": 1, "gpus": 1}, 3),
        ({"cpus": 1, "gpus": 0.5}, 5),  # the node with 3 CPUs and 2 GPUs holds three, that with 5 and 1 two
        ({"cpus": 1, "gpus": 0, "workers": 4}, 2),
        ({"cpus": 9, "gpus": 0}, 1),
    ],
)
def test_slots_are_counted_node_by_node(
    need: dict[str, float], slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [
        {"Alive": True, "Resources": {"CPU": 3.0}},
        {"Alive": True, "Resources": {"CPU": 3.0, "GPU": 2.0}},
        {"Alive": True, "Resources": {"CPU": 5.0, "GPU": 1.0}},
        {"Alive": False, "Resources": {"CPU": 99.0, "GPU": 9.0}},
    ]
    monkeypatch.setitem(__import__("sys").modules, "ray", SimpleNamespace(nodes=lambda: nodes))
    assert ClusterSession(None, ()).slots(**need) == slots
    assert ClusterSession(None, (), autoscaling=True).slots(**need) == 16, "asked for, that nodes be started"
