"""The 26 capitals in fonts that the pre-training stream never shows, tilted, scratched and noisy."""

import string

import numpy as np
import numpy.typing as npt

from neulig_ray.seeds import stable_generator
from neulig_ray.tasks import _captions, _drawing, _fonts, _splits
from neulig_ray.tasks._base import Split, task

_CAPITALS = string.ascii_uppercase
_CONCEPTS = tuple((letter,) for letter in _CAPITALS)
_TEMPLATES = (
    "a picture of the letter {}.",
    "a photo of the capital letter {}.",
    "the letter {}.",
    "a printed letter {}.",
)
_PHRASINGS = (*_TEMPLATES, "a capital {}", "letter {} of the alphabet", "the letter {} in some font")


def _mask(
    rng: np.random.Generator, labels: _drawing.Labels, frame: _drawing.Frame, fonts: tuple[str, ...]
) -> _drawing.Floats:
    glyph = rng.integers(len(fonts), size=len(labels)) * len(_CAPITALS) + labels
    return _drawing.sample(_fonts.glyphs(fonts, _CAPITALS), glyph, frame, _fonts.TEXELS)


def _draw(rng: np.random.Generator, labels: _drawing.Labels) -> npt.NDArray[np.uint8]:
    count = len(labels)
    frame = _drawing.scatter(rng, count, shift=2.5, scale=(8.5, 11), tilt=10)
    canvas = _drawing.dark(rng, count, high=50, gradient=30)
    _drawing.scratch(rng, canvas, chance=0.6, strength=(0.3, 0.7))
    mask = _mask(rng, labels, frame, _fonts.TASK_FONTS)
    _drawing.paint(canvas, mask, _drawing.light(rng, count, saturation=0.7))
    _drawing.scratch(rng, canvas, chance=0.4, strength=(0.3, 0.7))
    return _drawing.develop(rng, canvas, noise=20)


def _stream(seed: int, count: int) -> tuple[npt.NDArray[np.uint8], list[str]]:
    rng = stable_generator("letters", "pretraining", seed)
    labels = _splits.balanced(rng, count, len(_CAPITALS))
    frame = _drawing.scatter(rng, count, shift=2, scale=(8.5, 11), tilt=5, shear=0.1)
    canvas = _drawing.dark(rng, count, high=40)
    mask = _mask(rng, labels, frame, _fonts.WEB_FONTS)
    _drawing.paint(canvas, mask, _drawing.light(rng, count, saturation=0.6))
    images = _drawing.develop(rng, canvas, noise=6)
    return images, _captions.write(rng, labels, _CONCEPTS, _PHRASINGS)


@task(
    "letters",
    class_names=tuple(_CAPITALS),
    templates=_TEMPLATES,
    source="rendered: capitals in ten of matplotlib's bundled fonts",
    pretraining=_stream,
)
def letters(seed: int) -> dict[str, Split]:
    return _splits.rendered("letters", seed, len(_CAPITALS), _draw, train=3600)
