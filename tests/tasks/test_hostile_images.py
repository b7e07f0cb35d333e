"""Images that would start programs, or take memory and time beyond all measure: refused, by name, at once."""

import io
import json
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import data_files
import numpy as np
import pytest
from PIL import EpsImagePlugin, Image
from test_folder_tasks import folder

from neulig_ray.errors import InputError
from neulig_ray.tasks import TASKS, find_task
from neulig_ray.tasks.reading.encode import DecodeErrors, encode, fitted
from neulig_ray.tasks.reading.opening import BadImage, opened
from neulig_ray.tasks.reading.pictures import Pictures

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n0 0 8 8 rectfill\nshowpage\n%%EOF\n"


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *more: bytes) -> bytes:
    """A black PNG of a few kilobytes, however large."""
    packer, row = zlib.compressobj(9), bytes(1 + width * 3)
    body = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", header), *more, chunk(b"IDAT", body), chunk(b"IEND", b"")]
    )


def declared_png(side: int) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"")


def declared_gif(side: int) -> bytes:
    screen, frame = struct.pack("<HH", side, side), struct.pack("<HHHH", 0, 0, side, side)
    return b"GIF89a" + screen + b"\x80\0\0" + bytes(6) + b"," + frame + b"\0\x02\x02\x4c\x01\0;"


def tiff_of_one_tile(side: int) -> bytes:
    """64x64 pixels in a tile of side x side, compressed to nothing."""
    tile = zlib.compress(bytes(4096))
    tags = [(256, 64), (257, 64), (258, 8), (259, 8), (262, 1), (277, 1), (322, side), (323, side),
            (324, 8), (325, len(tile))]  # fmt: skip
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    head = b"II*\0" + struct.pack("<I", 8 + len(tile)) + tile
    return head + struct.pack("<H", len(tags)) + directory + bytes(4)


def jpeg_of_scans(count: int) -> bytes:
    whole = saved(Image.new("L", (1000, 1000)), "JPEG", progressive=True)
    last = whole[whole.rfind(b"\xff\xda") : -2]
    return whole[:-2] + last * count + whole[-2:]


def prepared(entry: str) -> np.ndarray:
    return find_task(entry).splits(0)["test"].images


# Formats


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".ppm"])
@pytest.mark.parametrize(
    ("content", "name"),
    [
        pytest.param(EPS, "EPS", id="A2-eps"),
        pytest.param(b"\xc5\xd0\xd3\xc6" + bytes(28) + EPS, "EPS", id="eps-with-preview"),
        pytest.param(b"8BPS\0\1" + bytes(6) + b"\0\3\0\0\0\x08\0\0\0\x08\0\x08\0\3", "PSD", id="psd"),
        pytest.param(b"\xd7\xcd\xc6\x9a" + bytes(40), "WMF", id="wmf"),
        pytest.param(b"%PDF-1.7\n", "none of JPEG", id="pdf"),
        pytest.param(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "none of JPEG", id="svg"),
        pytest.param(saved(Image.new("RGB", (8, 8)), "ICO"), "ICO", id="icon"),
        pytest.param(saved(Image.new("RGB", (8, 8)), "PCX"), "PCX", id="pcx"),
    ],
)
def test_a_format_that_is_not_read_whatever_its_suffix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, name: str, suffix: str
) -> None:
    """And no program is started for it: Pillow would call Ghostscript."""

    def started(*arguments: object, **_: object) -> None:
        raise AssertionError(f"a program was started: {arguments}")

    monkeypatch.setattr(EpsImagePlugin, "gs_binary", "gs")
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", started)
    for starts in ("Popen", "run", "check_call", "check_output"):
        monkeypatch.setattr(subprocess, starts, started)
    path = folder(tmp_path, train=3, test=3)
    bad = path / f"test/cat/bad{suffix}"
    bad.write_bytes(content)
    with pytest.raises(InputError, match=rf"bad\{suffix} .*{name}"):
        prepared(f"x=folder:{path}")


