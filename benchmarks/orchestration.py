"""What orchestration costs, and how well the plan uses a cluster.

    python benchmarks/orchestration.py overhead [--experiment quickstart] [--cpus 1]
    python benchmarks/orchestration.py trials [--trials 48] [--cpus 2]
    python benchmarks/orchestration.py utilisation [--nodes 8] [--shortest 20]

`overhead`: the stages of an experiment under Ray, on a cluster of as many CPUs as asked for, against the same
computations in one plain process of one thread, in seconds and as a ratio. `trials`: ligand trials a second.
`utilisation`: 20 tasks x 3 archs of experts that sleep, three durations for each arch, through the product's
own scheduler on simulated nodes of one CPU each, against longest-first list scheduling without any overhead.

Measured figures: docs/performance.md.
"""

import argparse
import heapq
import itertools
import json
import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")

import ray
import torch
from rich.console import Console

from neulig_ray.cli.experiments import load
from neulig_ray.cluster.cost import Cost, Sizes
from neulig_ray.cluster.jobs import Job, JobOutput, Resources
from neulig_ray.cluster.progress import Reporter, StageProgress
from neulig_ray.cluster.run_context import RunContext
from neulig_ray.cluster.session import ClusterSession
from neulig_ray.cluster.train.job import Step, TrainJob, Worker
from neulig_ray.cluster.train.run import run_trainings
from neulig_ray.experiment.config import Experiment
from neulig_ray.pipeline.pipeline import Pipeline
from neulig_ray.pipeline.plan import Plan, make_plan
from neulig_ray.pipeline.stages import STAGES
from neulig_ray.stages import search
from neulig_ray.stages.origins import OriginFile
from neulig_ray.storage.artifact import Artifact
from neulig_ray.storage.storage import Storage


class Stopwatch(Reporter):
    """Notes how long each stage takes, and when each of its jobs was seen to end."""

    def __init__(self) -> None:
        super().__init__(Console(stderr=True))
        self.seconds: dict[str, float] = {}
        self.ends: dict[str, list[float]] = {}

    @contextmanager
    def stage(self, name: str, total: int, cached: int) -> Iterator[StageProgress]:
        started = time.monotonic()
        with super().stage(name, total, cached) as stage:
            finished, ends = stage.finished, self.ends.setdefault(name, [])

            def noted(job: str, text: str = "", *, failed: bool = False) -> None:
                ends.append(time.monotonic())
                finished(job, text, failed=failed)

            stage.finished = noted  # type: ignore[method-assign]
            yield stage
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started


# Overhead ---------------------------------------------------------------------------------------------------


def overhead(experiment: Experiment, cpus: int) -> dict[str, Any]:
    """Stage -> seconds in one plain process, and under Ray."""
    plan = make_plan(experiment)
    with tempfile.TemporaryDirectory() as folder:
        plain = in_one_process(plan, Storage(f"{folder}/plain"))
    with tempfile.TemporaryDirectory() as folder:
        watch = Stopwatch()
        begun = time.monotonic()
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False)
        start = time.monotonic() - begun
        pipeline = Pipeline(plan, RunContext(Storage(f"{folder}/ray"), ClusterSession(None, ()), watch))
        pipeline.run("evaluate")
        assert not pipeline.context.failures, pipeline.context.failures
        ray.shutdown()
    under_ray = {"start of Ray": start, **watch.seconds}
    return {"cpus": cpus, "plain": plain, "ray": under_ray}


def in_one_process(plan: Plan, storage: Storage) -> dict[str, float]:
    """The jobs of every stage one after another, by the code that the workers run."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    context = RunContext(storage, ClusterSession(None, ()), Stopwatch())
    seconds = {}
    for stage in STAGES:
        started = time.monotonic()
        jobs = stage.jobs(plan)
        for job in jobs:
            if isinstance(job, OriginFile):
                job.store(storage)
            elif isinstance(job, Job):
                job.run(storage)
            elif hasattr(job, "steps"):
                train(job, storage)
        if stage.name == "search":
            make_trials(jobs, storage)
        elif stage.name == "ligands":
            stage.runner()(context, jobs, Resources())
        seconds[stage.name] = time.monotonic() - started
    assert not context.failures, context.failures
    return seconds


def train(job: TrainJob, storage: Storage) -> None:
    last: Step | None = None
    curve = []
    for last in job.steps(storage, Worker(), None):
        curve.append(dict(last.point))
    assert last is not None
    storage.commit(job.artifact, *job.files(last, curve))


def make_trials(trials: list[search.Trial], storage: Storage) -> None:
    for arch in {trial.arch for trial in trials}:
        own = [trial for trial in trials if trial.arch == arch]
        data = search.gather(own, storage)
        stack = search.ExpertStack.from_arrays(data["stack"])
        for trial in own:
            made = search.train_trial(trial, data["train"], data["val"], data["offsets"], stack)
            storage.commit(trial.artifact, *made)


# Trials -----------------------------------------------------------------------------------------------------


def trials(experiment: Experiment, count: int, cpus: int) -> dict[str, float]:
    """How many ligand trials a second one Tune run makes, from its beginning and once its actors work."""
    experiment = replace(experiment, search=replace(experiment.search, trials=count))
    plan = make_plan(experiment)
    with tempfile.TemporaryDirectory() as folder:
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False)
        watch, storage = Stopwatch(), Storage(folder)
        pipeline = Pipeline(plan, RunContext(storage, ClusterSession(None, ()), watch))
        pipeline.run("search")
        ray.shutdown()
        found = [trial.artifact for cell in plan.cells for trial in cell.trials]
        computing = sum(storage.manifest(artifact)["info"]["seconds"] for artifact in found)
    ends = watch.ends["search"]
    return {
        "trials": len(found),
        "cpus": cpus,
        "seconds of the stage": watch.seconds["search"],
        "seconds until the first was seen": watch.seconds["search"] - (ends[-1] - ends[0]),
        "trials a second, whole stage": len(found) / watch.seconds["search"],
        "trials a second, once under way": (len(found) - 1) / max(1e-9, ends[-1] - ends[0]),
        "seconds of computing a trial": computing / len(found),
    }


# Utilisation ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sleep:
    """An expert that sleeps (a TrainJob)."""

    artifact: Artifact
    seconds: float
    inputs: tuple[Artifact, ...] = ()
    workers: int = 1

    def cost(self, sizes: Sizes) -> Cost:
        return Cost(self.seconds)

    def steps(self, storage: Storage, worker: Worker, checkpoint: dict[str, Any] | None) -> Iterator[Step]:
        begun = time.time()
        time.sleep(self.seconds)
        yield Step(True, {"begun": begun, "ended": time.time()}, dict, None)

    def files(self, last: Step, curve: list[dict[str, float]]) -> JobOutput:
        return {}, curve[-1]


ARCH_FACTORS = (1.0, 1.6, 3.0)
TASK_FACTORS = (1.0, 1.2, 1.5)


def sleeping_experts(shortest: float) -> list[Sleep]:
    """20 tasks x 3 archs in the plan's order, arch by arch; three durations for each arch."""
    found = []
    for arch, factor in enumerate(ARCH_FACTORS):
        for task in range(20):
            seconds = shortest * factor * TASK_FACTORS[task % 3]
            artifact = Artifact.of("expert", f"arch-{arch}.task-{task}", 1, {"arch": arch, "task": task})
            found.append(Sleep(artifact, seconds))
    return found


