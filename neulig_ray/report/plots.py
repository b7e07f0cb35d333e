"""Merging against ensembling with its diagonal (the paper's Figure 3), and the gap by granularity."""

import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import pandas as pd

from neulig_ray.results.granularities import OWN, granularity_of, in_order
from neulig_ray.results.summary import points, variants
from neulig_ray.results.variants import Variant

INK, PAPER = "#1f2937", "#ffffff"
BLUE, ORANGE, GREEN, GREY = "#2f6fde", "#e07a1f", "#2a9d6f", "#8a8f98"
_INLINE_INK: Final = "#010203"  # becomes the page's own text colour
_COLOURS: Final = {"sup": BLUE, "semi": ORANGE, "route": GREEN, "": GREY}
_ORDER: Final = (BLUE, ORANGE, GREEN, GREY)
_KINDS: Final = ("ligand sup", "ligand semi", "ligand route", "average")
_OFFSETS: Final = {"sup": -0.2, "semi": 0.0, "route": 0.2}
_MARKERS: Final = {"task": "o", "sample": "^", "global": "D"}
_PANEL: Final = 4.1  # inches
Theme = Literal["file", "inline"]


@dataclass(frozen=True)
class Series:
    """The points of one kind on the scatter."""

    label: str
    colour: str
    marker: str
    hollow: bool
    ensembling: Sequence[float]
    merging: Sequence[float]


def scatter(frame: pd.DataFrame, theme: Theme = "file") -> Any:
    """One point for each (combination, task): its ensembling accuracy across, its merging accuracy up.

    A panel for each arch; below the diagonal merging loses. Returns a matplotlib Figure.
    """
    archs = sorted(frame["arch"].unique())
    ink = _ink(theme)
    figure = _figure((max(5.4, _PANEL * len(archs)), _PANEL + 1.2), theme)
    handles: dict[str, Any] = {}
    for place, arch in enumerate(archs):
        axes = figure.add_subplot(1, len(archs), place + 1)
        drawn = _series(frame[frame["arch"] == arch])
        values = [value for series in drawn for value in (*series.ensembling, *series.merging)]
        low, high = _limits(values)
        axes.plot([low, high], [low, high], color=ink, alpha=0.55, linewidth=1, zorder=1)
        axes.fill_between([low, high], [low, high], low, color=ink, alpha=0.045, linewidth=0, zorder=0)
        for series in drawn:
            face = "none" if series.hollow else series.colour
            handles[series.label] = axes.scatter(
                series.ensembling, series.merging, s=26, marker=series.marker, facecolors=face,
                edgecolors=series.colour, linewidths=0.9, alpha=0.75, label=series.label, zorder=2,
            )  # fmt: skip
        axes.set(xlim=(low, high), ylim=(low, high), aspect="equal", title=arch)
        axes.set_xlabel("ensembling accuracy (%)")
        if place == 0:
            axes.set_ylabel("merging accuracy (%)")
        axes.text(0.97, 0.04, "merging is worse", transform=axes.transAxes, ha="right", fontsize=8, alpha=0.7)
        _style(axes, ink)
    if handles:
        names = sorted(handles, key=_legend_place)
        figure.legend(
            [handles[name] for name in names], names, loc="outside lower center", ncols=3, frameon=False,
            fontsize=8.5, labelcolor=ink, handletextpad=0.2, columnspacing=1.0,
        )  # fmt: skip
    return figure


