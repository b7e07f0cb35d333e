"""What an evaluation's job does in its worker: read, measure, and hand back results rows."""

import functools
import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from neulig_ray.evaluation.baselines import (
    evaluate_ensemble,
    evaluate_expert,
    evaluate_streamed,
    evaluate_zeroshot,
)
from neulig_ray.evaluation.bench import choose
from neulig_ray.evaluation.ligands import evaluate_hard_routing, evaluate_ligand
from neulig_ray.evaluation.rows import Row
from neulig_ray.ligand.data import Combination
from neulig_ray.ligand.files import read_ligand
from neulig_ray.ligand.portland import Portland
from neulig_ray.models.archs import ARCHS
from neulig_ray.stages.artifact import Artifact
from neulig_ray.stages.combinations import origin_of
from neulig_ray.stages.jobs import Made
from neulig_ray.stages.methods import MethodSpec
from neulig_ray.stages.models import ArchModels
from neulig_ray.stages.origins import load_clip
from neulig_ray.stages.prepare import load_split
from neulig_ray.stages.search import LIGAND_FILE
from neulig_ray.stages.shared import SharedSplit, load_bare_tower, read_split, read_stack
from neulig_ray.stages.storage import Storage

ROWS_FILE = "rows.json"
MIXED = ("batch-first-mixed", "batch-mean-mixed")


def measure(
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


def single(storage: Storage, spec: MethodSpec, models: ArchModels, key: str) -> list[Row]:
    test = _test(storage, models).data
    if spec.name == "zeroshot":
        row = evaluate_zeroshot(origin_of(key), key, test)
    else:
        row = evaluate_expert(key, test)
    return [{**row, "parameters": _parameters(models.arch)}]


def ensemble(storage: Storage, spec: MethodSpec, models: ArchModels, combination: Combination) -> list[Row]:
    rows = evaluate_ensemble(spec.method, combination, _test(storage, models).data, dict(spec.options))
    return [{**row, "parameters": len(combination) * _parameters(models.arch)} for row in rows]


def streamed(
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


def hard_routing(
    storage: Storage, spec: MethodSpec, models: ArchModels, combination: Combination, ligand: Artifact
) -> list[Row]:
    portland, about = _load_ligand(storage, ligand)
    member = portland.combinations.index(combination)
    rows = evaluate_hard_routing(portland, member, _test(storage, models).data)
    return [{**row, **about, "parameters": _all_kept(portland, models.arch)} for row in rows]


def ligand(
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
