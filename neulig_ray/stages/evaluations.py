"""Stage `evaluations`: every method on the test split, a job for each piece that can be measured alone."""

import dataclasses
import functools
import json
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from neulig_ray.config import Experiment
from neulig_ray.evaluation.baselines import (
    evaluate_ensemble,
    evaluate_expert,
    evaluate_streamed,
    evaluate_zeroshot,
)
from neulig_ray.evaluation.bench import choose
from neulig_ray.evaluation.ligands import evaluate_hard_routing, evaluate_ligand
from neulig_ray.evaluation.rows import Row
from neulig_ray.ligand.data import Combination, task_of
from neulig_ray.ligand.files import read_ligand
from neulig_ray.ligand.portland import Portland
from neulig_ray.models.archs import ARCHS
from neulig_ray.report.schema import failed
from neulig_ray.stages.artifact import Artifact
from neulig_ray.stages.cluster import Cluster
from neulig_ray.stages.combinations import Group, origin_of
from neulig_ray.stages.jobs import Failures, Job, Made, Resources, run_stage
from neulig_ray.stages.methods import MethodSpec
from neulig_ray.stages.models import ArchModels
from neulig_ray.stages.origins import load_clip
from neulig_ray.stages.prepare import load_split
from neulig_ray.stages.progress import Reporter
from neulig_ray.stages.search import LIGAND_FILE, Cell
from neulig_ray.stages.shared import SharedSplit, load_bare_tower, read_split, read_stack
from neulig_ray.stages.storage import Storage

VERSION = 1
ROWS_FILE = "rows.json"
MIXED = ("batch-first-mixed", "batch-mean-mixed")


@dataclass(frozen=True)
class Evaluation:
    """A job, and what its rows have in common whether it succeeds or fails."""

    job: Job
    common: Mapping[str, Any]
    tasks: tuple[str, ...]


def plan_evaluations(
    experiment: Experiment,
    methods: Sequence[MethodSpec],
    groups: Sequence[Group],
    cells: Sequence[Cell],
    models: Mapping[str, ArchModels],
) -> list[Evaluation]:
    """All evaluations of an experiment, in the order in which they are best started: the longest first."""
    planner = _Planner(experiment, models)
    planned = []
    for spec in methods:
        match spec.method.kind:
            case "reference":
                planned += [
                    planner.single(spec, arch, key) for arch, known in models.items() for key in known.experts
                ]
            case "ligand":
                planned += [e for cell in cells for e in planner.gated(spec, cell)]
            case _:
                planned += [planner.static(spec, group, c) for group in groups for c in group.combinations]
    return sorted(planned, key=lambda e: _COST.get(e.common.get("granularity") or "", 0), reverse=True)


_COST = {"sample": 3, "batch-first-mixed": 2, "batch-mean-mixed": 2, "batch-first": 1, "batch-mean": 1}


