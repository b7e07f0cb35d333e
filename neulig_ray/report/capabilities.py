"""The paper's Table 1 as HTML: what each method declares that it serves, and how often that was measured."""

from collections.abc import Mapping
from html import escape
from typing import Any, Final

import pandas as pd

from neulig_ray.report.published_rows import Published
from neulig_ray.results.schema import OK

COLUMNS: Final = ("ViT", "CNN", "diverse origins", "ensembling", "theory")
_MARKS: Final = {"yes": "✓", "no": "–", "partly": "(✓)"}
_CAPTION: Final = (
    "What each method declares of itself: defined for vision transformers, for CNNs, for experts that start "
    "from different origins (it needs no common base), with an ensemble that combines predictions as it "
    "combines parameters, with something proved of the gap between both. A tick says that the method is "
    "defined, not that it is good: small, how many rows here measure it."
)


def capabilities(declared: Mapping[str, Any], frame: pd.DataFrame, others: Published | None) -> str:
    """The table of an experiment whose results.json has `declared`; "" where no method merges."""
    methods: Mapping[str, Mapping[str, Any]] = declared.get("methods", {})
    if not methods:
        return ""
    published = (others.capabilities if others else None) or {}
    combined = frame[(frame["n"] > 1) & (frame["status"] == OK)]
    rows = []
    for name, found in methods.items():
        measured = _measured(combined[combined["method"] == name], declared.get("archs", {}))
        cells = "".join(
            _cell(found[column], measured.get(column, 0), published.get(name, {}).get(column))
            for column in COLUMNS
        )
        rows.append(f'<tr><th title="{escape(str(found["paper"]))}">{escape(name)}</th>{cells}</tr>')
    head = "".join(f"<th>{escape(column)}</th>" for column in ("", *COLUMNS))
    beside = ""
    if others and published:
        beside = f" In brackets, published and not ours: {others.source.partition(',')[0]}, Table 1."
    return (
        f'<h3>Which method serves what</h3><div class="scroll"><table class="notes capabilities"><thead>'
        f"<tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        f'<p class="caption">{escape(_CAPTION + beside)}</p>'
    )


def _measured(rows: pd.DataFrame, archs: Mapping[str, str]) -> dict[str, int]:
    """Column -> how many measured rows of one method belong to it."""
    kinds = rows["arch"].map(lambda arch: archs.get(arch, ""))
    return {
        "ViT": int((kinds == "ViT").sum()),
        "CNN": int((kinds == "CNN").sum()),
        "diverse origins": int(rows["origin"].str.contains(",").sum()),
        "ensembling": int(rows["ensembling_accuracy"].notna().sum()),
    }


def _cell(declares: object, measured: int, published: str | None) -> str:
    mark = "✓" if declares else '<span class="none">–</span>'
    hint = f' title="{escape(declares)}"' if isinstance(declares, str) and declares else ""
    count = f" <small>{measured} row{'s' * (measured > 1)}</small>" if measured else ""
    other = f' <span class="published">[{_MARKS.get(published, published)}]</span>' if published else ""
    return f"<td{hint}>{mark}{count}{other}</td>"
