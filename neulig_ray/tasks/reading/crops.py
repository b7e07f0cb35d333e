"""open_clip's training transform: a random box of at least 90 % of the area, resized to a square; no flip.

Both its uses draw their boxes here: the views of protocol `paper`, which are cut out of decoded files, and
fine-tuning's augmentation, which is cut out on the device.
"""

import math

import numpy as np
import numpy.typing as npt

CROP_AREA, CROP_RATIO = (0.9, 1.0), (3 / 4, 4 / 3)  # of the image; width to height
TRIES = 10


def crop_boxes(rng: np.random.Generator, count: int, width: int, height: int) -> npt.NDArray[np.int64]:
    """`count` random boxes of images of one size in pixels: left, top, right, bottom, int64 (count, 4).

    Area (uniform) and aspect ratio (log-uniform) in their ranges, as far as the box fits into the image: ten
    tries; then the largest box in the middle whose aspect ratio is within the range.
    """
    boxes = np.tile(_middle(width, height), (count, 1))
    waiting = np.arange(count)
    for _ in range(TRIES):
        area = width * height * rng.uniform(*CROP_AREA, len(waiting))
        ratio = np.exp(rng.uniform(math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1]), len(waiting)))
        w = np.rint(np.sqrt(area * ratio)).astype(np.int64)
        h = np.rint(np.sqrt(area / ratio)).astype(np.int64)
        fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
        w, h = w[fits], h[fits]
        left, top = rng.integers(width - w + 1), rng.integers(height - h + 1)
        boxes[waiting[fits]] = np.stack([left, top, left + w, top + h], axis=1)
        waiting = waiting[~fits]
    return boxes


def _middle(width: int, height: int) -> tuple[int, int, int, int]:
    w = min(width, round(height * CROP_RATIO[1]))
    h = min(height, round(width / CROP_RATIO[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