def longest_first(durations: list[float], machines: int) -> float:
    """The makespan of longest-first list scheduling, in seconds."""
    ends = [0.0] * machines
    for duration in sorted(durations, reverse=True):
        heapq.heappush(ends, heapq.heappop(ends) + duration)
    return max(ends)


def utilisation(nodes: int, shortest: float) -> dict[str, float]:
    from ray import _private
    from ray.cluster_utils import Cluster as Machines

    # Else a ray.init of anybody on this machine that names no address would join these nodes.
    _private.utils.write_ray_address = lambda *arguments, **options: None
    memory = 100 * 2**20
    head = {"num_cpus": 0, "object_store_memory": memory, "include_dashboard": False}
    machines = Machines(initialize_head=True, head_node_args=head)
    for _ in range(nodes):
        machines.add_node(num_cpus=1, object_store_memory=memory)
    machines.wait_for_nodes()
    ray.init(address=machines.address, log_to_driver=False)
    jobs = sleeping_experts(shortest)
    with tempfile.TemporaryDirectory() as folder:
        storage = Storage(folder)
        context = RunContext(storage, ClusterSession(None, ()), Stopwatch())
        begun = time.time()
        run_trainings("experts", jobs, context, Resources(), Sizes(storage, {}))
        ended = time.time()
        assert not context.failures, context.failures
        spans = sorted(
            (info["begun"] - begun, info["ended"] - begun)
            for info in (storage.manifest(job.artifact)["info"] for job in jobs)
        )
    ray.shutdown()
    machines.shutdown()
    return judged(spans, [job.seconds for job in jobs], nodes, ended - begun)


def judged(
    spans: list[tuple[float, float]], durations: list[float], nodes: int, whole: float
) -> dict[str, float]:
    """`spans`: when each expert began and ended, in seconds since the stage began, sorted."""
    starts = [begin for begin, _ in spans[:nodes]]  # the first training of each node's group
    makespan = max(end for _, end in spans)
    best = longest_first(durations, nodes)
    return {
        "experts": len(durations),
        "nodes": nodes,
        "longest first, seconds": best,
        "makespan, seconds": makespan,
        "whole stage, seconds": whole,
        "Train start-up of a group, mean seconds": fmean(starts),
        "Train start-up of a group, most seconds": max(starts),
        "utilisation without start-up": best / (makespan - fmean(starts)),
        "utilisation with start-up": best / makespan,
        "utilisation of the node time after start-up": sum(durations) / (nodes * makespan - sum(starts)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("overhead", "trials", "utilisation"))
    parser.add_argument("--experiment", default="quickstart", help="path, or stem of a file in ./experiments")
    parser.add_argument("--cpus", type=int, default=1)
    parser.add_argument("--trials", type=int, default=24, help="settings for each cell")
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--shortest", type=float, default=20.0, help="seconds of the shortest expert")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.what == "overhead":
        found = overhead(load(given.experiment)[0], given.cpus)
        plain, under_ray = found["plain"], found["ray"]
        print(f"{'stage':<14} {'one process':>12} {'Ray':>8}   seconds")
        for stage in itertools.chain(["start of Ray"], plain):
            print(f"{stage:<14} {plain.get(stage, 0.0):12.1f} {under_ray.get(stage, 0.0):8.1f}")
        one, other = sum(plain.values()), sum(under_ray.values())
        print(f"{'all':<14} {one:12.1f} {other:8.1f}   overhead {other - one:.1f} s, x {other / one:.2f}")
    else:
        if given.what == "trials":
            found = trials(load(given.experiment)[0], given.trials, given.cpus)
        else:
            found = utilisation(given.nodes, given.shortest)
        for name, value in found.items():
            print(f"{name:<46} {value:.4g}")
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