class _Planner:
    def __init__(self, experiment: Experiment, models: Mapping[str, ArchModels]) -> None:
        self._e = experiment
        self._models = models

    def single(self, spec: MethodSpec, arch: str, key: str) -> Evaluation:
        origin, task = origin_of(key), task_of(key)
        zeroshot = spec.name == "zeroshot"
        known = self._models[arch].restricted([key])
        model = known.origins[origin] if zeroshot else known.experts[key]
        look = (origin if zeroshot else key, task)
        inputs = (model, known.heads[key], known.embeddings[look])
        known = dataclasses.replace(known, embeddings={look: known.embeddings[look]})
        common = {
            "origin": origin,
            "n": 0 if zeroshot else 1,
            "collaborators": "" if zeroshot else task,
            "granularity": "global",
        }
        return self._evaluation(spec, arch, key, common, (task,), _single, known, inputs, {"key": key})

    def static(self, spec: MethodSpec, group: Group, combination: Combination) -> Evaluation:
        known = self._models[group.arch].restricted(combination)
        common = {**self._combined(group, combination), "granularity": "global"}
        measure: Callable[..., list[Row]] = _ensemble
        settings: dict[str, Any] = {"combination": combination}
        if spec.method.kind == "streamed":
            measure = _streamed
            settings |= {"batchnorm_images": self._e.evaluation.batchnorm_images, "seed": self._e.seed}
        return self._evaluation(
            spec,
            group.arch,
            ",".join(combination),
            common,
            _tasks(combination),
            measure,
            known,
            known.inputs(),
            settings,
        )

    def gated(self, spec: MethodSpec, cell: Cell) -> list[Evaluation]:
        e, arch = self._e.evaluation, cell.group.arch
        planned = []
        for combination in cell.group.combinations:
            known = self._models[arch].restricted(combination)
            inputs = (cell.artifact, *known.inputs())
            base = {**self._combined(cell.group, combination), "alignment": cell.alignment}
            settings = {"combination": combination, "ligand": cell.artifact}
            label = f"{cell.alignment}.{','.join(combination)}"
            if spec.name == "hard-routing":
                common = {**base, "granularity": "sample"}
                planned.append(
                    self._evaluation(
                        spec, arch, label, common, _tasks(combination), _hard_routing, known, inputs, settings
                    )
                )
                continue
            for granularity in e.granularities:
                options = {"granularity": granularity, "seed": self._e.seed}
                if granularity == "sample":
                    options["sample_images"] = e.sample_images
                if granularity.startswith("batch"):
                    options["batch_size"] = e.batch_size
                if granularity in MIXED:
                    options["order_seeds"] = e.order_seeds
                common = {**base, "granularity": granularity}
                planned.append(
                    self._evaluation(
                        spec,
                        arch,
                        f"{label}.{granularity}",
                        common,
                        _tasks(combination),
                        _ligand,
                        known,
                        inputs,
                        {**settings, **options},
                    )
                )
        return planned

    def _combined(self, group: Group, combination: Combination) -> dict[str, Any]:
        origins = [origin_of(key) for key in combination]
        same = len(set(origins)) == 1
        return {
            "origin": origins[0] if same else ",".join(origins),
            "n": group.n,
            "collaborators": ",".join(map(task_of, combination) if same else combination),
        }

    def _evaluation(
        self,
        spec: MethodSpec,
        arch: str,
        label: str,
        common: Mapping[str, Any],
        tasks: tuple[str, ...],
        measure: Callable[..., list[Row]],
        models: ArchModels,
        inputs: tuple[Artifact, ...],
        settings: Mapping[str, Any],
    ) -> Evaluation:
        threads = self._e.cluster.cpus_per_worker
        identity = {
            **spec.identity,
            "arch": arch,
            "protocol": self._e.protocol,
            "threads": threads,
            "inputs": [a.fingerprint for a in inputs],
            **settings,
        }
        artifact = Artifact.of("evaluation", f"{spec.name}.{arch}.{label}", VERSION, identity)
        arguments = {"measure": measure, "spec": spec, "models": models, "settings": settings}
        shared = {
            "arch": arch,
            "method": spec.name,
            "options": dict(spec.options),
            "seed": self._e.seed,
            "protocol": self._e.protocol,
            "split": "test",
            "alignment": "",
            "buffers": "",
            "fingerprint": artifact.fingerprint,
            **common,
        }
        return Evaluation(Job(artifact, _measure, arguments, inputs), shared, tasks)


def _tasks(combination: Combination) -> tuple[str, ...]:
    return tuple(map(task_of, combination))


def run_evaluations(
    evaluations: Sequence[Evaluation],
    storage: Storage,
    cluster: Cluster,
    resources: Resources,
    reporter: Reporter,
    failures: Failures,
) -> None:
    jobs = [evaluation.job for evaluation in evaluations]
    run_stage("evaluations", jobs, storage, cluster, resources, reporter, failures)


def evaluation_rows(evaluation: Evaluation, storage: Storage, failures: Failures) -> list[Row]:
    """The results rows of an evaluation: what it measured, or why it could not."""
    reason = failures.get(evaluation.job.artifact.fingerprint)
    if reason is not None:
        return [{**evaluation.common, "task": task, "status": failed(reason)} for task in evaluation.tasks]
    rows: list[Row] = json.loads(storage.load(evaluation.job.artifact, ROWS_FILE))
    return [{**evaluation.common, **row} for row in rows]


def _measure(
    storage: Storage,
    measure: Callable[..., list[Row]],
    spec: MethodSpec,
    models: ArchModels,
    settings: Mapping[str, Any],
) -> Made:
    started = time.perf_counter()
    rows = measure(storage, spec, models, **settings)
    spent = time.perf_counter() - started
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # of the worker since it started
    peak = kilobytes * (1 if sys.platform == "darwin" else 1024)
    rows = [{**row, "seconds": spent, "peak_memory_bytes": peak} for row in rows]
    return {ROWS_FILE: json.dumps(rows, indent=1).encode()}, {"rows": len(rows), "seconds": spent}


