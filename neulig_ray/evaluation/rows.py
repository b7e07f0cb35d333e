"""The part of a results row that an evaluation knows."""

from typing import Any

from neulig_ray.results.schema import COLUMNS, MEASURED

Row = dict[str, Any]


def new_row(task: str, granularity: str, **values: Any) -> Row:
    """A row with every measured column: plain Python values, None where a number does not apply.

    Accuracies, `gap`, its interval, `agreement`, `agreement_unsure` and `routing_accuracy` are percentages or
    percentage points, `kl` nats, `entropy` a fraction of log n. `buffers` is "" for models without BatchNorm.
    """
    if unexpected := values.keys() - COLUMNS.keys():
        raise ValueError(f"not columns of a results row: {sorted(unexpected)}")
    return {**dict.fromkeys(MEASURED), "buffers": "", "task": task, "granularity": granularity, **values}
