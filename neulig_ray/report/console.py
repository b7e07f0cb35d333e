"""The merging-versus-ensembling table on a console and as Markdown, in the shape of the paper's Table 2."""

import io
import textwrap
from collections.abc import Sequence
from typing import Final

import pandas as pd
from rich import box
from rich.console import Console, RenderableType
from rich.table import Table as Grid
from rich.text import Text

from neulig_ray.results.granularities import OWN, granularity_of, in_order
from neulig_ray.results.schema import SHOWN
from neulig_ray.results.summary import Line, Score, Table, tables
from neulig_ray.results.variants import labels

LEGEND = (
    "cells: merging / ensembling / gap (ensembling - merging); accuracies in percent, gaps in points, each "
    "rounded by itself. |gap|: mean of the absolute gaps. "
    + "".join(f"{column.heading}: {column.meaning}. " for column in SHOWN.values())
    + "*: knows the task of a test image, or that its batch has one task; the other lines do not."
)
EXTRAS: Final = ("|gap|", *(column.heading for column in SHOWN.values()))  # beside a line's mean
_INTERVAL: Final = "95 %"
_SPREAD: Final = "±"
_LABEL_WIDTH: Final = 19
_DIGITS: Final = 4
_TALL: Final = 3  # lines of a cell where the console is narrowest
_WIDE: Final = 200


def print_tables(made: pd.DataFrame | Sequence[Table], console: Console | None = None) -> None:
    """Print every table, of a results frame or as they are, as compact as the console is narrow."""
    console = console or Console(width=None if _is_terminal() else _WIDE)
    whole = tables(made) if isinstance(made, pd.DataFrame) else made
    for table in whole:
        for part in _renderables(table, console.width):
            console.print(part)
    console.print(Text(legend(whole), style="dim"))


def text(frame: pd.DataFrame, width: int = _WIDE) -> str:
    """The tables as plain text of at most `width` columns."""
    stream = io.StringIO()
    print_tables(frame, Console(file=stream, width=width, color_system=None, force_terminal=False))
    return "\n".join(row.rstrip() for row in stream.getvalue().splitlines()) + "\n"


def markdown(made: pd.DataFrame | Sequence[Table], means_only: bool = False) -> str:
    """The tables as Markdown, one line to a row, for a README or an artifact; without tasks if means_only."""
    whole = tables(made) if isinstance(made, pd.DataFrame) else made
    legends = legend(whole).replace("*:", "\\*:").replace("|", "\\|")
    return "\n\n".join([*(_markdown_table(table, means_only) for table in whole), legends]) + "\n"


def legend(made: Sequence[Table]) -> str:
    """What cells and marks mean, and the granularities of the tables that are not the package's own."""
    shown = {x.variant.granularity for table in made for x in table.lines if x.variant.shows_granularity}
    added = [granularity_of(name) for name in in_order(shown - set(OWN))]
    return " ".join([LEGEND, *(f"{g.name}: {g.meaning}." for g in added if g.meaning)])


def number(value: float, sign: bool = False, digits: int = 1) -> str:
    """So many decimals, never "-0.0"; "" for what was not measured."""
    if value != value:
        return ""
    return f"{round(value, digits) + 0.0:{'+' * sign}.{digits}f}"


def score_parts(score: Score) -> list[str]:
    """merging, ensembling and gap as far as there are any: "-" stands for a missing merging accuracy."""
    merging, ensembling, gap = number(score.merging), number(score.ensembling), number(score.gap, sign=True)
    if not ensembling:
        return [merging or "-"]
    return [merging or "-", ensembling, *([gap] if gap else [])]


def interval(score: Score, between: str = " to ") -> str:
    """The ends of the gap's interval; "" where there is none."""
    return (
        between.join(number(end, sign=True) for end in (score.low, score.high)) if score.has_interval else ""
    )


def spread(line: Line) -> str:
    """The standard deviation over seeds of the mean merging (of ensembles: ensembling) accuracy."""
    over = line.seed_spread
    return number(over.ensembling if over.merging != over.merging else over.merging)


def extras(line: Line) -> list[str]:
    """The cells of EXTRAS: mean |gap|, and the means of the columns that tables show."""
    means = (number(line.others[name], digits=column.digits) for name, column in SHOWN.items())
    return [number(line.absolute_gap), *means]


def line_label(line: Line, label: str) -> str:
    """The label with its marks: * knows the task, ! some combinations failed."""
    return label + ("*" if line.variant.knows_task else "") + (" !" if line.failures else "")


def _is_terminal() -> bool:
    return Console().is_terminal


