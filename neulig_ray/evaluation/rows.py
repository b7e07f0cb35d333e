"""The part of a results row that an evaluation knows."""

from typing import Any

COLUMNS = (
    "task",
    "granularity",
    "buffers",
    "batch_size",
    "order_seed",
    "num_samples",
    "merging_accuracy",
    "ensembling_accuracy",
    "gap",
    "gap_low",
    "gap_high",
    "matched_ensembling_accuracy",
    "agreement",
    "agreement_unsure",
    "kl",
    "entropy",
    "routing_accuracy",
)
Row = dict[str, Any]


def new_row(task: str, granularity: str, **values: Any) -> Row:
    """A row with every column of COLUMNS: plain Python values, None where a number does not apply.

    Accuracies, `gap`, its interval, `agreement`, `agreement_unsure` and `routing_accuracy` are percentages or
    percentage points, `kl` nats, `entropy` a fraction of log n. `buffers` is "" for models without BatchNorm.
    """
    if odd := values.keys() - set(COLUMNS):
        raise ValueError(f"not columns of a results row: {sorted(odd)}")
    return {**dict.fromkeys(COLUMNS), "buffers": "", "task": task, "granularity": granularity, **values}
