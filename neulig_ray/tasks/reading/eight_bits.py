"""Upright RGB of 8 bits from whatever an image file holds.

Pillow's `convert("RGB")` clips what has more than 8 bits, so that 16-bit grey becomes white, and leaves
photographs on the side that the camera was held on. Neither is told. What it drops otherwise is dropped here
too, as in CLIP's own preprocessing: transparency (the colours below it remain), colour profiles, and all
frames but the first.
"""

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from neulig_ray.tasks.reading.opening import BadImage

if TYPE_CHECKING:
    from PIL.Image import Image, Transpose

_ORIENTATION: Final = 0x0112
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # of TIFF
_WIDE_FORMATS: Final = ("PNG", "PPM")  # their mode I is 16 bits: Pillow scales it to 65535


def upright_rgb(image: "Image") -> "Image":
    """`image` decoded, turned as its EXIF says, in mode RGB.

    16-bit grey keeps its upper 8 bits, as Pillow itself has it of 16-bit colour. Modes I and F (32 bits) have
    no range of their own: BadImage for values that 8 bits do not hold. Else raises what decoders raise.
    """
    image.load()
    turn = _turn(image)
    image = _eight_bits(image)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the same colours, without Pillow's warning
    if image.mode != "RGB":
        image = image.convert("RGB")
    if turn is not None:
        image = image.transpose(turn)
        image.info = {}  # the EXIF is done with: never turned twice
    return image


def _turn(image: "Image") -> "Transpose | None":
    # PIL.ImageOps.exif_transpose also writes the EXIF anew, and fails on data that many a camera writes.
    from PIL.Image import Transpose

    with suppress(Exception):  # damaged EXIF does not make a damaged picture
        return {
            2: Transpose.FLIP_LEFT_RIGHT,
            3: Transpose.ROTATE_180,
            4: Transpose.FLIP_TOP_BOTTOM,
            5: Transpose.TRANSPOSE,
            6: Transpose.ROTATE_270,
            7: Transpose.TRANSVERSE,
            8: Transpose.ROTATE_90,
        }.get(image.getexif().get(_ORIENTATION, 1))
    return None


def _eight_bits(image: "Image") -> "Image":
    from PIL import Image

    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        bits, inverted = _range(image)
        values = values.astype(np.uint16)
        return Image.fromarray(
            (((1 << bits) - 1 - values if inverted else values) >> (bits - 8)).astype(np.uint8)
        )
    if image.mode == "I" and image.format in _WIDE_FORMATS:
        return Image.fromarray((values >> 8).astype(np.uint8))
    _check_values(image.mode, values)
    return Image.fromarray(np.rint(values).astype(np.uint8))


def _range(image: Any) -> tuple[int, bool]:
    """How many bits the values of a mode of 16 use, and whether 0 is white: as a TIFF's header says."""
    if image.format != "TIFF":
        return 16, False
    stored = image.tag_v2.get(_BITS_PER_SAMPLE, (16,))
    bits = stored[0] if isinstance(stored, tuple) else stored
    return max(8, min(16, int(bits))), image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO


def _check_values(mode: str, values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise BadImage(f"mode {mode} (32 bits) with NaN or infinite values")
    low, high = values.min(), values.max()
    if low < 0 or high > 255:
        raise BadImage(
            f"mode {mode} (32 bits) with values from {low:g} to {high:g}: the mode has no range of its own, "
            "and 8 bits hold 0 to 255. Save it with 8 or 16 bits"
        )
    if mode == "F" and 0 < high <= 1:
        raise BadImage(
            f"mode F (32 bits) with values from {low:g} to {high:g}: 8 bits make black of it. Save it with "
            "8 or 16 bits"
        )
