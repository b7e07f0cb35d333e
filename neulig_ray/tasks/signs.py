"""Twenty road signs of our own design: a plate's form and colours, and a glyph, in bad weather."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from neulig_ray.seeds import stable_generator
from neulig_ray.tasks._base import Split, task
from neulig_ray.tasks.drawing import captions, raster
from neulig_ray.tasks.drawing.outlines import Outline, arrow, bar, disc, plus, polygon, ring, square
from neulig_ray.tasks.drawing.raster import Floats
from neulig_ray.tasks.reading import splits

_COLOURS = {
    "red": (225, 40, 45),
    "blue": (50, 95, 235),
    "yellow": (245, 205, 45),
    "orange": (245, 135, 35),
    "white": (240, 240, 240),
    "black": (20, 20, 20),
}


def _octagon(u: Floats, v: Floats) -> Floats:
    return np.maximum(bar(u, v, 0, 0, 0.92, 0.92), (np.abs(u) + np.abs(v)) * np.float32(np.sqrt(0.5)) - 0.92)


def _wide(u: Floats, v: Floats) -> Floats:
    return bar(u, v, 0, 0, 1.05, 0.6)


def _upside_down(outline: Outline) -> Outline:
    return lambda u, v: outline(u, -v)


def _turned(outline: Outline, size: float, quarter: int) -> Outline:
    """The outline at another size, turned counter-clockwise by quarters."""
    turns: tuple[Outline, ...] = (
        lambda u, v: outline(u / size, v / size) * size,
        lambda u, v: outline(-v / size, u / size) * size,
        lambda u, v: outline(-u / size, -v / size) * size,
    )
    return turns[quarter]


def _exclamation(u: Floats, v: Floats) -> Floats:
    return np.minimum(bar(u, v, 0, -0.12, 0.11, 0.28), bar(u, v, 0, 0.36, 0.11, 0.1))


def _two_bars(u: Floats, v: Floats) -> Floats:
    return np.minimum(bar(u, v, 0, -0.25, 0.55, 0.12), bar(u, v, 0, 0.25, 0.55, 0.12))


def _slash(u: Floats, v: Floats) -> Floats:
    half = np.float32(np.sqrt(0.5))
    return np.maximum(np.abs(u + v) * half - 0.13, np.abs(u - v) * half - 0.8)


def _saltire(u: Floats, v: Floats) -> Floats:
    return np.minimum(_slash(u, v), _slash(-u, v))


def _letter_p(u: Floats, v: Floats) -> Floats:
    return np.minimum(bar(u, v, -0.22, 0, 0.12, 0.58), ring(u, v, 0.05, -0.24, 0.24, 0.1))


def _zeros(u: Floats, v: Floats) -> Floats:
    return np.minimum(ring(u, v, -0.27, 0, 0.18, 0.08), ring(u, v, 0.27, 0, 0.18, 0.08))


class _Sign(NamedTuple):
    name: str
    plate: Outline
    fill: str
    rim: str
    glyph: Outline | None
    ink: str
    wording: str


_TRIANGLE, _DIAMOND = polygon(3), polygon(4)
_SIGNS = (
    _Sign("stop", _octagon, "red", "white", _two_bars, "white", "red octagon"),
    _Sign(
        "no entry", disc, "red", "red", lambda u, v: bar(u, v, 0, 0, 0.65, 0.18), "white", "red circle bar"
    ),
    _Sign("yield", _upside_down(_TRIANGLE), "white", "red", None, "black", "give way"),
    _Sign("danger", _TRIANGLE, "white", "red", _exclamation, "black", "warning"),
    _Sign("crossroads", _TRIANGLE, "white", "red", _turned(plus, 0.4, 0), "black", "junction"),
    _Sign(
        "bend to the left", _TRIANGLE, "white", "red", _turned(arrow, 0.45, 2), "black", "left bend warning"
    ),
    _Sign(
        "bend to the right", _TRIANGLE, "white", "red", _turned(arrow, 0.45, 0), "black", "right bend warning"
    ),
    _Sign("turn left", disc, "blue", "blue", _turned(arrow, 0.75, 2), "white", "blue left arrow"),
    _Sign("turn right", disc, "blue", "blue", _turned(arrow, 0.75, 0), "white", "blue right arrow"),
    _Sign("straight ahead", disc, "blue", "blue", _turned(arrow, 0.75, 1), "white", "blue up arrow"),
    _Sign(
        "roundabout",
        disc,
        "blue",
        "blue",
        lambda u, v: ring(u, v, 0, 0, 0.45, 0.13),
        "white",
        "traffic circle",
    ),
    _Sign("parking", square, "blue", "blue", _letter_p, "white", "car park"),
    _Sign("hospital", square, "blue", "white", _turned(plus, 0.55, 0), "white", "first aid"),
    _Sign("one way", _wide, "blue", "white", _turned(arrow, 0.7, 0), "white", "one way street"),
    _Sign("priority road", _DIAMOND, "yellow", "white", None, "black", "main road"),
    _Sign("road works", _DIAMOND, "orange", "black", _turned(_TRIANGLE, 0.45, 0), "black", "construction"),
    _Sign("no stopping", disc, "blue", "red", _saltire, "red", "blue with red x"),
    _Sign("no parking", disc, "blue", "red", _slash, "red", "blue with red slash"),
    _Sign("end of limits", disc, "white", "white", _slash, "black", "white with black slash"),
    _Sign("speed limit", disc, "white", "red", _zeros, "black", "maximum speed"),
)
_CLASS_NAMES = tuple(sign.name for sign in _SIGNS)
_CONCEPTS = tuple((sign.name, sign.wording) for sign in _SIGNS)
_TEMPLATES = ('a picture of a "{}" sign.', "a photo of a {} traffic sign.", "a {} sign.", "road sign: {}.")
_PHRASINGS = (*_TEMPLATES, "the {} sign at a road", "traffic sign {}", "a street with a {} sign")


def _rgb(rng: np.random.Generator, name: str, count: int, spread: float) -> Floats:
    """The named colour (N, 3), each channel off by up to `spread`."""
    return np.asarray(_COLOURS[name], np.float32) + raster.uniform(rng, -spread, spread, count, 3)


def _mount(
    rng: np.random.Generator,
    canvas: Floats,
    labels: raster.Labels,
    frame: raster.Frame,
    *,
    spread: float,
    gloom: float,
) -> None:
    """Paint the signs; a sign's colours are dimmed by up to `gloom` of themselves."""
    daylight = 1 - raster.uniform(rng, 0, gloom, len(labels), 1)
    for label, sign in enumerate(_SIGNS):
        which = labels == label
        here, count, shine = frame.take(which), int(which.sum()), daylight[which]
        plate = sign.plate(here.u, here.v)
        part = canvas[which]
        raster.paint(part, here.coverage(plate), _rgb(rng, sign.rim, count, spread) * shine)
        raster.paint(part, here.coverage(plate + 0.14), _rgb(rng, sign.fill, count, spread) * shine)
        if sign.glyph is not None:
            ink = _rgb(rng, sign.ink, count, spread) * shine
            raster.paint(part, here.coverage(sign.glyph(here.u, here.v)), ink)
        canvas[which] = part


