"""The 26 capitals in fonts that the pre-training stream never shows, tilted, scratched and noisy."""

import string

import numpy as np
import numpy.typing as npt

from neulig_ray.seeds import stable_generator
from neulig_ray.tasks._base import Split, task
from neulig_ray.tasks.drawing import captions, fonts, raster
from neulig_ray.tasks.reading import splits

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
    rng: np.random.Generator, labels: raster.Labels, frame: raster.Frame, faces: tuple[str, ...]
) -> raster.Floats:
    glyph = rng.integers(len(faces), size=len(labels)) * len(_CAPITALS) + labels
    return raster.sample(fonts.glyphs(faces, _CAPITALS), glyph, frame, fonts.TEXELS)


def _draw(rng: np.random.Generator, labels: raster.Labels) -> npt.NDArray[np.uint8]:
    count = len(labels)
    frame = raster.scatter(rng, count, shift=2.5, scale=(8.5, 11), tilt=10)
    canvas = raster.dark(rng, count, high=50, gradient=30)
    raster.scratch(rng, canvas, chance=0.6, strength=(0.3, 0.7))
    mask = _mask(rng, labels, frame, fonts.TASK_FONTS)
    raster.paint(canvas, mask, raster.light(rng, count, saturation=0.7))
    raster.scratch(rng, canvas, chance=0.4, strength=(0.3, 0.7))
    return raster.develop(rng, canvas, noise=20)


def _stream(seed: int, count: int) -> tuple[npt.NDArray[np.uint8], list[str]]:
    rng = stable_generator("letters", "pretraining", seed)
    labels = splits.balanced(rng, count, len(_CAPITALS))
    frame = raster.scatter(rng, count, shift=2, scale=(8.5, 11), tilt=5, shear=0.1)
    canvas = raster.dark(rng, count, high=40)
    mask = _mask(rng, labels, frame, fonts.WEB_FONTS)
    raster.paint(canvas, mask, raster.light(rng, count, saturation=0.6))
    images = raster.develop(rng, canvas, noise=6)
    return images, captions.write(rng, labels, _CONCEPTS, _PHRASINGS)


@task(
    "letters",
    class_names=tuple(_CAPITALS),
    templates=_TEMPLATES,
    source="rendered: capitals in ten of matplotlib's bundled fonts",
    pretraining=_stream,
)
def letters(seed: int) -> dict[str, Split]:
    return splits.rendered("letters", seed, len(_CAPITALS), _draw, train=3600)
