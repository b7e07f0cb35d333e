"""The tables, plots and texts that runs carry."""

import io
from collections.abc import Sequence
from statistics import fmean
from typing import Any, Final

import pandas as pd

from neulig_ray.report import console as table
from neulig_ray.report import plots
from neulig_ray.results.schema import OK
from neulig_ray.results.summary import SCORES, Line, Score, Table, points
from neulig_ray.tracking.runs import File, line_metrics, score_metrics

_MAX_NOTE: Final = 7500  # MLflow cuts a tag at 8000 characters


def cell_files(whole: Table, rows: pd.DataFrame) -> dict[str, File]:
    """The result rows, their table as Markdown and the plots of one (arch, origin, n)."""
    files: dict[str, File] = {
        "results.parquet": lambda: _parquet(rows),
        "table.md": lambda: table.markdown([whole]).encode(),
    }
    if rows["ensembling_accuracy"].notna().any():
        files["scatter.png"] = lambda: plots.png(plots.scatter(rows))
        files["scatter.svg"] = lambda: plots.svg(plots.scatter(rows)).encode()
        files["gaps.png"] = lambda: plots.png(plots.gaps(rows))
    return files


def note(whole: Table) -> str:
    """The run's description: its table where it fits, else without the columns of the tasks."""
    text = table.markdown([whole])
    return text if len(text) <= _MAX_NOTE else table.markdown([whole], means_only=True)[:_MAX_NOTE]


def summary(lines: Sequence[Line]) -> pd.DataFrame:
    """One row for each line of a table; accuracies in percent."""
    rows: list[dict[str, Any]] = []
    for line in lines:
        v = line.variant
        settings = {name: getattr(v, name) for name in ("method", "alignment", "granularity", "buffers")}
        values = {name: round(value, 3) for name, value, _ in line_metrics(line)}
        rows.append({**settings, **values, "combinations": line.combinations, "options": v.options})
    return pd.DataFrame(rows)


def combinations(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for each combination of a variant: its accuracies by task, their mean, its status."""
    status: dict[Any, str] = {}
    for *combination, text in rows[["origin", "collaborators", "status"]].itertuples(index=False):
        if status.get(tuple(combination), OK) == OK:
            status[tuple(combination)] = text
    scores: dict[Any, dict[str, list[float]]] = {}
    for (*combination, task), *values in points(rows)[list(SCORES.values())].itertuples(name=None):
        scores.setdefault(tuple(combination), {})[str(task)] = values
    made: list[dict[str, Any]] = []
    for (origin, collaborators), text in status.items():
        own = scores.get((origin, collaborators), {})
        row = {"collaborators": collaborators or "none", "origin": origin, "status": text}
        if own:
            own["mean"] = [fmean(values) for values in zip(*own.values(), strict=True)]
        pairs = [metric for task, values in own.items() for metric in score_metrics(Score(*values), task)]
        made.append({**row, **{name: round(value, 3) for name, value, _ in pairs}})
    return pd.DataFrame(made)


def _parquet(rows: pd.DataFrame) -> bytes:
    stream = io.BytesIO()
    rows.to_parquet(stream, index=False)
    return stream.getvalue()
