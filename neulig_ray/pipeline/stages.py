"""The stages of a run, in their order: the one list that pipeline, plan table, dry run and commands read.

A further stage is one file in `neulig_ray/stages`, which defines `jobs(plan)`, and one entry here.
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from neulig_ray.experiment.config import Cluster

if TYPE_CHECKING:
    from neulig_ray.cluster.jobs import HasCost
    from neulig_ray.pipeline.plan import Plan

GPU_FLOPS: Final = 6e13  # a second, sustained: a fifth of an A100's peak in bfloat16
GPU_FLOAT32_FLOPS: Final = 1.2e13  # the same of float32, without gradients: three fifths of its peak
Workers = Literal["cpu", "gpu", "evaluation", "trial"]


@dataclass(frozen=True)
class Stage:
    """One stage: what it makes, and what its workers take.

    `module`: its file in `neulig_ray/stages`, by default its name. Where that defines `run(context, jobs,
    resources)` it runs the stage, else jobs and trainings run as such.
    `jobs(plan)`: what it makes; by default the file's own function of that name.
    `flops`: of a GPU in a second, where its towers move to one; 0: the work is a CPU's. `finetunes`: it
    computes in the precision of fine-tuning.
    `order`: in which order jobs are begun, for people. `command`: the command that ends with this stage.
    """

    name: str
    jobs_of: "Callable[[Plan], Sequence[HasCost]] | None" = None
    workers: Workers = "cpu"
    flops: float = 0.0
    finetunes: bool = False
    order: Literal["as listed", "longest first", "by setting", "in the driver"] = "as listed"
    command: str = ""
    about: str = ""
    module: str = ""

    def jobs(self, plan: "Plan") -> "list[HasCost]":
        return list((self.jobs_of or self._file().jobs)(plan))

    def runner(self) -> "Callable[..., None] | None":
        """The file's own `run`, if it has one."""
        return getattr(self._file(), "run", None)

    def gpus(self, cluster: Cluster) -> float:
        """The share of a GPU that one of its workers takes."""
        shares = {"gpu": cluster.gpus_per_worker, "evaluation": cluster.evaluation_gpus}
        return shares.get(self.workers, 0.0)

    def cpus(self, cluster: Cluster) -> float:
        return cluster.trial_cpus if self.workers == "trial" else cluster.cpus_per_worker

    def _file(self) -> Any:
        return importlib.import_module(f"neulig_ray.stages.{self.module or self.name}")


STAGES: Final = [
    Stage("tasks", lambda plan: plan.all_tasks),
    Stage(
        "origins",
        lambda plan: [origin.job for origin in plan.base_origins],
        workers="gpu",
        flops=GPU_FLOPS,
        order="longest first",
    ),
    Stage(
        "sources",
        lambda plan: plan.sources.jobs(),
        workers="gpu",
        flops=GPU_FLOPS,
        finetunes=True,
        order="longest first",
        module="fused_origins",
    ),
    Stage(
        "fused",
        lambda plan: [origin.job for origin in plan.fused_origins],
        command="pretrain",
        about="the pipeline up to the origins",
        module="fused_origins",
    ),
    Stage("heads", lambda plan: plan.heads),
    Stage(
        "experts",
        lambda plan: [*plan.experts, *plan.imported],
        workers="gpu",
        flops=GPU_FLOPS,
        finetunes=True,
        order="longest first",
        command="finetune",
        about="the pipeline up to the experts",
    ),
    Stage(
        "embeddings",
        lambda plan: plan.embeddings,
        workers="gpu",
        flops=GPU_FLOAT32_FLOPS,
        command="embed",
        about="the pipeline up to the embeddings",
    ),
    Stage(
        "search",
        lambda plan: [trial for cell in plan.cells for trial in cell.trials],
        workers="trial",
        order="by setting",
    ),
    Stage(
        "ligands",
        lambda plan: plan.cells,
        order="in the driver",
    ),
    Stage(
        "variants",
        lambda plan: plan.variants,
        workers="trial",
        command="search",
        about="the pipeline up to the ligands",
        module="ligand_variants",
    ),
    Stage(
        "joint",
        lambda plan: plan.joint,
        workers="gpu",
        flops=GPU_FLOPS,
        finetunes=True,
        order="longest first",
    ),
    Stage("statistics", lambda plan: plan.statistics, workers="evaluation", flops=GPU_FLOAT32_FLOPS),
    Stage(
        "models",
        lambda plan: plan.merged,
        workers="evaluation",
        flops=GPU_FLOAT32_FLOPS,
        order="longest first",
        module="merged_models",
    ),
    Stage(
        "evaluations",
        lambda plan: list({e.job.artifact: e.job for e in plan.evaluations}.values()),
        workers="evaluation",
        flops=GPU_FLOAT32_FLOPS,
        order="longest first",
        command="evaluate",
        about="the pipeline up to the results",
    ),
]


def commands() -> dict[str, str]:
    """Command -> what it does, of the commands that run the pipeline up to a stage."""
    return {stage.command: stage.about for stage in STAGES if stage.command}


def up_to(command: str) -> list[Stage]:
    """The stages that a command runs: all of them for `run`."""
    ends = [stage.command for stage in STAGES]
    return STAGES[: ends.index(command) + 1] if command in ends else list(STAGES)
