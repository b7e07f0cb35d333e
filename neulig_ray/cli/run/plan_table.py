"""What a run will do, before it does it: stages, jobs, what each takes of the cluster, in which order."""

from collections.abc import Sequence

from rich.table import Table

from neulig_ray.pipeline.pipeline import Pipeline, StageCount
from neulig_ray.pipeline.stages import Stage


def plan_table(pipeline: Pipeline, counts: Sequence[StageCount]) -> Table:
    """A line for each of the stages."""
    table = Table(box=None, pad_edge=False, header_style="bold", title=pipeline.plan.experiment.name)
    for column in ("stage", "artifacts", "in the storage", "to do", "each takes", "order"):
        right = column in ("artifacts", "in the storage", "to do")
        table.add_column(column, justify="right" if right else "left")
    for counted in counts:
        stage, numbers = counted.stage, (counted.planned, counted.stored, counted.missing)
        takes = "" if stage.order == "in the driver" else _takes(pipeline, stage)
        table.add_row(stage.name, *map(str, numbers), takes, stage.order)
    return table


def print_stages(pipeline: Pipeline, counts: Sequence[StageCount]) -> None:
    """Where progress goes: standard output is the results table's."""
    pipeline.context.reporter.console.print(plan_table(pipeline, counts))


def _takes(pipeline: Pipeline, stage: Stage) -> str:
    workers, each = pipeline.takes(stage)
    text = f"{each.cpus:g} CPU{'s' * (each.cpus > 1)}"
    if each.gpus:
        text += f", {each.gpus:g} GPU{'s' * (each.gpus > 1)}"
    return f"{workers} x ({text})" if workers > 1 else text
