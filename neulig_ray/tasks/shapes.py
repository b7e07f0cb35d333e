"""Ten plane figures, filled or hollow, small and off-centre among scratches."""

import numpy as np
import numpy.typing as npt

from neulig_ray.seeds import stable_generator
from neulig_ray.tasks._base import Split, task
from neulig_ray.tasks.drawing import captions, outlines, raster
from neulig_ray.tasks.reading import splits

_FIGURES: dict[str, outlines.Outline] = {
    "circle": outlines.disc,
    "ring": outlines.ring,
    "square": outlines.square,
    "triangle": outlines.polygon(3),
    "diamond": outlines.polygon(4),
    "pentagon": outlines.polygon(5),
    "star": outlines.star,
    "cross": outlines.plus,
    "crescent": outlines.crescent,
    "heart": outlines.heart,
}
_CLASS_NAMES = tuple(_FIGURES)
_OUTLINES = tuple(_FIGURES.values())
_SYNONYMS = {"circle": ("disc",), "cross": ("plus",), "crescent": ("moon",), "diamond": ("rhombus",)}
_CONCEPTS = tuple((name, *_SYNONYMS.get(name, ())) for name in _CLASS_NAMES)
_TEMPLATES = ("a picture of a {}.", "a photo of a {} shape.", "a drawing of a {}.", "a {} shape.")
_PHRASINGS = (*_TEMPLATES, "a coloured {}", "a simple {} icon", "one {}", "geometry: the {}")


def _draw(rng: np.random.Generator, labels: raster.Labels) -> npt.NDArray[np.uint8]:
    count = len(labels)
    frame = raster.scatter(rng, count, shift=6, scale=(5.5, 10), tilt=14, shear=0.15)
    distance = outlines.choose(frame, labels, _OUTLINES)
    # A hollow circle would be a ring, so both stay as they are.
    hollow = (rng.random(count) < 0.35) & (labels > 1)
    hole = frame.coverage(distance + 2.2 / frame.scale) * hollow[:, None, None]
    canvas = raster.dark(rng, count, high=60, gradient=50)
    raster.scratch(rng, canvas, chance=0.7, strength=(0.3, 0.8))
    mask = frame.coverage(distance) - hole
    raster.paint(canvas, mask, raster.light(rng, count, saturation=0.8, low=140))
    raster.scratch(rng, canvas, chance=0.7, strength=(0.3, 0.8))
    raster.scratch(rng, canvas, chance=0.4, strength=(0.3, 0.8))
    return raster.develop(rng, raster.blur(rng, canvas, 0.8), noise=32)


def _stream(seed: int, count: int) -> tuple[npt.NDArray[np.uint8], list[str]]:
    rng = stable_generator("shapes", "pretraining", seed)
    labels = splits.balanced(rng, count, len(_CLASS_NAMES))
    frame = raster.scatter(rng, count, shift=2, scale=(8, 12), tilt=5)
    canvas = raster.dark(rng, count, high=40)
    mask = frame.coverage(outlines.choose(frame, labels, _OUTLINES))
    raster.paint(canvas, mask, raster.light(rng, count, saturation=0.7))
    images = raster.develop(rng, canvas, noise=6)
    return images, captions.write(rng, labels, _CONCEPTS, _PHRASINGS)


@task(
    "shapes",
    class_names=_CLASS_NAMES,
    templates=_TEMPLATES,
    source="rendered: ten plane figures with distractors",
    pretraining=_stream,
)
def shapes(seed: int) -> dict[str, Split]:
    return splits.rendered("shapes", seed, len(_CLASS_NAMES), _draw)
