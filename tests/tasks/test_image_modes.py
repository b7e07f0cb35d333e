"""What image files hold besides upright 8-bit RGB arrives as it looks, or is refused by file and mode."""

import io
import struct
from collections.abc import Callable
from pathlib import Path

import data_files
import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from test_folder_tasks import folder

from neulig_ray.errors import InputError
from neulig_ray.tasks import TASKS, find_task
from neulig_ray.tasks.reading.eight_bits import upright_rgb
from neulig_ray.tasks.reading.files import fetch, pictures
from neulig_ray.tasks.reading.opening import BadImage, opened

RAMP = np.linspace(0, 65535, 48 * 40).reshape(40, 48).astype(np.uint16)
ORIENTATION = 0x0112


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def read(data: bytes) -> np.ndarray:
    with opened(data) as image:
        return np.asarray(upright_rgb(image))


def tiff(mode: str, values: np.ndarray, bits: int, photometric: int = 1, order: str = "<") -> bytes:
    """A TIFF written here byte by byte: grey, one strip; Pillow writes neither 12 bits nor white as 0."""
    data = values.astype(f"{order}u2").tobytes()
    if bits == 12:
        pairs = values.reshape(-1, 2).astype(np.uint32)
        packed = (pairs[:, 0] << 12) | pairs[:, 1]
        data = np.stack([packed >> 16, packed >> 8 & 255, packed & 255], 1).astype(np.uint8).tobytes()
    height, width = values.shape
    tags = [(256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, 1), (262, 3, photometric),
            (273, 4, 8), (277, 3, 1), (278, 4, height), (279, 4, len(data))]  # fmt: skip
    entries = b"".join(
        struct.pack(order + ("HHIHxx" if kind == 3 else "HHII"), tag, kind, 1, value)
        for tag, kind, value in tags
    )
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8 + len(data)) + data
    return head + struct.pack(order + "H", len(tags)) + entries + bytes(4)


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values.astype(np.uint8)[:, :, None], 3, axis=2)


DEEP: dict[str, Callable[[], bytes]] = {
    "F1-png-I;16": lambda: saved(Image.fromarray(RAMP), "PNG"),
    "F1-tiff-I;16": lambda: saved(Image.fromarray(RAMP), "TIFF"),
    "F1-tiff-I;16B": lambda: tiff("I;16B", RAMP, 16, order=">"),
    "tiff-deflated": lambda: saved(Image.fromarray(RAMP), "TIFF", compression="tiff_deflate"),
    "pgm": lambda: b"P5 48 40 65535\n" + RAMP.astype(">u2").tobytes(),
    "pgm-as-text": lambda: b"P2 48 40 65535\n" + " ".join(map(str, RAMP.ravel())).encode(),
    "tiff-of-12-bits": lambda: tiff("I;16", RAMP >> 4, 12),
    "tiff-white-is-zero": lambda: tiff("I;16", 65535 - RAMP, 16, photometric=0),
    "ppm-of-16-bits": lambda: b"P6 48 40 65535\n" + np.repeat(RAMP, 3).astype(">u2").tobytes(),
}


@pytest.mark.parametrize("name", DEEP)
def test_more_than_8_bits_keep_the_upper_8(name: str) -> None:
    found = read(DEEP[name]()).astype(int)
    assert np.abs(found - grey(RAMP >> 8)).max() <= (name == "ppm-of-16-bits")  # Pillow rounds there


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", pytest.param("I;16N", id="F1-I;16N")])
def test_every_16_bit_mode_of_pillow(mode: str) -> None:
    """Also of an image that a plugin's reader hands over without a file."""
    order = ">" if mode == "I;16B" else "<"
    image = Image.frombytes(mode, (48, 40), RAMP.astype(f"{order}u2").tobytes(), "raw", mode)
    assert np.array_equal(np.asarray(upright_rgb(image)), grey(RAMP >> 8))