def gaps(frame: pd.DataFrame, theme: Theme = "file") -> Any:
    """The gap of every (combination, task) by granularity, with its mean; a panel for each arch."""
    archs = sorted(frame["arch"].unique())
    ink = _ink(theme)
    figure = _figure((max(5.4, _PANEL * len(archs)), 3.4), theme)
    measured = [variant for variant, rows in variants(frame) if rows["gap"].notna().any()]
    names = in_order(variant.granularity for variant in measured if variant.is_ligand)
    names += ["average"] if any(variant.method == "average" for variant in measured) else []
    names = names or [*OWN, "average"]
    for place, arch in enumerate(archs):
        axes = figure.add_subplot(1, len(archs), place + 1)
        axes.axvline(0, color=ink, alpha=0.55, linewidth=1, zorder=1)
        for variant, rows in variants(frame[frame["arch"] == arch]):
            name = variant.granularity if variant.method == "ligand" else variant.method
            if name not in names or variant.buffers == "re-estimated":
                continue
            if variant.method == "ligand" and not variant.is_ligand:
                continue
            values = points(rows)["gap"].dropna()
            row = names.index(name) + _OFFSETS.get(variant.alignment, 0.0)
            colour = _COLOURS.get(variant.alignment, GREY)
            axes.scatter(values, [row] * len(values), s=14, color=colour, alpha=0.35, linewidths=0, zorder=2)
            axes.scatter([values.mean()], [row], s=90, marker="|", color=colour, linewidths=2, zorder=3)
        labels = [name + ("*" if granularity_of(name).knows_task else "") for name in names]
        axes.set_yticks(range(len(names)), labels if place == 0 else [""] * len(names))
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set(title=arch, xlabel="gap: ensembling - merging (points)")
        _style(axes, ink)
    used = {f"ligand {v.alignment}" if v.is_ligand else v.method for v in measured}
    kinds = [(kind, colour) for kind, colour in zip(_KINDS, _ORDER, strict=True) if kind in used]
    figure.legend(
        [_dot(colour) for _, colour in kinds], [kind for kind, _ in kinds], loc="outside lower center",
        ncols=len(_KINDS), frameon=False, fontsize=8.5, labelcolor=ink, handletextpad=0.2,
    )  # fmt: skip
    return figure


def png(figure: Any) -> bytes:
    """The figure as a PNG file at 150 dots per inch."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=150)
    return stream.getvalue()


def svg(figure: Any) -> str:
    """The figure as an <svg> element; what was drawn with theme "inline" takes the page's text colour."""
    import matplotlib

    stream = io.StringIO()
    settings = {"svg.fonttype": "none", "svg.hashsalt": "neulig", "font.family": "sans-serif"}
    with matplotlib.rc_context(settings):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    return text[text.index("<svg") :].replace(_INLINE_INK, "currentColor")


def _series(frame: pd.DataFrame) -> list[Series]:
    found: dict[str, tuple[Variant, list[pd.DataFrame]]] = {}
    for variant, rows in variants(frame):
        if label := _label(variant):
            found.setdefault(label, (variant, []))[1].append(points(rows))
    made = []
    for label, (variant, parts) in found.items():
        cells = pd.concat(parts).dropna(subset=["merging_accuracy", "ensembling_accuracy"])
        if len(cells):
            marker = "s" if variant.method == "average" else _MARKERS[variant.granularity]
            colour, hollow = _COLOURS.get(variant.alignment, GREY), variant.buffers == "re-estimated"
            xs, ys = cells["ensembling_accuracy"], cells["merging_accuracy"]
            made.append(Series(label, colour, marker, hollow, list(xs), list(ys)))
    return sorted(made, key=lambda series: _ORDER.index(series.colour), reverse=True)  # sup drawn on top


def _label(variant: Variant) -> str | None:
    if variant.is_ligand and variant.granularity in _MARKERS:
        return f"ligand {variant.alignment} · {variant.granularity}"
    if variant.method == "average":
        return "average · BN re-estimated" if variant.buffers == "re-estimated" else "average"
    return None


def _legend_place(label: str) -> tuple[int, int]:
    """One column for each objective, and for averaging."""
    kind = _KINDS.index(label.split(" · ")[0])
    return kind, [*_MARKERS, "BN re-estimated"].index(label.split(" · ")[1]) if " · " in label else 0


def _limits(values: Sequence[float]) -> tuple[float, float]:
    if not values:
        return 0.0, 100.0
    margin = max(1.0, 0.04 * (max(values) - min(values)))
    return max(0.0, min(values) - margin), min(100.0 + margin, max(values) + margin)


def _figure(size: tuple[float, float], theme: Theme) -> Any:
    # Without a home that can be written it would tell, at its import, where else its caches are.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained", facecolor="none" if theme == "inline" else PAPER)


def _ink(theme: Theme) -> str:
    return _INLINE_INK if theme == "inline" else INK


def _dot(colour: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, marker="o", linestyle="", markersize=5)


def _style(axes: Any, ink: str) -> None:
    axes.set_facecolor("none")
    axes.grid(color=ink, alpha=0.10, linewidth=0.7, zorder=0)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set(visible=side in ("left", "bottom"), color=ink, alpha=0.5)
    axes.tick_params(colors=ink, labelsize=8.5, length=3)
    for text in (axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts):
        text.set_color(ink)
    axes.title.set(fontsize=11, fontweight="bold")
    axes.xaxis.label.set_fontsize(9)
    axes.yaxis.label.set_fontsize(9)
