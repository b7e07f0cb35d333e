"""One to six objects of any form: how many are there?"""

import numpy as np
import numpy.typing as npt

from neulig_ray.seeds import stable_generator
from neulig_ray.tasks._base import Split, task
from neulig_ray.tasks.drawing import captions, outlines, raster
from neulig_ray.tasks.reading import splits

_WORDS = ("one", "two", "three", "four", "five", "six")
_CLASS_NAMES = ("one object", *(f"{word} objects" for word in _WORDS[1:]))
_CONCEPTS = tuple(
    (name, f"{word} {'dot' if word == 'one' else 'dots'}", f"{word} {'thing' if word == 'one' else 'things'}")
    for name, word in zip(_CLASS_NAMES, _WORDS, strict=True)
)
_TEMPLATES = ("a picture of {}.", "a photo of {}.", "there are {}.", "a drawing with {}.")
_PHRASINGS = (*_TEMPLATES, "{} in a picture", "{}, all together", "count them: {}")
_FORMS = (outlines.disc, outlines.square, outlines.polygon(3), outlines.polygon(4), outlines.plus)


def _objects(
    rng: np.random.Generator,
    canvas: raster.Floats,
    labels: raster.Labels,
    *,
    forms: tuple[outlines.Outline, ...],
    scale: tuple[float, float],
    saturation: float,
    low: float,
) -> None:
    """Paint `labels + 1` objects into cells of a 3x3 board that are drawn without replacement."""
    count = len(labels)
    cells = rng.permuted(np.tile(np.arange(9), (count, 1)), axis=1)
    pitch = raster.SIZE / 3
    for nth in range(len(_WORDS)):
        play = pitch / 2 - scale[1]
        x = (cells[:, nth] % 3 - 1) * pitch + rng.uniform(-play, play, count)
        y = (cells[:, nth] // 3 - 1) * pitch + rng.uniform(-play, play, count)
        frame = raster.place(
            x.astype(np.float32),
            y.astype(np.float32),
            raster.uniform(rng, *scale, count),
            raster.uniform(rng, 0, 90, count),
        )
        distance = outlines.choose(frame, rng.integers(len(forms), size=count), forms)
        mask = frame.coverage(distance) * (nth <= labels)[:, None, None]
        raster.paint(canvas, mask, raster.light(rng, count, saturation=saturation, low=low))


def _draw(rng: np.random.Generator, labels: raster.Labels) -> npt.NDArray[np.uint8]:
    canvas = raster.dark(rng, len(labels), high=55, gradient=40)
    raster.scratch(rng, canvas, chance=0.4, strength=(0.2, 0.5))
    _objects(rng, canvas, labels, forms=_FORMS, scale=(2.4, 4.4), saturation=0.8, low=150)
    return raster.develop(rng, raster.blur(rng, canvas, 0.6), noise=20)


def _stream(seed: int, count: int) -> tuple[npt.NDArray[np.uint8], list[str]]:
    rng = stable_generator("count", "pretraining", seed)
    labels = splits.balanced(rng, count, len(_WORDS))
    canvas = raster.dark(rng, count, high=35)
    _objects(rng, canvas, labels, forms=_FORMS[:2], scale=(3.2, 4.2), saturation=0.5, low=190)
    images = raster.develop(rng, canvas, noise=6)
    return images, captions.write(rng, labels, _CONCEPTS, _PHRASINGS)


@task(
    "count",
    class_names=_CLASS_NAMES,
    templates=_TEMPLATES,
    source="rendered: one to six small objects on a noisy ground",
    pretraining=_stream,
)
def count(seed: int) -> dict[str, Split]:
    return splits.rendered("count", seed, len(_WORDS), _draw)
