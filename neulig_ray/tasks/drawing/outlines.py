"""Signed distances of simple figures in a frame of their own: negative inside, about unit radius."""

from collections.abc import Callable

import numpy as np

from neulig_ray.tasks.drawing.raster import Floats, Frame, Labels

Outline = Callable[[Floats, Floats], Floats]


def disc(u: Floats, v: Floats, x: float = 0, y: float = 0, radius: float = 1) -> Floats:
    return np.hypot(u - x, v - y) - radius


def ring(u: Floats, v: Floats, x: float = 0, y: float = 0, radius: float = 0.75, half: float = 0.2) -> Floats:
    return np.abs(disc(u, v, x, y, radius)) - half


def bar(u: Floats, v: Floats, x: float, y: float, half_width: float, half_height: float) -> Floats:
    return np.maximum(np.abs(u - x) - half_width, np.abs(v - y) - half_height)


def square(u: Floats, v: Floats) -> Floats:
    return bar(u, v, 0, 0, 0.82, 0.82)


def _sides(u: Floats, v: Floats, corners: int) -> list[Floats]:
    """Distances beyond the sides' lines of a regular polygon in the unit circle with a corner on top."""
    angles = -np.pi / 2 + (np.arange(corners) + 0.5) * 2 * np.pi / corners
    apothem = np.cos(np.pi / corners)
    return [u * np.float32(np.cos(a)) + v * np.float32(np.sin(a)) - np.float32(apothem) for a in angles]


def polygon(corners: int) -> Outline:
    def outline(u: Floats, v: Floats) -> Floats:
        return np.maximum.reduce(_sides(u, v, corners))

    return outline


def star(u: Floats, v: Floats) -> Floats:
    """A pentagram: its points lie beyond at most one side of the inner pentagon."""
    inner = 0.42
    return np.partition(np.stack(_sides(u / inner, -v / inner, 5)), -2, axis=0)[-2] * inner


def plus(u: Floats, v: Floats) -> Floats:
    return np.minimum(bar(u, v, 0, 0, 1, 0.3), bar(u, v, 0, 0, 0.3, 1))


def crescent(u: Floats, v: Floats) -> Floats:
    return np.maximum(disc(u, v), -disc(u, v, 0.5, -0.15, 0.85))


def heart(u: Floats, v: Floats) -> Floats:
    """A square on its tip with a half disc on each of its upper sides."""
    half = float(np.sqrt(0.5))
    lobes = disc(np.abs(u), v, 0.4, -0.3, 0.8 * half)
    return np.minimum(lobes, (np.abs(u) + np.abs(v - 0.1) - 0.8) * half)


def arrow(u: Floats, v: Floats) -> Floats:
    """An arrow that points to the right."""
    half = np.float32(np.sqrt(0.5))
    tip = np.maximum((u + np.abs(v)) * half - 0.68, -(u - 0.1))
    return np.minimum(tip, bar(u, v, -0.35, 0, 0.6, 0.22))


def choose(frame: Frame, kinds: Labels, outlines: tuple[Outline, ...]) -> Floats:
    """The distance of outline `kinds[i]` in frame i."""
    distance = np.empty_like(frame.u)
    for kind, outline in enumerate(outlines):
        which = kinds == kind
        if which.any():
            distance[which] = outline(frame.u[which], frame.v[which])
    return distance
