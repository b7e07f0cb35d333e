"""Batches of 32x32 pictures drawn with numpy alone: frames, coverage masks, colours, noise.

A picture's coordinates are pixels from its centre, x to the right and y down. A frame maps them into an
object's own (u, v), where the object has about unit radius; what is drawn is a signed distance in the frame.
Canvases are float32 (N, 32, 32, 3) in 0..255, light on dark: with free polarity the tiny models do not
start to learn.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

SIZE = 32
Floats = npt.NDArray[Any]  # float32 throughout; numpy's own annotations say float64 of too much
Labels = npt.NDArray[np.int64]


class Frame(NamedTuple):
    """Object coordinates u, v (N, 32, 32) of every pixel, and how many pixels one unit is, (N, 1, 1)."""

    u: Floats
    v: Floats
    scale: Floats

    def take(self, which: npt.NDArray[np.bool_]) -> "Frame":
        return Frame(self.u[which], self.v[which], self.scale[which])

    def coverage(self, distance: Floats) -> Floats:
        """Anti-aliased mask in 0..1 of where a signed distance (in units) is negative."""
        return np.clip(0.5 - distance * self.scale, 0, 1)


def uniform(rng: np.random.Generator, low: float, high: float, *shape: int) -> Floats:
    return rng.uniform(low, high, shape).astype(np.float32)


def place(x: Floats, y: Floats, scale: Floats, degrees: Floats, shear: Floats | float = 0.0) -> Frame:
    """Frames of objects centred at (x, y) pixels, `scale` pixels a unit, rotated clockwise; all (N,)."""
    axis = np.arange(SIZE, dtype=np.float32) - (SIZE - 1) / 2
    dx = axis[None, None, :] - x[:, None, None]
    dy = axis[None, :, None] - y[:, None, None]
    angle = np.deg2rad(degrees)[:, None, None]
    cos, sin = np.cos(angle), np.sin(angle)
    size = scale[:, None, None].astype(np.float32)
    v = (dy * cos - dx * sin) / size
    u = (dx * cos + dy * sin) / size + np.reshape(np.asarray(shear, np.float32), (-1, 1, 1)) * v
    return Frame(u.astype(np.float32), v.astype(np.float32), size)


def scatter(
    rng: np.random.Generator,
    count: int,
    *,
    shift: float,
    scale: tuple[float, float],
    tilt: float,
    shear: float = 0.0,
) -> Frame:
    """Frames at random: centre within `shift` pixels, scale in a range, rotation within `tilt` degrees."""
    return place(
        uniform(rng, -shift, shift, count),
        uniform(rng, -shift, shift, count),
        uniform(rng, *scale, count),
        uniform(rng, -tilt, tilt, count),
        uniform(rng, -shear, shear, count),
    )


def sample(atlas: Floats, index: Labels, frame: Frame, texels: float) -> Floats:
    """Picture `index` of the atlas (K, H, W), values 0..1, seen through the frame: `texels` to a unit."""
    height, width = atlas.shape[1:]
    x = np.clip(frame.u * texels + (width - 1) / 2 + 1, 0, width + 0.999)
    y = np.clip(frame.v * texels + (height - 1) / 2 + 1, 0, height + 0.999)
    padded = np.pad(atlas, ((0, 0), (1, 1), (1, 1)))
    padded = np.pad(padded, ((0, 0), (0, 1), (0, 1))).reshape(-1)
    row = width + 3
    left, top = x.astype(np.int64), y.astype(np.int64)
    corner = index[:, None, None] * (height + 3) * row + top * row + left
    right = (x - left).astype(np.float32)
    below = (y - top).astype(np.float32)
    upper = padded[corner] * (1 - right) + padded[corner + 1] * right
    lower = padded[corner + row] * (1 - right) + padded[corner + row + 1] * right
    return np.asarray(upper * (1 - below) + lower * below, np.float32)


def light(rng: np.random.Generator, count: int, *, saturation: float, low: float = 190) -> Floats:
    """Foreground colours (N, 3): brightest channel from `low` to 255, the others down to 1 - saturation."""
    colour = 1 - saturation * rng.random((count, 3))
    colour *= rng.uniform(low, 255, (count, 1)) / colour.max(axis=1, keepdims=True)
    return colour.astype(np.float32)


def dark(rng: np.random.Generator, count: int, *, high: float, gradient: float = 0.0) -> Floats:
    """Background canvases: a dark colour up to `high`, brightened by at most `gradient` towards one side."""
    colour = uniform(rng, 0, high, count, 1, 1, 3)
    ramp = place(*(np.zeros(count, np.float32),) * 2, np.full(count, SIZE / 2), uniform(rng, 0, 360, count)).u
    rise = uniform(rng, 0, gradient, count, 1, 1) * (ramp / 2 + 0.5)
    return np.maximum(colour + rise[..., None], 0).astype(np.float32)


def paint(canvas: Floats, mask: Floats, colour: Floats) -> None:
    """Lay colours (N, 3) over the canvas, in place, as far as the mask (N, 32, 32) covers it."""
    canvas += mask[..., None] * (colour[:, None, None, :] - canvas)


def scratch(
    rng: np.random.Generator, canvas: Floats, *, chance: float, strength: tuple[float, float]
) -> None:
    """Draw a thin straight line across a `chance` of the pictures, in place, as a distractor."""
    count = len(canvas)
    frame = scatter(rng, count, shift=11, scale=(1, 1), tilt=180)
    length = uniform(rng, 4, 14, count, 1, 1)
    width = uniform(rng, 0.3, 0.8, count, 1, 1)
    distance = np.maximum(np.abs(frame.u) - length, np.abs(frame.v) - width)
    opacity = uniform(rng, *strength, count) * (rng.random(count) < chance)
    paint(canvas, frame.coverage(distance) * opacity[:, None, None], light(rng, count, saturation=0.8))


def blur(rng: np.random.Generator, canvas: Floats, most: float) -> Floats:
    """Mix each picture with its 3x3 binomial blur, by a random share of at most `most`."""
    padded = np.pad(canvas, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    rows = (padded[:, :-2] + padded[:, 2:]) / 4 + padded[:, 1:-1] / 2
    soft = (rows[:, :, :-2] + rows[:, :, 2:]) / 4 + rows[:, :, 1:-1] / 2
    share = uniform(rng, 0, most, len(canvas), 1, 1, 1)
    return np.asarray(canvas + share * (soft - canvas), np.float32)


def develop(rng: np.random.Generator, canvas: Floats, *, noise: float) -> npt.NDArray[np.uint8]:
    """The finished pictures: pixel noise of standard deviation up to `noise` (of 255), clipped, as uint8."""
    deviation = uniform(rng, 0, noise, len(canvas), 1, 1, 1)
    grain = rng.standard_normal(canvas.shape, dtype=np.float32)
    return np.clip(np.rint(canvas + deviation * grain), 0, 255).astype(np.uint8)
