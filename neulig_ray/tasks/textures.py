"""Fourteen procedural patterns in two tones, of any phase, at scales and tilts the web does not show."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from neulig_ray.seeds import stable_generator
from neulig_ray.tasks._base import Split, task
from neulig_ray.tasks.drawing import captions, raster
from neulig_ray.tasks.drawing.raster import Floats
from neulig_ray.tasks.reading import splits

_SOFT = 0.06  # half the width of an edge, in periods


class _Ground(NamedTuple):
    """Coordinates in periods of the pattern (N, 32, 32), and the generator of what is random in it."""

    u: Floats
    v: Floats
    rng: np.random.Generator


def _wave(t: Floats) -> Floats:
    """A triangle wave of period 1 between 0 and 1."""
    return np.abs(2 * (t - np.floor(t)) - 1)


def _edge(t: Floats, level: float) -> Floats:
    """1 where t is above the level, 0 below, with a soft step."""
    return np.clip((t - level) / (2 * _SOFT) + 0.5, 0, 1)


def _checks(g: _Ground) -> Floats:
    return np.asarray(np.abs(_edge(_wave(g.u / 2), 0.5) - _edge(_wave(g.v / 2), 0.5)))


def _dots(g: _Ground) -> Floats:
    return _edge(0.35 - np.hypot(_wave(g.u), _wave(g.v)) / 2, 0.0)


def _bricks(g: _Ground) -> Floats:
    row = np.floor(g.v)
    joint = np.maximum(_wave(g.v), _wave(g.u / 2 + row / 2))
    return 1 - _edge(joint, 0.8)


def _rings(g: _Ground) -> Floats:
    return _edge(_wave(np.hypot(g.u, g.v)), 0.5)


def _rays(g: _Ground) -> Floats:
    return _edge(_wave(np.arctan2(g.v, g.u) * np.float32(8 / (2 * np.pi))), 0.5)


def _zigzag(g: _Ground) -> Floats:
    return _edge(_wave(g.v + 0.7 * _wave(g.u / 2)), 0.5)


def _waves(g: _Ground) -> Floats:
    return _edge(_wave(g.u + 0.35 * np.sin(g.v * np.float32(np.pi))), 0.5)


def _smooth(g: _Ground, cells: int) -> Floats:
    """Random values on a coarse board, cubically smoothed in between."""
    board = g.rng.random((len(g.u), cells + 1, cells + 1)).astype(np.float32)
    at = np.linspace(0, cells - 1e-3, raster.SIZE)
    low = at.astype(np.int64)
    share = ((at - low) ** 2 * (3 - 2 * (at - low))).astype(np.float32)
    rows = board[:, low] * (1 - share)[:, None] + board[:, low + 1] * share[:, None]
    return np.asarray(rows[:, :, low] * (1 - share) + rows[:, :, low + 1] * share)


def _clouds(g: _Ground) -> Floats:
    return np.clip((0.65 * _smooth(g, 4) + 0.35 * _smooth(g, 9) - 0.5) * 2.2 + 0.5, 0, 1)


def _static(g: _Ground) -> Floats:
    return (g.rng.random(g.u.shape) < 0.5).astype(np.float32)


def _speckles(g: _Ground) -> Floats:
    """A few light pixels, each softened a little to the right and downwards."""
    seeds = (g.rng.random(g.u.shape) < 0.04).astype(np.float32)
    grown = np.maximum(seeds, np.roll(seeds, 1, axis=2))
    return np.maximum(grown, np.roll(grown, 1, axis=1))


_PATTERNS: dict[str, Callable[[_Ground], Floats]] = {
    "horizontal stripes": lambda g: _edge(_wave(g.v), 0.5),
    "vertical stripes": lambda g: _edge(_wave(g.u), 0.5),
    "diagonal stripes": lambda g: _edge(_wave((g.u + g.v) * np.float32(np.sqrt(0.5))), 0.5),
    "checkerboard": _checks,
    "polka dots": _dots,
    "grid": lambda g: _edge(np.maximum(_wave(g.u), _wave(g.v)), 0.75),
    "bricks": _bricks,
    "rings": _rings,
    "rays": _rays,
    "waves": _waves,
    "zigzag": _zigzag,
    "clouds": _clouds,
    "static noise": _static,
    "speckles": _speckles,
}
_CLASS_NAMES = tuple(_PATTERNS)
_SYNONYMS = {
    "checkerboard": ("chess board",),
    "grid": ("mesh",),
    "bricks": ("brick wall",),
    "rings": ("concentric rings",),
    "rays": ("sun rays",),
    "zigzag": ("chevron",),
    "speckles": ("stars in the night",),
}
_CONCEPTS = tuple((name, *_SYNONYMS.get(name, ())) for name in _CLASS_NAMES)
_TEMPLATES = ("a picture of {}.", "a photo of {} texture.", "a {} pattern.", "a texture of {}.")
_PHRASINGS = (*_TEMPLATES, "{} wallpaper", "seamless {}", "fabric with {}")


def _tones(
    rng: np.random.Generator, labels: raster.Labels, period: tuple[float, float], tilt: float, jitter: float
) -> Floats:
    """How light every pixel is, 0..1. The centre, or phase, moves by up to `jitter` pixels."""
    frame = raster.scatter(rng, len(labels), shift=jitter, scale=period, tilt=tilt)
    tones = np.empty_like(frame.u)
    for label, pattern in enumerate(_PATTERNS.values()):
        which = labels == label
        if which.any():
            tones[which] = pattern(_Ground(frame.u[which], frame.v[which], rng))
    return tones


def _draw(rng: np.random.Generator, labels: raster.Labels) -> npt.NDArray[np.uint8]:
    count = len(labels)
    canvas = raster.dark(rng, count, high=70, gradient=60)
    tones = _tones(rng, labels, period=(4.0, 11.0), tilt=14, jitter=10)
    opacity = raster.uniform(rng, 0.35, 1, count, 1, 1)
    raster.paint(canvas, tones * opacity, raster.light(rng, count, saturation=0.8, low=150))
    raster.scratch(rng, canvas, chance=0.5, strength=(0.3, 0.8))
    return raster.develop(rng, raster.blur(rng, canvas, 1.0), noise=32)


def _stream(seed: int, count: int) -> tuple[npt.NDArray[np.uint8], list[str]]:
    rng = stable_generator("textures", "pretraining", seed)
    labels = splits.balanced(rng, count, len(_CLASS_NAMES))
    canvas = raster.dark(rng, count, high=40)
    tones = _tones(rng, labels, period=(5.0, 8.0), tilt=4, jitter=4)
    raster.paint(canvas, tones, raster.light(rng, count, saturation=0.6))
    images = raster.develop(rng, canvas, noise=6)
    return images, captions.write(rng, labels, _CONCEPTS, _PHRASINGS)


@task(
    "textures",
    class_names=_CLASS_NAMES,
    templates=_TEMPLATES,
    source="rendered: fourteen procedural patterns",
    pretraining=_stream,
)
def textures(seed: int) -> dict[str, Split]:
    return splits.rendered("textures", seed, len(_CLASS_NAMES), _draw)
