"""Opening foreign image files: only formats that data sets are made of, only sizes that memory holds."""

import io
import re
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from PIL.Image import Image

# All are decoded within the process. Of the others EPS starts Ghostscript, and some are documents.
FORMATS: Final = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
MEGAPIXELS: Final = 64
_SLOW_MEGAPIXELS: Final = 8  # where Pillow decodes byte by byte in Python
_MOST_SCANS: Final = 200  # of a JPEG: cameras write 1, progressive encoders about 10
_TILE_WIDTH, _TILE_LENGTH = 322, 323  # tags of TIFF
_SCAN: Final = b"\xff\xda"
_MARKER: Final = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # what ends the coded data of a scan


class BadImage(ValueError):
    """An image that cannot be used; its message is for people and says what would help."""


def opened(source: Path | bytes) -> "Image":
    """An image file, or its bytes, with the header read and nothing decoded; to be closed.

    Its content says which of FORMATS it is, whatever its name says. Raises BadImage for more than 64
    megapixels, for what takes far more time or memory than its size tells, and for no file;
    PIL.UnidentifiedImageError for any other format.
    """
    from PIL import Image, UnidentifiedImageError

    if isinstance(source, Path) and not source.is_file():
        raise BadImage("it is no regular file" if source.exists() else "there is no such file")
    if not (len(source) if isinstance(source, bytes) else source.stat().st_size):
        raise BadImage("it is empty: 0 bytes")
    try:
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
    except UnidentifiedImageError:
        raise UnidentifiedImageError(f"cannot identify it: {_other_format(source)}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage(f"it has more than {MEGAPIXELS} megapixels: make it smaller ({error})") from None
    try:
        _check(image)
    except BaseException:
        image.close()
        raise
    return image


def check_pixels(width: int, height: int, what: str = "it", most: int = MEGAPIXELS) -> None:
    """Raises BadImage for more than `most` megapixels."""
    if width * height > most * 1_000_000:
        raise BadImage(f"{what} is {width}x{height} pixels, more than {most} megapixels: make it smaller")


def _check(image: Any) -> None:
    width, height = image.size
    check_pixels(width, height)
    if image.format == "PPM" and image.tile and image.tile[0][0] != "raw":
        check_pixels(width, height, "a PPM as text, or whose largest value is unusual,", _SLOW_MEGAPIXELS)
    if image.format == "TIFF":  # libtiff has memory for a whole tile, however small the image is
        tile = [int(image.tag_v2.get(tag, 0)) for tag in (_TILE_WIDTH, _TILE_LENGTH)]
        check_pixels(tile[0], tile[1], "a tile of it")
    if image.format in ("JPEG", "MPO") and (scans := _scans(image.fp)) > _MOST_SCANS:
        raise BadImage(f"a JPEG of more than {_MOST_SCANS} scans ({scans}): save it anew")


def _scans(file: IO[bytes]) -> int:
    """How often a JPEG goes over all its pixels: a few bytes of the file each time."""
    place = file.tell()
    file.seek(0)
    data = file.read()
    file.seek(place)
    if data.count(_SCAN) <= _MOST_SCANS:  # also counts what only looks like one: in thumbnails, in videos
        return 1
    scans, at = 0, 2
    while (marker := data[at : at + 2]) and marker != b"\xff\xd9":
        scans += marker == _SCAN
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        found = _MARKER.search(data, at)
        if found is None:
            break
        at = found.start()
    return scans


def _other_format(source: Path | bytes) -> str:
    """Why nothing of FORMATS reads it: the name of its format, by the first bytes alone."""
    from PIL import Image

    Image.init()
    if isinstance(source, bytes):
        prefix = source[:16]
    else:
        with source.open("rb") as file:
            prefix = file.read(16)
    names = [
        name for name, (_, accept) in Image.OPEN.items() if accept is not None and accept(prefix) is True
    ]
    if found := next((name for name in names if name not in FORMATS), None):
        return f"its content is {found}, which is not read: save it as PNG or JPEG"
    if names:
        return f"it begins as {names[0]} does, and its header is damaged"
    return f"its content is none of {', '.join(FORMATS)}"
