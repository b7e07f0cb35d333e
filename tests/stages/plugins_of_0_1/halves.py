import numpy as np

from neulig_ray.tasks import Split, task


def _split(seed: int, count: int) -> Split:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, count)
    images = np.zeros((count, 32, 32, 3), np.uint8)
    images[labels == 0, :16] = 255
    images[labels == 1, 16:] = 255
    return Split(images, labels)


@task(
    "halves", class_names=("top", "bottom"), templates=("a picture whose {} is white.",), source="drawn here"
)
def halves(seed: int) -> dict[str, Split]:
    """White in the upper or the lower half."""
    return {name: _split(3 * seed + i, 600) for i, name in enumerate(("train", "val", "test"))}