def _single(storage: Storage, spec: MethodSpec, models: ArchModels, key: str) -> list[Row]:
    test = _test(storage, models).data
    if spec.name == "zeroshot":
        row = evaluate_zeroshot(origin_of(key), key, test)
    else:
        row = evaluate_expert(key, test)
    return [{**row, "parameters": _parameters(models.arch)}]


def _ensemble(storage: Storage, spec: MethodSpec, models: ArchModels, combination: Combination) -> list[Row]:
    rows = evaluate_ensemble(spec.method, combination, _test(storage, models).data, dict(spec.options))
    return [{**row, "parameters": len(combination) * _parameters(models.arch)} for row in rows]


def _streamed(
    storage: Storage,
    spec: MethodSpec,
    models: ArchModels,
    combination: Combination,
    batchnorm_images: int,
    seed: int,
) -> list[Row]:
    shared = _test(storage, models)
    unlabelled = {}
    for task, data in models.data.items():
        images = load_split(storage, data, "train").images
        unlabelled[task] = images[choose(len(images), batchnorm_images, seed, task).numpy()]
    # Where the experts' origins differ there is no one base: methods that need it say so.
    origins = {origin_of(key) for key in combination}
    origin = origins.pop() if len(origins) == 1 else None
    base = load_clip(storage, models.origins[origin], models.arch).visual.state_dict() if origin else None
    rows = evaluate_streamed(
        spec.method,
        combination,
        stack=read_stack(storage, models, combination),
        tower=load_bare_tower(models.arch),
        arch=ARCHS[models.arch],
        test=shared.data,
        images=shared.images,
        options=dict(spec.options),
        base=base,
        origin=origin,
        unlabelled=unlabelled,
        seed=seed,
    )
    return [{**row, "parameters": _parameters(models.arch)} for row in rows]


def _hard_routing(
    storage: Storage, spec: MethodSpec, models: ArchModels, combination: Combination, ligand: Artifact
) -> list[Row]:
    portland, about = _load_ligand(storage, ligand)
    member = portland.combinations.index(combination)
    rows = evaluate_hard_routing(portland, member, _test(storage, models).data)
    return [{**row, **about, "parameters": _all_kept(portland, models.arch)} for row in rows]


def _ligand(
    storage: Storage,
    spec: MethodSpec,
    models: ArchModels,
    combination: Combination,
    ligand: Artifact,
    granularity: str,
    order_seeds: int = 1,
    **settings: Any,
) -> list[Row]:
    portland, about = _load_ligand(storage, ligand)
    seeds = tuple(range(order_seeds))
    test = _test(storage, models)
    rows = evaluate_ligand(
        portland,
        portland.combinations.index(combination),
        stack=read_stack(storage, models, combination),
        tower=load_bare_tower(models.arch),
        arch=ARCHS[models.arch],
        val=read_split(storage, models, "val", combination, images=False).data,
        test=test.data,
        images=test.images,
        granularities=[granularity],
        **{**settings, ("mixed_order_seeds" if granularity in MIXED else "order_seeds"): seeds},
    )
    size = _parameters(models.arch)
    kept = size if granularity == "global" else _all_kept(portland, models.arch)
    return [{**row, **about, "parameters": kept} for row in rows]


def _test(storage: Storage, models: ArchModels) -> SharedSplit:
    return read_split(storage, models, "test", models.experts, images=True)


def _load_ligand(storage: Storage, artifact: Artifact) -> tuple[Portland, dict[str, float]]:
    info = storage.manifest(artifact)["info"]
    about = {name: info[name] for name in ("alignment_weight", "learning_rate")}
    return read_ligand(storage.load(artifact, LIGAND_FILE)), about


@functools.lru_cache(maxsize=8)
def _parameters(arch: str) -> int:
    """Numbers in one visual tower's parameters."""
    return sum(p.numel() for p in load_bare_tower(arch).parameters())


def _all_kept(portland: Portland, arch: str) -> int:
    """Numbers kept where every expert and one combination's gate are needed at inference."""
    gate = portland.weight[0].numel() + portland.bias[0].numel()
    return portland.n * _parameters(arch) + gate
