"""Published rows as HTML, under the lines of a table of ours and marked as not ours."""

from collections.abc import Sequence
from html import escape

from neulig_ray.report.console import EXTRAS
from neulig_ray.report.published_rows import PrintedScores, Published, PublishedRow
from neulig_ray.results.summary import Table


def rows_beside(table: Table, others: Published | None, width: int) -> str:
    """Table rows for a body of `width` columns; "" where nothing was published of exactly this table."""
    found = others.beside(table.arch, table.origin, table.n, table.tasks) if others else ()
    if others is None or not found:
        return ""
    title = f"Published, not ours: {others.title} · {others.family}"
    head = f'<tr class="section published"><th colspan="{width}"><span>{escape(title)}</span></th></tr>'
    return head + "".join(_row(row, table.tasks) for row in found)


def notes_beside(table: Table, others: Published | None) -> str:
    """Where the published rows of a table are from, and what is odd about them."""
    found = others.beside(table.arch, table.origin, table.n, table.tasks) if others else ()
    if others is None or not found:
        return ""
    sources = "; ".join(dict.fromkeys(row.source for row in found))
    noted = [f"† {row.label}: {row.note}." for row in found if row.note]
    words = [f"Published rows: {sources}.", *others.notes, *noted]
    return f'<p class="caption published">{escape(" ".join(words))}</p>'


def not_beside(tables: Sequence[Table], others: Published | None) -> str:
    """A line where published rows were asked for and stand beside no table."""
    if others is None or any(others.beside(t.arch, t.origin, t.n, t.tasks) for t in tables):
        return ""
    wanted = ", ".join(
        dict.fromkeys(
            f"{t.arch} from {t.origin}, n = {t.n}, {len(t.tasks)} task{'s' * (len(t.tasks) > 1)}"
            for t in others.tables
        )
    )
    return (
        f'<p class="caption">The published rows of {escape(others.title)} stand beside no table here: they '
        f"are of {escape(wanted)}.</p>"
    )


def _row(row: PublishedRow, tasks: Sequence[str]) -> str:
    hint = escape(f"{row.source}. {row.note}" if row.note else row.source)
    mark = " †" if row.note else ""
    cells = [_cells(row.scores.get(task, (None, None, None))) for task in tasks]
    cells.append(_cells(row.mean, " mean"))
    own = f'<td class="start"></td>{"<td></td>" * (len(EXTRAS) - 1)}'
    return (
        f'<tr class="published"><th title="{hint}">{escape(row.label)}{mark}</th>{"".join(cells)}{own}</tr>'
    )


def _cells(cell: PrintedScores, extra: str = "") -> str:
    """As printed: a published gap has no sign."""
    merging, ensembling, gap = ("" if value is None else f"{value:g}" for value in cell)
    return (
        f'<td class="start{extra}">{merging}</td><td class="ens{extra}">{ensembling}</td>'
        f'<td class="{extra.strip()}">{gap}</td>'
    )
