"""What an evaluation's job does in its worker: read, measure, and hand back results rows."""

import functools
import json
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from neulig_ray.cluster.device import placed
from neulig_ray.cluster.jobs import Made
from neulig_ray.errors import NotApplicable
from neulig_ray.evaluation.baseline_rows import (
    evaluate_ensemble,
    evaluate_expert,
    evaluate_zeroshot,
)
from neulig_ray.evaluation.ligand_rows import evaluate_hard_routing, evaluate_ligand
from neulig_ray.evaluation.method_rows import evaluate_merge
from neulig_ray.evaluation.rows import Row
from neulig_ray.experiment.catalog import ArchModels
from neulig_ray.experiment.combinations import origin_of
from neulig_ray.experiment.method_spec import MethodSpec
from neulig_ray.ligand.data import Combination, task_of
from neulig_ray.ligand.files import read_ligand
from neulig_ray.ligand.portland import Portland
from neulig_ray.models.archs import ARCHS
from neulig_ray.results.schema import skipped
from neulig_ray.stages.ligands import LIGAND_FILE
from neulig_ray.stages.merge_inputs import MergeBench
from neulig_ray.stages.read_inputs import SharedSplit, load_bare_tower, read_split, read_stack
from neulig_ray.storage.artifact import Artifact
from neulig_ray.storage.storage import Storage

ROWS_FILE = "rows.json"
MIXED = ("batch-first-mixed", "batch-mean-mixed")


class Found(NamedTuple):
    """Results rows, and what else the artifact's manifest records."""

    rows: list[Row]
    about: Mapping[str, Any] = MappingProxyType({})


def measure(
    storage: Storage,
    measure: Callable[..., Found],
    spec: MethodSpec,
    models: ArchModels,
    settings: Mapping[str, Any],
) -> Made:
    started = time.perf_counter()
    found = measure(storage, spec, models, **settings)
    spent = time.perf_counter() - started
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # of the worker since it started
    peak = kilobytes * (1 if sys.platform == "darwin" else 1024)
    rows = [{**row, "seconds": spent, "peak_memory_bytes": peak} for row in found.rows]
    info = {"rows": len(rows), "seconds": spent, **found.about}
    return {ROWS_FILE: json.dumps(rows, indent=1).encode()}, info


def single(storage: Storage, spec: MethodSpec, models: ArchModels, key: str) -> Found:
    test = _test(storage, models).data
    if spec.name == "zeroshot":
        row = evaluate_zeroshot(origin_of(key), key, test)
    else:
        row = evaluate_expert(key, test)
    return Found([{**row, "parameters": _parameters(models.arch)}])


def ensemble(storage: Storage, spec: MethodSpec, models: ArchModels, combination: Combination) -> Found:
    rows = evaluate_ensemble(spec.method, combination, _test(storage, models).data, dict(spec.options))
    return Found([{**row, "parameters": len(combination) * _parameters(models.arch)} for row in rows])


def merge(
    storage: Storage,
    spec: MethodSpec,
    models: ArchModels,
    combination: Combination,
    batchnorm_images: int,
    batch_size: int,
    seed: int,
    val_images: int = 0,
    statistics: Sequence[Artifact] = (),
) -> Found:
    """Whatever a method makes of the experts' parameters."""
    bench = MergeBench(storage, models, combination, batchnorm_images, val_images, seed)
    options = dict(spec.options)
    if "seed" in spec.method.options:
        options = {"seed": seed, **options}
    try:
        ingredients = bench.ingredients(spec, statistics)  # first: a method that is refused reads no model
        measured = evaluate_merge(
            spec.method,
            combination,
            stack=bench.stack,
            tower=load_bare_tower(models.arch),
            arch=ARCHS[models.arch],
            test=bench.test.data,
            images=bench.test.images,
            options=options,
            ingredients=ingredients,
            tuning=bench.tuning(spec),
            batch_size=batch_size,
            seed=seed,
        )
    except NotApplicable as error:
        tasks = map(task_of, combination)
        return Found([{"task": task, "status": skipped(str(error))} for task in tasks])
    return Found(measured.rows, {"selected": measured.selected} if measured.selected else {})


def hard_routing(
    storage: Storage, spec: MethodSpec, models: ArchModels, combination: Combination, ligand: Artifact
) -> Found:
    portland, about = _load_ligand(storage, ligand)
    member = portland.combinations.index(combination)
    rows = evaluate_hard_routing(portland, member, _test(storage, models).data)
    kept = _all_kept(portland, models.arch)
    return Found([{**row, **about, "parameters": kept} for row in rows])


def ligand(
    storage: Storage,
    spec: MethodSpec,
    models: ArchModels,
    combination: Combination,
    ligand: Artifact,
    granularity: str,
    order_seeds: int = 1,
    **settings: Any,
) -> Found:
    portland, about = _load_ligand(storage, ligand)
    seeds = tuple(range(order_seeds))
    test = _test(storage, models)
    rows = evaluate_ligand(
        portland,
        portland.combinations.index(combination),
        stack=placed(read_stack(storage, models, combination)),
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
    return Found([{**row, **about, "parameters": kept} for row in rows])


STORED = (single, ensemble, hard_routing)  # what looks at stored embeddings alone, and needs no GPU


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
