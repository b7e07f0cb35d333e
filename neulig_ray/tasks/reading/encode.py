"""From pictures to blocks of uint8 arrays: decoding, fitting to a size, views of the training transform."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from neulig_ray.errors import InputError
from neulig_ray.seeds import stable_generator
from neulig_ray.tasks.reading.crops import crop_boxes
from neulig_ray.tasks.reading.eight_bits import upright_rgb
from neulig_ray.tasks.reading.opening import BadImage, check_pixels
from neulig_ray.tasks.reading.pictures import Labels, Pictures

if TYPE_CHECKING:
    from PIL.Image import Image

# In the names of tasks that are read from files. 2: EXIF, more than 8 bits, what is left out.
DECODING: Final = 2
MOST_DAMAGED = 0.01
_LARGE: Final = 16_000_000  # pixels: of larger images one at a time is decoded
_one_large = threading.Lock()


@dataclass(frozen=True)
class Crops:
    """The training transform, drawn anew for each view of each image: size x size pixels."""

    task: str
    size: int
    views: int


@dataclass
class DecodeErrors:
    """Images of one split that cannot be used; more than 1 % of them is an InputError."""

    where: str
    total: int
    names: list[str] = field(default_factory=list)

    def add(self, name: str, error: Exception) -> None:
        kind = "" if isinstance(error, BadImage) else f"{type(error).__name__}: "
        self.names.append(f"{name} ({kind}{error})")
        if len(self.names) > MOST_DAMAGED * self.total:
            shown = "; ".join(self.names[:5])
            raise InputError(
                f"{self.where}: more than {MOST_DAMAGED:.0%} of {self.total} images cannot be used: {shown}. "
                "Mend these or take them out; if they are damaged, fetch or place the data again"
            )


def encode(
    pictures: Pictures,
    size: int | None,
    per_block: int,
    damaged: DecodeErrors,
    crops: Crops | None = None,
    threads: int = 1,
) -> Iterator[tuple[np.ndarray, Labels]]:
    """Blocks of at most `per_block` images uint8 (B, H, W, 3), and their labels; damaged ones are left out.

    `size` is the side in pixels that every image is fitted to; None where they have one size as they are.
    With `crops`, all images follow once for each view. No more than two blocks are in memory at once.
    """
    views = range(crops.views) if crops else (None,)
    items = [(view, row) for view in views for row in range(len(pictures))]

    def read(item: tuple[int | None, int]) -> np.ndarray | Exception:
        view, row = item
        try:
            with pictures.read(row) as stored:
                large = stored.width * stored.height > _LARGE
                with _one_large if large else nullcontext():
                    image = upright_rgb(stored)
                    if crops is not None:
                        return np.asarray(_cropped(image, crops, view or 0, row))
                    return np.asarray(image if size is None else fitted(image, size))
        except Exception as error:
            return error

    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(items), per_block):
            block = items[start : start + per_block]
            images: list[np.ndarray] = []
            rows: list[int] = []
            for (view, row), found in zip(block, pool.map(read, block), strict=True):
                if not isinstance(found, Exception):
                    _check_shape(found, row, images, rows, pictures, damaged.where)
                    images.append(found)
                    rows.append(row)
                elif not view:  # counted once, not for each of its views
                    damaged.add(pictures.describe(row), found)
            if images:
                yield np.stack(images), pictures.labels[rows]


def _check_shape(
    image: np.ndarray, row: int, images: list[np.ndarray], rows: list[int], pictures: Pictures, where: str
) -> None:
    if images and image.shape != images[0].shape:
        raise InputError(
            f"{where}: {pictures.describe(row)} is {_pixels(image)}, but {pictures.describe(rows[0])} is "
            f"{_pixels(images[0])}: images of this data set have one size. Fetch or place the data again"
        )


def _pixels(image: np.ndarray) -> str:
    return f"{image.shape[1]}x{image.shape[0]} pixels"


def fitted(image: "Image", size: int) -> "Image":
    """open_clip's evaluation transform: the shorter side resized to `size` (bicubic), then the middle.

    Raises BadImage for a picture so long and thin that it would be above 64 megapixels in between.
    """
    from PIL.Image import Resampling

    shorter = min(image.size)
    if shorter != size:
        width, height = (int(size * side / shorter) for side in image.size)
        check_pixels(width, height, f"it is {image.width}x{image.height} pixels, and fitted to {size} it")
        image = image.resize((width, height), Resampling.BICUBIC)
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def _cropped(image: "Image", crops: Crops, view: int, row: int) -> "Image":
    from PIL.Image import Resampling

    rng = stable_generator(crops.task, "view", view, row)
    left, top, right, bottom = map(int, crop_boxes(rng, 1, image.width, image.height)[0])
    return image.crop((left, top, right, bottom)).resize((crops.size, crops.size), Resampling.BICUBIC)