BYTES = (RAMP >> 8).astype(np.uint8)
COLOURS = np.stack([BYTES, 255 - BYTES, BYTES // 2], 2)


WHITE = Image.new("RGB", (48, 40), "white")


def indexed() -> Image.Image:
    return Image.fromarray(COLOURS).quantize(16)


def palette(**options: object) -> bytes:
    return saved(indexed(), "PNG", **options)


def array(values: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    return saved(Image.fromarray(values), kind, **options)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(lambda: array(BYTES), grey(BYTES), id="L"),
        pytest.param(lambda: array(np.stack([BYTES, BYTES * 0], 2)), grey(BYTES), id="LA-transparent"),
        pytest.param(
            lambda: array(np.concatenate([COLOURS, COLOURS[:, :, :1] * 0], 2)), COLOURS, id="RGBA-transparent"
        ),
        pytest.param(
            lambda: saved(Image.fromarray((BYTES > 99).astype(np.uint8) * 255).convert("1"), "PNG"),
            grey((BYTES > 99) * 255),
            id="1-bit",
        ),
        pytest.param(lambda: palette(), np.asarray(indexed().convert("RGB")), id="P"),
        pytest.param(
            lambda: palette(transparency=bytes([0, 9, 80])),
            np.asarray(indexed().convert("RGB")),
            id="P-with-transparency",
        ),
        pytest.param(lambda: array(BYTES.astype(np.int32), "TIFF"), grey(BYTES), id="F1-I-within-bytes"),
        pytest.param(lambda: array(BYTES.astype(np.float32), "TIFF"), grey(BYTES), id="F1-F-within-bytes"),
        pytest.param(lambda: array(COLOURS, save_all=True, append_images=[WHITE]), COLOURS, id="APNG-first"),
        pytest.param(
            lambda: array(COLOURS, "TIFF", save_all=True, append_images=[WHITE]),
            COLOURS,
            id="TIFF-first-page",
        ),
        pytest.param(lambda: array(COLOURS, icc_profile=b"x" * 200), COLOURS, id="ICC"),
    ],
)
def test_other_modes_arrive_as_pillow_has_them(data: Callable[[], bytes], expected: np.ndarray) -> None:
    assert np.array_equal(read(data()), expected)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_is_not_inverted(kind: str) -> None:
    image = Image.new("RGB", (16, 16), (200, 120, 30)).convert("CMYK")
    assert np.abs(read(saved(image, kind)).astype(int) - (200, 120, 30)).max() <= 4


@pytest.mark.parametrize("mode", ["YCbCr", "LAB", "HSV"])
def test_other_colour_spaces(mode: str) -> None:
    image = Image.new(mode, (8, 8), (120, 130, 140))
    image = opened(saved(image, "TIFF")) if mode != "HSV" else image
    assert np.array_equal(np.asarray(upright_rgb(image)), np.asarray(image.convert("RGB")))


REFUSED = [
    pytest.param(lambda: np.array([[0, 256]], np.int32), r"mode I .* from 0 to 256", id="F1-I-beyond-255"),
    pytest.param(
        lambda: np.array([[0, 70000]], np.int32), r"mode I .* from 0 to 70000", id="I-beyond-16-bits"
    ),
    pytest.param(lambda: np.array([[-1, 255]], np.int32), r"mode I .* from -1 to 255", id="I-negative"),
    pytest.param(lambda: np.array([[0, 300.5]], np.float32), r"mode F .* to 300\.5", id="F1-F-beyond-255"),
    pytest.param(lambda: np.array([[-0.5, 9]], np.float32), r"mode F .* from -0\.5", id="F-negative"),
    pytest.param(lambda: np.array([[0, np.nan]], np.float32), "mode F .* NaN or infinite", id="F1-F-NaN"),
    pytest.param(lambda: np.array([[1, np.inf]], np.float32), "mode F .* NaN or infinite", id="F-infinite"),
    pytest.param(lambda: np.array([[0, 1]], np.float32), "mode F .* from 0 to 1: .*black", id="F-of-0-to-1"),
]


@pytest.mark.parametrize(("values", "message"), REFUSED)
def test_values_that_8_bits_do_not_hold_are_refused(values: Callable[[], np.ndarray], message: str) -> None:
    with pytest.raises(BadImage, match=message):
        read(saved(Image.fromarray(values()), "TIFF"))


@pytest.mark.parametrize(("values", "message"), REFUSED)
def test_they_are_refused_by_file_and_mode(
    tmp_path: Path, values: Callable[[], np.ndarray], message: str
) -> None:
    path = folder(tmp_path, train=3, test=3)
    Image.fromarray(values()).save(path / "test/emu/wide.tiff")
    with pytest.raises(InputError, match=rf"test/emu/wide\.tiff \({message}"):
        find_task(f"x=folder:{path}").splits(0)


# EXIF


def marked(size: tuple[int, int] = (60, 40)) -> Image.Image:
    """Upright: red above, green below on the left, blue below on the right."""
    image = Image.new("RGB", size, (255, 0, 0))
    image.paste((0, 255, 0), (0, size[1] // 2, size[0] // 2, size[1]))
    image.paste((0, 0, 255), (size[0] // 2, size[1] // 2, *size))
    return image


# What a camera stores for each orientation: the inverse of how it is to be turned.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def photograph(orientation: int, kind: str = "JPEG", mode: str = "RGB") -> bytes:
    method = STORED[orientation]
    image = marked().convert(mode)
    image = image if method is None else image.transpose(method)
    if kind == "TIFF":
        tags = ImageFileDirectory_v2()
        tags[ORIENTATION] = orientation
        return saved(image, kind, tiffinfo=tags)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return saved(image, kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))


def is_upright(found: np.ndarray, colour: bool = True) -> bool:
    expected = np.asarray(marked() if colour else marked().convert("L").convert("RGB")).astype(int)
    return found.shape == expected.shape and np.abs(found - expected).mean() < 8


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [pytest.param(n, id=f"F11-{n}") for n in STORED])
def test_photographs_stand_upright(orientation: int, kind: str) -> None:
    assert is_upright(read(photograph(orientation, kind)))


@pytest.mark.parametrize("orientation", STORED)
def test_grey_of_16_bits_is_turned_too(orientation: int) -> None:
    method = STORED[orientation]
    deep = Image.fromarray((np.asarray(marked().convert("L")).astype(np.uint16)) << 8)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = saved(deep if method is None else deep.transpose(method), "PNG", exif=exif)
    assert is_upright(read(data), colour=False)


def test_what_is_converted_or_turned_already_is_not_turned_again() -> None:
    """torchvision converts what it opens, which keeps the EXIF; `datasets` may turn what it decodes."""
    from PIL import ImageOps

    with opened(photograph(6)) as image:
        assert is_upright(np.asarray(upright_rgb(image.convert("RGB"))))
        assert is_upright(np.asarray(upright_rgb(ImageOps.exif_transpose(image))))
        again = upright_rgb(image)
        assert is_upright(np.asarray(upright_rgb(again)))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0MM", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0" + bytes(40), b"nonsense"]
)
def test_damaged_exif_is_no_damaged_picture(exif: bytes) -> None:
    assert is_upright(read(saved(marked(), "JPEG", exif=exif, quality=95)))


@pytest.mark.parametrize("orientation", [0, 9, 300])
def test_an_orientation_that_is_none(orientation: int) -> None:
    tag = Image.Exif()
    tag[ORIENTATION] = orientation
    assert is_upright(read(saved(marked(), "JPEG", exif=tag, quality=95)))


def test_xmp_says_it_as_well() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    data = saved(marked().transpose(STORED[6]), "JPEG", xmp=xmp, quality=95)
    assert is_upright(read(data))


# Every reader


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NEULIG_DATA", str(tmp_path / "root"))
    return tmp_path / "root"


def of_folder(root: Path, data: bytes) -> str:
    path = folder(root / "f", train=3, test=3)
    (path / "test/cat/000.png").write_bytes(data)
    return f"x=folder:{path}"


def of_hub(root: Path, data: bytes) -> str:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"img": datasets.Image(), "kind": datasets.ClassLabel(names=["a", "b"])})
    (root / "x").mkdir(parents=True)
    for split in ("train", "test"):
        plain = saved(Image.new("RGB", (60, 40)), "PNG")
        images = [data, *[plain] * 7]
        cells = {"img": [{"bytes": b, "path": None} for b in images], "kind": [0, 1] * 4}
        datasets.Dataset.from_dict(cells, features=features).to_parquet(str(root / f"x/{split}-0.parquet"))
    return "x=hub:me/x?image=img&label=kind"