def _renderables(table: Table, width: int) -> list[RenderableType]:
    shapes = [(1, _WIDE), (1, _LABEL_WIDTH), (2, _LABEL_WIDTH), (_TALL, _LABEL_WIDTH)]
    candidates = [_grid(table, *shape) for shape in shapes]
    measure = Console(width=10_000)
    fitting = [grid for grid in candidates if measure.measure(grid).maximum <= width]
    parts: list[RenderableType] = [Text(f"\n{table.title}", style="bold"), [*fitting, candidates[-1]][0]]
    if table.caption:
        parts.append(Text(table.caption, style="dim"))
    parts += [Text(f"! {reason}", style="red") for reason in table.failures]
    return parts


def _grid(table: Table, height: int, label_width: int) -> Grid:
    """The table with cells of one line (m/e/gap), two (m/e over gap) or three, interval and ± below those."""
    grid = Grid(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    grid.add_column("", no_wrap=True)
    for name in (*table.tasks, "mean"):
        grid.add_column(name, no_wrap=True, header_style="bold")
    spreads = [_SPREAD] if table.seeds > 1 and height < _TALL else []
    intervals = [_INTERVAL] if table.has_intervals and height < _TALL else []
    for name in (*spreads, *intervals, *EXTRAS):
        grid.add_column(name, justify="right", no_wrap=True, style="dim")
    section = ""
    for line, label in zip(table.lines, labels([x.variant for x in table.lines]), strict=True):
        if line.variant.section != section:
            section = line.variant.section
            grid.add_row(Text(section, style="italic cyan"))
        wrapped = textwrap.wrap(line_label(line, label), label_width - 1, break_on_hyphens=False)
        cells = [_cell(line.scores.get(task, Score()), height) for task in table.tasks]
        mean = _cell(line.mean, height)
        mean.stylize("bold", 0, _DIGITS)
        if height == _TALL and line.mean.has_interval:
            mean.append("\n" + interval(line.mean, "\n"), style="dim")
        if height == _TALL and spread(line):
            mean.append(f"\n±{spread(line)}", style="dim")
        shown = [spread(line) for _ in spreads]
        shown += [interval(line.mean, " " if height == 1 else "\n") for _ in intervals]
        grid.add_row("\n".join(f" {part}" for part in wrapped), *cells, mean, *shown, *extras(line))
    return grid


def _cell(score: Score, height: int) -> Text:
    parts = [part.rjust(_DIGITS) for part in score_parts(score)]
    if height == 1 or len(parts) == 1:
        joined = "/".join(parts)
    elif height == 2:
        joined = "/".join(parts[:2]) + "".join(f"\n{'':{_DIGITS}}{gap}" for gap in parts[2:])
    else:
        joined = "\n".join(parts[:2]) + "".join(f"\n{gap.rjust(_DIGITS)}" for gap in parts[2:])
    cell = Text(joined)
    if len(parts) == 3:
        cell.stylize(gap_style(score), len(joined) - len(parts[2]))
    return cell


def gap_style(score: Score) -> str:
    """Green within 1.5 points, yellow within 5, red beyond; dim where it is not told from none."""
    size = abs(score.gap)
    if size > 1.5 and score.undecided:
        return "dim"
    return "green" if size <= 1.5 else "yellow" if size <= 5 else "red"


def _markdown_table(table: Table, means_only: bool) -> str:
    def row(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    tasks = () if means_only else table.tasks
    spreads, intervals = [_SPREAD] * (table.seeds > 1), [_INTERVAL] * table.has_intervals
    head = ["", *tasks, "mean", *spreads, *intervals, *(name.replace("|", "\\|") for name in EXTRAS)]
    rows = [row(head), row(["---"] + ["---:"] * (len(head) - 1))]
    section = ""
    for line, label in zip(table.lines, labels([x.variant for x in table.lines]), strict=True):
        if line.variant.section != section:
            section = line.variant.section
            rows.append(row([f"*{section}*"] + [""] * (len(head) - 1)))
        scores = [*(line.scores.get(task, Score()) for task in tasks), line.mean]
        cells = [" / ".join(score_parts(score)) for score in scores]
        shown = [*(spread(line) for _ in spreads), *(interval(line.mean) for _ in intervals)]
        rows.append(row([line_label(line, label).replace("*", "\\*"), *cells, *shown, *extras(line)]))
    notes = [table.caption, *(f"! {reason}" for reason in table.failures)]
    return "\n\n".join([f"**{table.title}**", "\n".join(rows), *(note for note in notes if note)])
