"""Ten plane figures, filled or hollow, small and off-centre among scratches."""

import numpy as np
import numpy.typing as npt

from neulig_ray.seeds import stable_generator
from neulig_ray.tasks import _captions, _drawing, _outlines, _splits
from neulig_ray.tasks._base import Split, task

_FIGURES: dict[str, _outlines.Outline] = {
    "circle": _outlines.disc,
    "ring": _outlines.ring,
    "square": _outlines.square,
    "triangle": _outlines.polygon(3),
    "diamond": _outlines.polygon(4),
    "pentagon": _outlines.polygon(5),
    "star": _outlines.star,
    "cross": _outlines.plus,
    "crescent": _outlines.crescent,
    "heart": _outlines.heart,
}
_CLASS_NAMES = tuple(_FIGURES)
_OUTLINES = tuple(_FIGURES.values())
_SYNONYMS = {"circle": ("disc",), "cross": ("plus",), "crescent": ("moon",), "diamond": ("rhombus",)}
_CONCEPTS = tuple((name, *_SYNONYMS.get(name, ())) for name in _CLASS_NAMES)
_TEMPLATES = ("a picture of a {}.", "a photo of a {} shape.", "a drawing of a {}.", "a {} shape.")
_PHRASINGS = (*_TEMPLATES, "a coloured {}", "a simple {} icon", "one {}", "geometry: the {}")


def _draw(rng: np.random.Generator, labels: _drawing.Labels) -> npt.NDArray[np.uint8]:
    count = len(labels)
    frame = _drawing.scatter(rng, count, shift=6, scale=(5.5, 10), tilt=14, shear=0.15)
    distance = _outlines.choose(frame, labels, _OUTLINES)
    # A hollow circle would be a ring, so both stay as they are.
    hollow = (rng.random(count) < 0.35) & (labels > 1)
    hole = frame.coverage(distance + 2.2 / frame.scale) * hollow[:, None, None]
    canvas = _drawing.dark(rng, count, high=60, gradient=50)
    _drawing.scratch(rng, canvas, chance=0.7, strength=(0.3, 0.8))
    mask = frame.coverage(distance) - hole
    _drawing.paint(canvas, mask, _drawing.light(rng, count, saturation=0.8, low=140))
    _drawing.scratch(rng, canvas, chance=0.7, strength=(0.3, 0.8))
    _drawing.scratch(rng, canvas, chance=0.4, strength=(0.3, 0.8))
    return _drawing.develop(rng, _drawing.blur(rng, canvas, 0.8), noise=32)


def _stream(seed: int, count: int) -> tuple[npt.NDArray[np.uint8], list[str]]:
    rng = stable_generator("shapes", "pretraining", seed)
    labels = _splits.balanced(rng, count, len(_CLASS_NAMES))
    frame = _drawing.scatter(rng, count, shift=2, scale=(8, 12), tilt=5)
    canvas = _drawing.dark(rng, count, high=40)
    mask = frame.coverage(_outlines.choose(frame, labels, _OUTLINES))
    _drawing.paint(canvas, mask, _drawing.light(rng, count, saturation=0.7))
    images = _drawing.develop(rng, canvas, noise=6)
    return images, _captions.write(rng, labels, _CONCEPTS, _PHRASINGS)


@task(
    "shapes",
    class_names=_CLASS_NAMES,
    templates=_TEMPLATES,
    source="rendered: ten plane figures with distractors",
    pretraining=_stream,
)
def shapes(seed: int) -> dict[str, Split]:
    return _splits.rendered("shapes", seed, len(_CLASS_NAMES), _draw)
