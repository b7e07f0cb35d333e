"""What a run will do, before it does it: stages, jobs, what each takes of the cluster, in which order."""

from collections.abc import Sequence

from rich.table import Table

from neulig_ray.pipeline.pipeline import Pipeline
from neulig_ray.pipeline.stages import STAGES, Stage


def plan_table(pipeline: Pipeline, stages: Sequence[Stage] = STAGES) -> tuple[Table, int]:
    """The table of some stages, and how many artifacts are missing."""
    table = Table(box=None, pad_edge=False, header_style="bold", title=pipeline.plan.experiment.name)
    for column in ("stage", "artifacts", "in the storage", "to do", "each takes", "order"):
        numbers = column in ("artifacts", "in the storage", "to do")
        table.add_column(column, justify="right" if numbers else "left")
    missing = 0
    for stage in stages:
        jobs = stage.jobs(pipeline.plan)
        if not jobs:
            continue
        have = sum(pipeline.context.storage.exists(job.artifact) for job in jobs)
        missing += len(jobs) - have
        takes = "" if stage.order == "in the driver" else _takes(pipeline, stage)
        table.add_row(stage.name, str(len(jobs)), str(have), str(len(jobs) - have), takes, stage.order)
    return table, missing


def _takes(pipeline: Pipeline, stage: Stage) -> str:
    workers, each = pipeline.takes(stage)
    text = f"{each.cpus:g} CPU{'s' * (each.cpus > 1)}"
    if each.gpus:
        text += f", {each.gpus:g} GPU{'s' * (each.gpus > 1)}"
    return f"{workers} x ({text})" if workers > 1 else text
