"""Real handwritten digits of 8x8 pixels (scikit-learn), enlarged and coloured at random."""

import numpy as np
import numpy.typing as npt

from neulig_ray.seeds import stable_generator
from neulig_ray.tasks._base import Split, task
from neulig_ray.tasks.drawing import font_digits, raster
from neulig_ray.tasks.reading import splits

_COUNTS = {"train": 900, "val": 297, "test": 600}


def _enlarged(rng: np.random.Generator, small: raster.Floats) -> npt.NDArray[np.uint8]:
    count = len(small)
    frame = raster.scatter(rng, count, shift=3, scale=(10, 13), tilt=0)
    mask = raster.sample(small, np.arange(count), frame, texels=4)
    canvas = raster.dark(rng, count, high=60)
    raster.paint(canvas, mask, raster.light(rng, count, saturation=0.8))
    return raster.develop(rng, canvas, noise=12)


@task(
    "digits",
    class_names=font_digits.CLASS_NAMES,
    templates=font_digits.TEMPLATES,
    source="scikit-learn's load_digits (UCI optical recognition, test part): 1797 real images of 8x8",
    pretraining=lambda seed, count: font_digits.stream("digits", seed, count, saturation=0.7),
)
def digits(seed: int) -> dict[str, Split]:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    small = (pixels.reshape(-1, 8, 8) / 16).astype(np.float32)
    labels = labels.astype(np.int64)
    return {
        name: Split(_enlarged(stable_generator("digits", name, seed), small[which]), labels[which])
        for name, which in splits.stratified("digits", seed, labels, _COUNTS).items()
    }
