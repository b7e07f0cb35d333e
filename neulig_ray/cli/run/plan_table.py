"""What a run will do, before it does it: stages, jobs, what each takes of the cluster, in which order."""

from typing import Final

from rich.table import Table

from neulig_ray.pipeline.pipeline import STAGES, Pipeline

_STAGE_OF: Final = {"search": "ligands"}  # the ligands' jobs are their trials
_ORDER: Final = {
    "origins": "longest first",
    "experts": "longest first",
    "search": "by setting",
    "ligands": "in the driver",
    "evaluations": "longest first",
}


def plan_table(pipeline: Pipeline, last: str | None = None) -> tuple[Table, int]:
    """The table of the stages up to `last`, and how many artifacts are missing."""
    table = Table(box=None, pad_edge=False, header_style="bold", title=pipeline.plan.experiment.name)
    for column in ("stage", "artifacts", "in the storage", "to do", "each takes", "order"):
        numbers = column in ("artifacts", "in the storage", "to do")
        table.add_column(column, justify="right" if numbers else "left")
    stages = STAGES if last is None else STAGES[: STAGES.index(last) + 1]
    missing = 0
    for name, found in pipeline.plan.artifacts().items():
        stage = _STAGE_OF.get(name, name)
        if stage not in stages or not found:
            continue
        have = sum(pipeline.storage.exists(artifact) for artifact in found)
        missing += len(found) - have
        takes = "" if name == "ligands" else _takes(pipeline, stage)
        counts = (str(len(found)), str(have), str(len(found) - have))
        table.add_row(name, *counts, takes, _ORDER.get(name, "as listed"))
    return table, missing


def _takes(pipeline: Pipeline, stage: str) -> str:
    workers, each = pipeline.takes(stage)
    text = f"{each.cpus:g} CPU{'s' * (each.cpus > 1)}"
    if each.gpus:
        text += f", {each.gpus:g} GPU{'s' * (each.gpus > 1)}"
    return f"{workers} x ({text})" if workers > 1 else text
