"""The results table of a run, and the provenance beside it."""

import dataclasses
import datetime
import importlib.metadata
import io
import json
import os
import platform
import subprocess
import sys
from typing import Any

import pandas as pd

from neulig_ray.cluster.run_context import Failures
from neulig_ray.pipeline.capabilities import declared
from neulig_ray.pipeline.correct_files import gather
from neulig_ray.pipeline.plan import Plan
from neulig_ray.pipeline.weak_experts import weak_experts
from neulig_ray.redaction import redacted, without_secrets
from neulig_ray.results.schema import frame
from neulig_ray.stages.evaluations import evaluation_rows
from neulig_ray.storage.artifact import fingerprint
from neulig_ray.storage.layout import ABOUT, TABLE
from neulig_ray.storage.storage import Storage
from neulig_ray.version import code_version

_PACKAGES = ("ray", "torch", "torchvision", "open_clip_torch", "mlflow", "numpy", "pandas")


def write_results(plan: Plan, storage: Storage, failures: Failures) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Gather the evaluations' rows and write them: as the experiment's last, and under their fingerprint.

    The bits of what each row got right lie in the folder `correct` beside the last.
    """
    measured = [(e, evaluation_rows(e, storage, failures)) for e in plan.evaluations]
    table = frame([row for _, rows in measured for row in rows])
    table["status"] = table["status"].map(redacted)
    about = _provenance(plan, failures)
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    about["selected"] = _selected(plan, storage)
    name = plan.experiment.name
    about["warnings"] = [*weak_experts(plan, storage), *gather(name, measured, storage)]
    about = without_secrets(about)
    for folder in (f"{name}/history/{about['fingerprint']}", name):
        storage.write(f"{folder}/{TABLE}", buffer.getvalue())
        storage.write(f"{folder}/{ABOUT}", json.dumps(about, indent=1, sort_keys=True).encode())
    return table, about


def _selected(plan: Plan, storage: Storage) -> list[dict[str, Any]]:
    """What was chosen on val for each combination and method that leaves something to choose."""
    found = []
    for evaluation in plan.evaluations:
        artifact, common = evaluation.job.artifact, evaluation.common
        if evaluation.job.spec.grid and storage.exists(artifact):
            place = {
                name: common[name] for name in ("arch", "origin", "n", "collaborators", "method", "options")
            }
            chosen = storage.manifest(artifact)["info"].get("selected", [])
            found += [{**entry, "chosen": entry["options"], **place} for entry in chosen]
    return found


def _provenance(plan: Plan, failures: Failures) -> dict[str, Any]:
    e = plan.experiment
    labels = {a.fingerprint: f"{a.kind} {a.label}" for found in plan.artifacts().values() for a in found}
    return {
        "experiment": e.name,
        "fingerprint": fingerprint([evaluation.job.artifact.fingerprint for evaluation in plan.evaluations]),
        "configuration": dataclasses.asdict(e),
        "declared": declared(e),
        "seeds": {
            "seed": e.drawn_by,
            "experts": [own.seed for own in e.by_seed],
            "ligands": {own.seed: list(own.ligand_seeds) for own in e.by_seed},
            "task_seed": e.task_seed,
            "origins": list(e.origins),
        },
        "command": " ".join(map(_decoded, sys.argv)),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {
            "python": platform.python_version(),
            "neulig-ray": code_version(),
            **{package: _version(package) for package in _PACKAGES},
        },
        "git_commit": _git_commit(),
        "hardware": {
            "machine": platform.machine(),
            "system": f"{platform.system()} {platform.release()}",
            "cpus": os.cpu_count(),
            "gpus": _gpus(),
        },
        "artifacts": sorted(labels),
        "failures": {labels.get(name, name): reason for name, reason in failures.items()},
    }


def _decoded(argument: str) -> str:
    """An argument as UTF-8, whatever the locale took its bytes for."""
    return os.fsencode(argument).decode("utf-8", "replace")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _git_commit() -> str:
    """The commit of the code that runs, with a + when files differ from it.

    Empty outside its checkout, as on a cluster's nodes: there the version's hash tells.
    """
    git = ["git", "-C", os.path.dirname(__file__)]
    try:
        for command in (["ls-files", "--error-unmatch", os.path.basename(__file__)],
                        ["describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]):  # fmt: skip
            done = subprocess.run(
                [*git, *command], capture_output=True, text=True, encoding="utf-8", timeout=10, check=True
            )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _gpus() -> list[str]:
    import torch

    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
