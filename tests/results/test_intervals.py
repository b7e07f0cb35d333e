"""Intervals of means: from those of their rows, and never narrower than the bootstrap of the mean itself."""

from typing import Any

import numpy as np
import pytest
import samples

from neulig_ray.report import console, html
from neulig_ray.results import schema
from neulig_ray.results.paired import bootstrap
from neulig_ray.results.summary import Score, lines, tables
from neulig_ray.results.summary_frame import summary_frame
from neulig_ray.tracking.runs import line_metrics


def row(task: str = "a", gap: float = 2.0, half: float | None = 1.0, **more: Any) -> dict[str, Any]:
    base = {"arch": "tiny-rn", "origin": "seed-0", "n": 2, "collaborators": "a,b", "method": "ligand",
            "alignment": "sup", "granularity": "task", "seed": 0, "split": "test"}  # fmt: skip
    ends = {} if half is None else {"gap_low": gap - half, "gap_high": gap + 2 * half}
    return {**base, "task": task, "merging_accuracy": 80.0, "ensembling_accuracy": 80.0 + gap, **ends, **more}


def ends(*rows: dict[str, Any]) -> dict[str, Score]:
    (line,) = lines(schema.frame(rows))
    return {**line.scores, "mean": line.mean}


def test_a_single_row_keeps_its_interval() -> None:
    found = ends(row())
    assert (found["a"].low, found["a"].high) == (found["mean"].low, found["mean"].high) == (1.0, 4.0)


def test_tasks_have_images_of_their_own() -> None:
    found = ends(row("a", 2.0, 3.0), row("b", 4.0, 4.0))
    assert (found["b"].low, found["b"].high) == (0.0, 12.0)
    assert (found["mean"].low, found["mean"].high) == pytest.approx((3 - 5 / 2, 3 + 10 / 2))


def test_combinations_and_orders_share_their_images() -> None:
    for differing in ("collaborators", "order_seed"):
        values = ("a,b", "a,c") if differing == "collaborators" else (0, 1)
        found = ends(
            row(gap=2.0, half=1.0, **{differing: values[0]}), row(gap=4.0, half=3.0, **{differing: values[1]})
        )
        assert (found["mean"].low, found["mean"].high) == pytest.approx((3 - 2, 3 + 4)), differing


def test_a_task_counts_by_its_combinations() -> None:
    three = [row("a", half=1.0), row("a", half=1.0, collaborators="a,c"), row("b", half=4.0)]
    assert ends(*three)["mean"].low == pytest.approx(2 - np.hypot(2 / 3 * 1, 1 / 3 * 4))


def test_it_is_never_narrower_than_the_bootstrap_of_the_mean() -> None:
    generator = np.random.default_rng(0)
    hard = generator.random((2, 300))
    rows, gaps = [], {task: [] for task in "ab"}  # type: dict[str, list[np.ndarray]]
    for place, task in enumerate("ab"):
        for other in ("c", "d", "e"):
            noise = generator.normal(0, 0.15, (2, 300))
            gap = (hard[place] + noise[0] < 0.8).astype(float) - (hard[place] + noise[1] < 0.75)
            low, high = bootstrap([gap])
            mean = 100 * gap.mean()
            rows.append(row(task, mean, None, collaborators=f"{task},{other}", gap_low=low, gap_high=high))
            gaps[task].append(gap)
    found = ends(*rows)["mean"]
    low, high = bootstrap([np.mean(parts, 0) for parts in gaps.values()])
    assert found.low <= low + 0.05
    assert found.high >= high - 0.05
    assert found.high - found.low < 2.5 * (high - low)


def test_a_line_of_which_some_rows_have_none_has_none() -> None:
    found = ends(row("a"), row("b", half=None))
    assert not any(score.has_interval for score in found.values())
    mixed = lines(schema.frame([row("a"), row("a", half=None, granularity="global")]))
    assert [line.mean.has_interval for line in mixed] == [True, False]


def test_a_failed_row_has_no_interval() -> None:
    made = schema.frame([row(status=schema.failed("loss is NaN"))])
    assert made[["gap_low", "gap_high"]].isna().all(axis=None)


@pytest.mark.parametrize(
    ("gap", "half", "style"),
    [(1.0, 3.0, "green"), (3.0, 4.0, "dim"), (3.0, 1.0, "yellow"), (9.0, 10.0, "dim"), (-9.0, 2.0, "red"),
     (3.0, None, "yellow")],
)  # fmt: skip
def test_a_gap_is_coloured_as_one_where_the_images_show_it(
    gap: float, half: float | None, style: str
) -> None:
    assert console.gap_style(ends(row(gap=gap, half=half))["mean"]) == style


def test_console_page_and_mlflow_show_the_interval_where_there_is_one() -> None:
    frame = schema.frame([row("a", 3.0, 4.0), row("b", 3.0, 4.0), row("a", method="average", alignment="",
                          granularity="global", ensembling_accuracy=None)])  # fmt: skip
    low, high = 3 - np.hypot(4, 4) / 2, 3 + np.hypot(8, 8) / 2
    wide, narrow = console.text(frame, 200), console.text(frame, 60)
    assert "95 %" in wide
    assert f"{low:+.1f} {high:+.1f}" in wide
    assert {f"{low:+.1f}", f"{high:+.1f}"} <= set(narrow.split())
    assert f"| {low:+.1f} to {high:+.1f} |" in console.markdown(frame)
    page = html.render({"e": frame}, {})
    assert '<span class="gap dim" title="95 %: −1.0 to +11.0">+3.0</span>' in page  # of a task
    shown = f"{low:+.1f} to {high:+.1f}".replace("-", "−")
    assert f'<small class="ends">{shown}</small>' in page
    metrics = {name: value for line in lines(frame) for name, value, _ in line_metrics(line)}
    assert (metrics["gap_low/mean"], metrics["gap_high/mean"]) == pytest.approx((low, high))
    assert (metrics["gap_low/a"], metrics["gap_high/a"]) == (-1.0, 11.0)
    assert summary_frame(frame).set_index("method").loc["ligand", "gap_low"] == pytest.approx(low)


@pytest.mark.parametrize("width", [80, 100, 120, 160, 200])
def test_a_console_table_with_intervals_fits_and_no_number_is_cut(width: int) -> None:
    frame = samples.results(("tiny-rn",))
    text = console.text(frame.assign(gap_low=frame["gap"] - 12.3, gap_high=frame["gap"] + 11.1), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text


def test_results_without_intervals_look_as_they_did() -> None:
    frame = schema.frame([row("a", half=None), row("b", half=None)])
    (table,) = tables(frame)
    assert not table.has_intervals
    for shown in (
        console.text(frame, 200),
        console.markdown(frame),
        table.caption,
        html.render({"e": frame}, {}),
    ):
        assert "95 %" not in shown
    metrics = {name for line in lines(frame) for name, *_ in line_metrics(line)}
    assert not {"gap_low/mean", "gap_high/mean", "gap_low/a"} & metrics