def test_a_format_that_is_not_read_in_a_data_set_of_torchvisions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEULIG_DATA", str(tmp_path))
    data_files.dtd(tmp_path, "dtd")
    next((tmp_path / "dtd/dtd/images").rglob("*_test0.jpg")).write_bytes(EPS)
    with pytest.raises(InputError, match=r"_test0\.jpg .*EPS, which is not read"):
        TASKS["dtd"].splits(0)


def test_a_format_that_is_not_read_in_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("NEULIG_DATA", str(tmp_path / "data"))
    features = datasets.Features({"img": datasets.Image(), "kind": datasets.ClassLabel(names=["a", "b"])})
    good = saved(Image.new("RGB", (8, 8)), "PNG")
    (tmp_path / "table").mkdir()
    for split in ("train", "test"):
        images = [good] * 11 + [EPS if split == "test" else good]
        cells = {"img": [{"bytes": b, "path": "x.png"} for b in images], "kind": [0, 1] * 6}
        datasets.Dataset.from_dict(cells, features=features).to_parquet(
            str(tmp_path / f"table/{split}-0.parquet")
        )
    with pytest.raises(InputError, match=r"row 11 of .* test .*EPS, which is not read"):
        prepared(f"x=hub:{tmp_path}/table?image=img&label=kind")


@pytest.mark.parametrize(
    "kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", pytest.param("MPO", id="MPO-of-cameras")]
)
def test_pictures_of_other_suffixes_are_read_as_what_they_are(tmp_path: Path, kind: str) -> None:
    """As in Oxford-IIIT Pet, where some .jpg are GIF and PNG: Pillow decodes these itself."""
    path = folder(tmp_path, train=3, test=3)
    more = {"save_all": True, "append_images": [Image.new("RGB", (9, 7))]} if kind == "MPO" else {}
    (path / "test/cat/000.png").write_bytes(saved(Image.new("RGB", (9, 7), (240, 0, 0)), kind, **more))
    assert abs(int(prepared(f"x=folder:{path}")[0, 0, 0, 0]) - 240) < 8


# Sizes


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(lambda: png(8200, 8000), id="A2-png-of-66-megapixels"),
        pytest.param(lambda: declared_png(60000), id="png-declared"),
        pytest.param(lambda: b"P6 30000 30000 255\n" + bytes(30), id="ppm-declared"),
        pytest.param(lambda: declared_gif(65535), id="gif"),
        pytest.param(
            lambda: (
                b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, 50000, 50000, 1, 24, 0, 0, 0, 0, 0, 0)
            ),
            id="bmp-declared",
        ),
        pytest.param(lambda: b"P6 10000 7000 255\n" + bytes(30), id="between-ours-and-pillows-limit"),
        pytest.param(lambda: tiff_of_one_tile(40000), id="tiff-tile"),
        pytest.param(lambda: b"P5 4000 4000 4095\n" + bytes(30), id="ppm-decoded-in-python"),
        pytest.param(lambda: b"P2 4000 4000 255\n" + b"1 " * 30, id="ppm-as-text"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_too_many_pixels_by_the_header_alone(content: Callable[[], bytes], tmp_path: Path) -> None:
    data = content()
    (tmp_path / "x.png").write_bytes(data)
    began = time.process_time()
    for source in (data, tmp_path / "x.png"):
        with pytest.raises(BadImage, match=r"more than (64|8) megapixels"):
            opened(source)
    assert time.process_time() - began < 1


def test_64_megapixels_are_read() -> None:
    with opened(b"P6 8000 8000 255\n" + bytes(30)) as image:
        assert image.size == (8000, 8000)


@pytest.mark.parametrize("size", [(60_000_000, 1), (1, 300_000), (2, 100_000)])
def test_a_thin_picture_is_not_scaled_to_gigabytes(size: tuple[int, int]) -> None:
    with pytest.raises(BadImage, match="fitted to 224"):
        fitted(Image.new("L", size), 224)


def test_a_jpeg_that_goes_over_its_pixels_again_and_again() -> None:
    with pytest.raises(BadImage, match="200 scans"):
        opened(jpeg_of_scans(500))
    with opened(jpeg_of_scans(20)) as image:
        image.load()
    video = saved(Image.new("L", (10, 10)), "JPEG") + b"\xff\xda" * 1000  # a phone's, behind the picture
    with opened(video) as image:
        image.load()


BOMBS: dict[str, Callable[[], bytes]] = {
    "text": lambda: png(8, 8, *[chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(900_000)))] * 100),
    "profile": lambda: png(8, 8, chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(300_000_000), 9))),
    "A2-tile": lambda: tiff_of_one_tile(40000),
    "gif-frames": lambda: saved(
        Image.new("P", (2000, 2000)), "GIF", save_all=True,
        append_images=[Image.new("P", (2000, 2000), i) for i in range(1, 40)],
    ),
    "A2-large-png": lambda: png(12000, 9000),
    "webp-canvas": lambda: b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X"
    + struct.pack("<IB", 10, 2) + bytes(3) + (16383).to_bytes(3, "little") * 2,
    "A2-jpeg-scans": lambda: jpeg_of_scans(30_000),
}  # fmt: skip