def of_dtd(root: Path, data: bytes) -> str:
    data_files.dtd(root, "dtd")
    name = TASKS["dtd"].files.names.carried[0]
    (root / f"dtd/dtd/images/{name}/{name}_test0.jpg").write_bytes(data)
    return "dtd"


def of_pets(root: Path, data: bytes) -> str:
    data_files.pets(root, "oxford-iiit-pet")
    name = TASKS["oxford-iiit-pet"].class_names[0].replace(" ", "_")
    (root / f"oxford-iiit-pet/images/{name}_test0.jpg").write_bytes(data)
    return "oxford-iiit-pet"


def of_gtsrb(root: Path, data: bytes) -> str:
    data_files.gtsrb(root, "gtsrb")
    (root / "gtsrb/GTSRB/Final_Test/Images/00000.ppm").write_bytes(data)
    return "gtsrb"


READERS = [of_folder, of_hub, of_dtd, of_pets, of_gtsrb]


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_turns_and_scales(root: Path, reader: Callable[[Path, bytes], str]) -> None:
    entry = reader(root, photograph(6))
    part = pictures(find_task(entry), 0)["test"]
    with part.read(0) as image:
        assert is_upright(np.asarray(upright_rgb(image)))


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_keeps_16_bits(root: Path, reader: Callable[[Path, bytes], str]) -> None:
    entry = reader(root, saved(Image.fromarray(RAMP), "PNG"))
    task = find_task(entry)
    fetch(task)
    with pictures(task, 0)["test"].read(0) as image:
        assert np.array_equal(np.asarray(upright_rgb(image)), grey(RAMP >> 8))


def test_two_classes_told_apart_by_16_bits_of_grey(tmp_path: Path) -> None:
    """F1 as it was met: all of it was stored white."""
    for split in ("train", "test"):
        for name, low in (("cat", 0), ("dog", 30000)):
            for i in range(10):
                path = tmp_path / split / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                values = np.linspace(low, low + 30000, 576).reshape(24, 24) + i + 100 * len(split)
                Image.fromarray(values.astype(np.uint16)).save(path)
    test = find_task(f"x=folder:{tmp_path}").splits(0)["test"]
    means = [test.images[test.labels == label].mean() for label in (0, 1)]
    assert 50 < means[0] < 70
    assert 165 < means[1] < 185
