"""One self-contained HTML page: the tables, the plots, what they mean and where they come from."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from types import MappingProxyType
from typing import Any, Final

import pandas as pd

from neulig_ray.redaction import without_secrets
from neulig_ray.report import plots
from neulig_ray.report.capabilities import capabilities
from neulig_ray.report.console import EXTRAS, extras, gap_style, interval, number, spread
from neulig_ray.report.page import STYLE
from neulig_ray.report.published_html import not_beside, notes_beside, rows_beside
from neulig_ray.report.published_rows import Published, names, published
from neulig_ray.results.granularities import GRANULARITIES, granularity_of, in_order
from neulig_ray.results.schema import SHOWN
from neulig_ray.results.summary import Line, Score, Table, tables
from neulig_ray.results.variants import OBJECTIVES, labels

_SECTION_TITLES: Final = {
    "reference": "Floor and ceiling",
    "merging": "One static merged model",
    "merging, several models": "A merged model for each task or image",
    "ensembles, uniform": "Uniform ensembles, prediction level",
    "ligand sup": "Ligand, supervised (sup)",
    "ligand semi": "Ligand, without labels (semi)",
    "ligand route": "Ligand, without class labels: told which data set a training image is from (route)",
}
_KNOWS: Final = "knows the task of an image, or that its batch has one task"
_SCATTER: Final = (
    "Merging against ensembling, a point for each task of each combination. Below the line merging loses."
)
_GAPS: Final = f"The gap by granularity; the bar is the mean. * {_KNOWS}."
_NOTES: Final = """
<p><b>Merging</b> runs one network whose parameters are the &beta;-weighted sum of the experts';
<b>ensembling</b> runs every expert and weights their embeddings with the same &beta;. The <b>gap</b> is
ensembling minus merging, in percentage points: positive where merging loses. A ligand's ensembling accuracy
always uses every image's own &beta;, whatever the row's granularity.</p>
<p>Much of the method's strength is choosing the right expert, so <b>hard routing</b> (the expert with the
largest &beta;, nothing merged) stands in the same table, and so does what happens when batches mix tasks or
when one <b>global</b> model has to serve everything. Read a small gap at <code>task</code>,
<code>batch-first</code> or <code>batch-mean</code> for what it is: these use the fact that a batch, or a test
set, holds one task only.</p>
"""


def render(
    frames: Mapping[str, pd.DataFrame],
    provenance: Mapping[str, Mapping[str, Any]],
    made: Mapping[str, Sequence[Table]] = MappingProxyType({}),
) -> str:
    """The page for the experiments by name; `provenance` is each one's results.json.

    `made`: the tables of the frames, where somebody has them already.

    Needs nothing but the file: styles and plots are inside, and it follows the reader's light or dark theme.
    """
    sections = [
        _experiment(
            name, frame, made.get(name) or tables(frame), without_secrets(provenance.get(name, {})), place
        )
        for place, (name, frame) in enumerate(frames.items())
    ]
    title = " · ".join(frames)
    links = "".join(f'<a href="#e{place}">{escape(name)}</a>' for place, name in enumerate(frames))
    nav = f"<nav>{links}<a href='#notes'>what the rows mean</a></nav>"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>NeuLig-Ray: {escape(title)}</title>\n<style>{STYLE}</style></head>\n<body>\n"
        f"<header><h1>Merging versus ensembling</h1><p>NeuLig-Ray · {escape(title)}</p>{nav}</header>\n"
        f"<main>{''.join(sections)}{_notes()}</main>\n</body></html>\n"
    )


def _experiment(
    name: str, frame: pd.DataFrame, made: Sequence[Table], provenance: Mapping[str, Any], place: int
) -> str:
    heading = f'<section id="e{place}"><h2>{escape(name)}</h2>'
    parts = [heading, _facts(provenance), _warnings(provenance.get("warnings", ()))]
    if not made:
        return "".join([*parts, "<p>No results yet.</p></section>"])
    if headline := _headline(made):
        parts.append(headline)
    combined = frame[frame["n"] > 1]
    if combined["ensembling_accuracy"].notna().any():
        parts.append(_figure(plots.scatter(combined, "inline"), _SCATTER))
        parts.append(_figure(plots.gaps(combined, "inline"), _GAPS))
    others = _published(provenance)
    parts += [_table(table, others) for table in made]
    parts += [not_beside(made, others), capabilities(provenance.get("declared", {}), frame, others)]
    return "".join([*parts, "</section>"])


def _published(provenance: Mapping[str, Any]) -> Published | None:
    """The published rows that the experiment names; none where this version has them no more."""
    name = provenance.get("configuration", {}).get("published", "")
    return published(name) if name in names() else None


def _figure(figure: Any, caption: str) -> str:
    return f"<figure>{plots.svg(figure)}<figcaption>{escape(caption)}</figcaption></figure>"


def _facts(provenance: Mapping[str, Any]) -> str:
    """What a reader asks first on one line, everything else on demand."""
    shown = {key: value for key, value in provenance.items() if not isinstance(value, Mapping | list)}
    shown["hardware"] = ", ".join(_words(provenance.get("hardware", {})))
    shown["versions"] = ", ".join(f"{k} {v}" for k, v in provenance.get("versions", {}).items())
    simple = [
        f"<span>{escape(str(key).replace('_', ' '))} <b>{escape(str(value)[:160])}</b></span>"
        for key, value in shown.items()
        if value not in ("", None)
    ]
    if not provenance:
        return ""
    whole = escape(json.dumps(provenance, indent=2, sort_keys=True, default=str))
    return (
        f'<p class="facts">{"".join(simple)}</p>{_protocol(provenance.get("configuration", {}))}'
        f"<details><summary>Provenance: configuration, versions, commit, seeds, hardware</summary>"
        f"<pre>{whole}</pre></details>"
    )


def _warnings(warnings: Sequence[str]) -> str:
    listing = "".join(f"<li>{escape(warning)}</li>" for warning in warnings)
    return f'<div class="failed"><b>Warnings</b><ul>{listing}</ul></div>' if warnings else ""


def _protocol(configuration: Mapping[str, Any]) -> str:
    """What makes the accuracies of protocol `paper` other ones than those on official test splits."""
    if configuration.get("protocol") != "paper":
        return ""
    views = configuration.get("views", 0)
    shown = (
        f"in {views} view{'s' if views > 1 else ''} each, random crops of its training transform"
        if views
        else ("through the evaluation transform, where the reference uses its training transform")
    )
    return (
        "<p><b>Protocol paper.</b> The test images are half of what the reference leaves of the official "
        f"<i>training</i> split, shown {shown}; the official test split is not used. These accuracies "
        "compare with the reference's tables, and not with accuracies on official test splits.</p>"
    )


def _words(hardware: Mapping[str, Any]) -> list[str]:
    """cpus 2 -> "2 cpus", names as they are, lists joined."""
    counted = {k: v for k, v in hardware.items() if isinstance(v, int)}
    named = [v for v in hardware.values() if isinstance(v, str)]
    listed = [str(x) for v in hardware.values() if isinstance(v, list) for x in v]
    return [*(f"{value} {name}" for name, value in counted.items()), *listed, *named]


def _headline(made: Sequence[Table]) -> str:
    """Means only: from the floor to the ceiling in one row for each table."""
    trained = {x.variant.alignment for table in made for x in table.lines}
    how = next((objective for objective in OBJECTIVES if objective in trained), "")
    wanted = {
        "zero-shot": ("zeroshot", "", "", ""),
        "average": ("average", "", "global", ""),
        "ligand global": ("ligand", how, "global", ""),
        "hard routing": ("hard-routing", how, "sample", ""),
        "ligand sample": ("ligand", how, "sample", "pair"),
        "ligand task *": ("ligand", how, "task", "pair"),
        "expert": ("expert", "", "", ""),
    }
    rows = []
    for table in made:
        if table.n < 2:
            continue
        cells = [f"<th>{escape(table.arch)}<small>{escape(table.origin)}</small></th><td>{table.n}</td>"]
        for method, alignment, granularity, pair in wanted.values():
            found = [
                x for x in table.lines
                if x.variant.method == method and x.variant.alignment == alignment
                and granularity in ("", x.variant.granularity)
            ]  # fmt: skip
            cells.append(f'<td class="big">{_headline_cell(found[0], bool(pair))}</td>'
                         if found else '<td class="none">–</td>')  # fmt: skip
        rows.append(f"<tr>{''.join(cells)}</tr>")
    if not rows:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name in ("", "n", *wanted))
    spreads = ", after ± the standard deviation over seeds" if any(t.seeds > 1 for t in made) else ""
    return (
        f'<div class="scroll"><table class="headline"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        f'<p class="caption">Mean accuracy in percent over combinations and tasks, ligands {how}; small: '
        f"ensembling minus merging in points{spreads}. * knows the task of an image.</p>"
    )


def _headline_cell(line: Line, with_gap: bool) -> str:
    score = line.mean
    return f"{number(score.merging)}{_spread(line)}" + (f" {_gap(score)}" if with_gap else "")


def _spread(line: Line) -> str:
    """The spread over seeds, for everyone to see."""
    return f'<small class="ends">±{spread(line)}</small>' if spread(line) else ""


def _gap(score: Score) -> str:
    shown, ends = (text.replace("-", "−") for text in (number(score.gap, sign=True), interval(score)))
    hint = f' title="95 %: {ends}"' if ends else ""
    return f'<span class="gap {gap_style(score)}"{hint}>{shown}</span>' if shown else ""


def _table(table: Table, others: Published | None = None) -> str:
    groups = (*table.tasks, "mean")
    head = "".join(f'<th colspan="3" class="group">{escape(name)}</th>' for name in groups)
    first, *others_shown = (escape(name) for name in EXTRAS)
    extra = f'<th rowspan="2" class="group">{first}</th>'
    extra += "".join(f'<th rowspan="2">{name}</th>' for name in others_shown)
    sub = "<th>mer</th><th>ens</th><th>gap</th>" * len(groups)
    width = 1 + 3 * len(groups) + len(EXTRAS)
    body, section = [], ""
    for line, label in zip(table.lines, labels([x.variant for x in table.lines]), strict=True):
        if line.variant.section != section:
            section = line.variant.section
            title = escape(_SECTION_TITLES.get(section, section))
            body.append(f'<tr class="section"><th colspan="{width}"><span>{title}</span></th></tr>')
        body.append(_row(table, line, label))
    body.append(rows_beside(table, others, width))
    failures = "".join(f"<li>{escape(reason)}</li>" for reason in table.failures)
    return (
        f'<h3>{escape(table.title)}</h3><div class="scroll"><table class="results"><thead>'
        f'<tr><th rowspan="2"></th>{head}{extra}</tr><tr class="sub">{sub}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
        f'<p class="caption">{escape(table.caption)}</p>{notes_beside(table, others)}'
        + (f'<div class="failed"><b>Not measured</b><ul>{failures}</ul></div>' if failures else "")
    )


def _row(table: Table, line: Line, label: str) -> str:
    variant = line.variant
    meaning = escape(granularity_of(variant.granularity).meaning) if variant.shows_granularity else ""
    mark = f' <abbr title="{_KNOWS}">*</abbr>'
    name = escape(label) + (mark if variant.knows_task else "") + (" ⚠" if line.failures else "")
    cells = [_score_cells(line.scores.get(task, Score()), "") for task in table.tasks]
    cells.append(_score_cells(line.mean, " mean", line))
    first, *others = extras(line)
    cells.append(f'<td class="start">{first}</td>' + "".join(f"<td>{value}</td>" for value in others))
    return f'<tr><th title="{meaning}">{name}</th>{"".join(cells)}</tr>'


def _score_cells(score: Score, extra: str, line: Line | None = None) -> str:
    """Three cells; `line`: that of which the score is the mean."""
    varies = line is not None and line.spread.merging == line.spread.merging
    hint = f' title="± {number(line.spread.merging)} between combinations"' if line and varies else ""
    over = _spread(line) if line else ""
    merging, ensembling = number(score.merging), number(score.ensembling)
    return (
        f'<td class="start mer{extra}"{hint}>{merging}{over if merging else ""}</td>'
        f'<td class="ens{extra}">{ensembling}{"" if merging else over}</td>'
        f'<td class="{extra.strip()}">{_gap(score)}{_ends(score) if extra else ""}</td>'
    )


def _ends(score: Score) -> str:
    """The interval of a mean gap, for everyone to see; those of single tasks are told on demand."""
    ends = interval(score).replace("-", "−")
    return f'<small class="ends">{ends}</small>' if ends else ""


def _notes() -> str:
    rows = "".join(
        f"<tr><th>{escape(g.name)}</th><td>{escape(g.meaning)}</td>"
        f"<td>{'yes' if g.knows_task else 'no'}</td></tr>"
        for g in map(granularity_of, in_order(GRANULARITIES))
    )
    shown = "".join(f"<b>{escape(c.heading)}</b>: {escape(c.meaning)}. " for c in SHOWN.values())
    return (
        f'<section id="notes"><h2>What the rows mean</h2>{_NOTES}'
        f'<table class="notes"><thead><tr><th>granularity</th><th>what one merged model serves</th>'
        f"<th>knows the task *</th></tr></thead><tbody>{rows}</tbody></table>"
        "<p><b>|gap|</b>: mean of the absolute gaps over combinations and tasks, so that gains and losses do "
        f"not cancel. {shown}An entropy of 0 chooses one expert, 1 weights all alike. "
        "<b>BN</b>: where BatchNorm's statistics come from. Numbers are rounded one by one.</p></section>"
    )
