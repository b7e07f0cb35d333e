"""The digits as fonts draw them: what the web shows of the two handwritten digit tasks."""

import numpy as np
import numpy.typing as npt

from neulig_ray.seeds import stable_generator
from neulig_ray.tasks.drawing import captions, fonts, raster
from neulig_ray.tasks.reading.splits import balanced

CLASS_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = (
    "a picture of the digit {}.",
    "a photo of the number {}.",
    "a drawing of the digit {}.",
    "the handwritten digit {}.",
    "the number {}.",
)
_CONCEPTS = tuple((name, str(value)) for value, name in enumerate(CLASS_NAMES))
_PHRASINGS = (*TEMPLATES, "the digit {}", "a printed number {}", "digit {} in some font", "a {} on a door")
_FONTS = fonts.WEB_FONTS + fonts.TASK_FONTS


def stream(task: str, seed: int, count: int, saturation: float) -> tuple[npt.NDArray[np.uint8], list[str]]:
    """`count` captioned digits, printed, slanted and softened; `saturation` 0 makes them grey."""
    rng = stable_generator(task, "pretraining", seed)
    labels = balanced(rng, count, len(CLASS_NAMES))
    frame = raster.scatter(rng, count, shift=2.5, scale=(7.5, 11.5), tilt=12, shear=0.25)
    glyph = rng.integers(len(_FONTS), size=count) * len(CLASS_NAMES) + labels
    mask = raster.sample(fonts.glyphs(_FONTS, "0123456789"), glyph, frame, fonts.TEXELS)
    canvas = raster.dark(rng, count, high=45 * saturation)
    raster.paint(canvas, mask, raster.light(rng, count, saturation=saturation))
    canvas = raster.blur(rng, canvas, 1.0)
    images = raster.develop(rng, canvas, noise=6)
    return images, captions.write(rng, labels, _CONCEPTS, _PHRASINGS)