def _draw(rng: np.random.Generator, labels: raster.Labels) -> npt.NDArray[np.uint8]:
    count = len(labels)
    canvas = raster.dark(rng, count, high=60, gradient=50)
    raster.scratch(rng, canvas, chance=0.6, strength=(0.3, 0.7))
    frame = raster.scatter(rng, count, shift=3, scale=(8.5, 13), tilt=13, shear=0.15)
    _mount(rng, canvas, labels, frame, spread=40, gloom=0.5)
    raster.scratch(rng, canvas, chance=0.6, strength=(0.3, 0.8))
    return raster.develop(rng, raster.blur(rng, canvas, 1.0), noise=28)


def _stream(seed: int, count: int) -> tuple[npt.NDArray[np.uint8], list[str]]:
    rng = stable_generator("signs", "pretraining", seed)
    labels = splits.balanced(rng, count, len(_SIGNS))
    canvas = raster.dark(rng, count, high=40)
    frame = raster.scatter(rng, count, shift=1.5, scale=(11, 14), tilt=3)
    _mount(rng, canvas, labels, frame, spread=12, gloom=0.1)
    images = raster.develop(rng, canvas, noise=6)
    return images, captions.write(rng, labels, _CONCEPTS, _PHRASINGS)


@task(
    "signs",
    class_names=_CLASS_NAMES,
    templates=_TEMPLATES,
    source="rendered: twenty road signs of our own design",
    pretraining=_stream,
)
def signs(seed: int) -> dict[str, Split]:
    return splits.rendered("signs", seed, len(_SIGNS), _draw)
