"""What `--dry-run` tells: stages, hours, bytes to download and to store, and what is missing."""

from rich.console import Console
from rich.table import Table

from neulig_ray.cli.run.plan_table import plan_table
from neulig_ray.cli.units import size
from neulig_ray.cluster.cost import Cost
from neulig_ray.pipeline.costs import CPU_FLOPS, StageCost, estimate
from neulig_ray.pipeline.earlier_names import earlier_names
from neulig_ray.pipeline.missing_inputs import MissingInput, absent, at_hand
from neulig_ray.pipeline.plan import Plan
from neulig_ray.pipeline.run import Session
from neulig_ray.pipeline.stages import GPU_FLOAT32_FLOPS, GPU_FLOPS
from neulig_ray.redaction import redacted
from neulig_ray.storage.storage import Storage

_ASSUMED = (
    f"Hours assume {GPU_FLOPS / 1e12:.0f} TFLOP/s of a GPU that trains (a fifth of an A100's bfloat16 peak), "
    f"{GPU_FLOAT32_FLOPS / 1e12:.0f} of one that embeds, evaluates or trains in float32 "
    "(three fifths of that peak) and "
    f"{CPU_FLOPS / 1e9:.0f} GFLOP/s of a CPU core, all sustained, and count the image towers' work alone: "
    "scale them by what benchmarks/finetune.py prints on your machine."
)


def print_plan(session: Session) -> None:
    """What a run would do: stages, jobs, what the storage has of them, what each takes of the cluster."""
    console = Console()
    console.print(plan_table(session.pipeline, session.pipeline.count()))
    for group in session.plan.groups:
        console.print(f"{group.arch} {group.origin} n={group.n}: {len(group.combinations)} combinations")
    print_costs(console, session.plan, session.storage)
    if line := earlier_names(session.plan, session.storage):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    console.print(f"storage {session.storage.shown}, MLflow {redacted(session.tracking_uri)}", soft_wrap=True)


def print_costs(console: Console, plan: Plan, storage: Storage) -> None:
    """Of what the storage lacks. Nothing is downloaded or read over a network."""
    costs = estimate(plan, storage)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("to do")
    for column in ("GPU hours", "CPU core hours", "to store"):
        table.add_column(column, justify="right")
    for stage, found in costs.items():
        if found.cost != Cost():
            table.add_row(stage, *_cells(found))
    table.add_row("[bold]all", *_totals(list(costs.values())), style="bold")
    console.print()
    console.print(table)
    if any(found.cost.unknown for found in costs.values()):
        console.print("+: and what hangs on the drawn tasks' sizes, which are known when they are prepared")
    console.print(_ASSUMED, style="dim", highlight=False)
    console.print()
    for line in at_hand(plan):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    _print_absent(console, absent(plan, storage))


def _cells(stage: StageCost) -> tuple[str, str, str]:
    cost = stage.cost
    more = " +" if cost.unknown else ""
    work = _hours(stage.hours) + more if cost.flops or cost.unknown else ""
    stored = size(cost.bytes) + more if cost.bytes else ""
    return (work, "", stored) if stage.gpu else ("", work, stored)


def _totals(stages: list[StageCost]) -> tuple[str, str, str]:
    gpu = sum(stage.hours for stage in stages if stage.gpu)
    cpu = sum(stage.hours for stage in stages if not stage.gpu)
    whole = sum((stage.cost for stage in stages), Cost())
    more = " +" if whole.unknown else ""
    return _hours(gpu), _hours(cpu) + more, size(whole.bytes) + more


def _hours(hours: float) -> str:
    return "0" if hours == 0 else f"{hours:.1f}" if hours >= 0.1 else "< 0.1"


def _print_absent(console: Console, found: list[MissingInput]) -> None:
    if not found:
        console.print("to download: nothing; missing: nothing")
        return
    fetched = [thing for thing in found if not thing.by_hand]
    known = sum(thing.bytes or 0 for thing in fetched)
    unknown = sum(thing.bytes is None for thing in fetched)
    more = f" and {unknown} of unknown size" if unknown else ""
    console.print(f"to download: {size(known)}{more}; missing here:" if fetched else "missing here:")
    for thing in found:
        about = f" ({size(thing.bytes)})" if thing.bytes is not None else ""
        console.print(f"  {thing.what}{about}: {thing.remedy}", soft_wrap=True, highlight=False, markup=False)