# Each bomb in a child of its own, forked after the imports: KiB, seconds of the processor, the error.
_IN_CHILDREN = """
import json, os, resource, signal, sys; from pathlib import Path
from neulig_ray.tasks.reading.eight_bits import upright_rgb
from neulig_ray.tasks.reading.opening import opened
import PIL.Image; PIL.Image.init()
for name in sys.argv[1:]:
    if os.fork() == 0:
        signal.alarm(60)
        before, error = resource.getrusage(resource.RUSAGE_SELF), None
        try:
            with opened(Path(name)) as image: upright_rgb(image)
        except Exception as caught:
            error = str(caught)
        after = resource.getrusage(resource.RUSAGE_SELF)
        took = after.ru_maxrss - before.ru_maxrss, after.ru_utime - before.ru_utime, error
        Path(f"{name}.json").write_text(json.dumps(took))
        os._exit(0)
    os.wait()
"""


@pytest.fixture(scope="module")
def exploded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bombs")
    for name, make in BOMBS.items():
        (folder / name).write_bytes(make())
    subprocess.run([sys.executable, "-c", _IN_CHILDREN, *BOMBS], cwd=folder, check=True, timeout=300)
    return folder


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_takes_little_memory_and_time(name: str, exploded: Path) -> None:
    kib, seconds, error = json.loads((exploded / f"{name}.json").read_text())
    assert kib < 256 * 1024, error
    assert seconds < 10


def test_images_of_another_size_do_not_pile_up() -> None:
    """A data set of one size: the first image of another ends it, before a block of large ones is full."""
    sides, read = [8, 20] + [8] * 3000, []

    def image(i: int) -> Image.Image:
        read.append(i)
        return Image.new("RGB", (sides[i], sides[i]))

    part = Pictures(np.zeros(len(sides), np.int64), image, str)
    with pytest.raises(InputError, match=r"1 is 20x20 pixels, but 0 is 8x8"):
        list(encode(part, None, len(sides), DecodeErrors("here", len(sides))))
    assert len(read) < len(sides)


# Files that are none


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda p: p.write_bytes(b""), "empty: 0 bytes", id="49-zero-bytes"),
        pytest.param(lambda p: p.symlink_to("/nowhere.png"), "there is no such file", id="link-to-nothing"),
        pytest.param(lambda p: p.mkdir(), "no regular file", id="folder"),
        pytest.param(lambda p: p.symlink_to("/dev/zero"), "no regular file", id="device"),
        pytest.param(lambda p: p.symlink_to(p), "there is no such file", id="link-to-itself"),
    ],
)
def test_no_file(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    make(tmp_path / "x.png")
    with pytest.raises(BadImage, match=message):
        opened(tmp_path / "x.png")
