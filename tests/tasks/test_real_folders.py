"""Image folders as people, archivers, file servers and other systems leave them."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import data_files
import pytest
from image_folders import CLASSES, folder
from PIL import Image

from neulig_ray.errors import InputError
from neulig_ray.experiment.config import Experiment
from neulig_ray.pipeline.missing_inputs import absent, at_hand
from neulig_ray.pipeline.plan import make_plan
from neulig_ray.stages.tasks import task_job
from neulig_ray.storage.storage import Storage
from neulig_ray.tasks import find_task
from neulig_ray.tasks.reading.files import fetch, pictures
from neulig_ray.tasks.reading.tree import read_tree

COMPOSED, SEPARATE = "caf\u00e9", "cafe\u0301"


def image(path: Path, value: int = 0) -> Path:
    data_files.save(path, Image.new("RGB", (9, 7), (value, value, 200)))
    return path


def notes(path: Path) -> str:
    found = pictures(find_task(f"x=folder:{path}"), 0)
    return "\n".join(dict.fromkeys(note for part in found.values() for note in part.notes))


def classes(path: Path) -> tuple[str, ...]:
    return find_task(f"x=folder:{path}").class_names


def digest(path: Path) -> object:
    return find_task(f"x=folder:{path}").files.identity()


# What is passed over: it is in no count and no fingerprint


@pytest.mark.parametrize("layout", ["", "train"])
@pytest.mark.parametrize(
    ("place", "told"),
    [
        pytest.param("cat/._000.png", "hidden images passed over: 1, such as", id="F9-AppleDouble"),
        pytest.param("cat/deeper/._0.png", "hidden images passed over: 1", id="F9-deeper"),
        pytest.param("cat/.thumbnails/0.png", "", id="hidden-folder-in-a-class"),
        pytest.param(".Trash-1000/files/0.png", "", id="trash"),
        pytest.param(".ipynb_checkpoints/0.png", "", id="notebook-checkpoints"),
        pytest.param("cat/.ipynb_checkpoints/0.png", "", id="notebook-checkpoints-in-a-class"),
        pytest.param("__MACOSX/cat/0.png", "'__MACOSX'", id="F10-MACOSX"),
        pytest.param("cat/__MACOSX/0.png", "'__MACOSX'", id="MACOSX-in-a-class"),
        pytest.param("lost+found/0.png", "'lost.found'", id="F10-lost-found"),
        pytest.param("@eaDir/0.png", "'@eaDir'", id="Synology"),
        pytest.param("cat/@eaDir/000.png/SYNOPHOTO_THUMB_M.jpg", "'@eaDir'", id="Synology-in-a-class"),
        pytest.param("$RECYCLE.BIN/0.png", "RECYCLE", id="Windows-bin"),
        pytest.param("System Volume Information/0.png", "'System Volume Information'", id="Windows-volume"),
        pytest.param("#recycle/0.png", "'#recycle'", id="server-bin"),
        pytest.param("CVS/0.png", "'CVS'", id="CVS"),
        pytest.param("__pycache__/0.png", "'__pycache__'", id="pycache"),
        pytest.param("outside.png", "outside the class folders passed over: 1", id="beside-the-classes"),
        pytest.param("cat/000.gif", r"for their suffix: 1 \(.gif 1\)", id="F26-gif"),
        pytest.param("cat/000.HEIC", r"for their suffix: 1 \(.heic 1\)", id="heic"),
        pytest.param("cat/000", r"for their suffix: 1 \(none 1\)", id="no-suffix"),
        pytest.param("cat/Thumbs.db", "", id="Thumbs.db"),
        pytest.param("cat/desktop.ini", "", id="desktop.ini"),
    ],
)  # fmt: skip
def test_what_is_no_image_of_a_class(tmp_path: Path, place: str, told: str, layout: str) -> None:
    path = folder(tmp_path / ".hidden" / "f", **({layout: 4, "test": 3} if layout else {}))
    before, size = digest(path), len(pictures(find_task(f"x=folder:{path}"), 0)["train"])
    assert notes(path) == ""
    image(tmp_path / "a.png")
    target = path / layout / place
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(tmp_path / "a.png", target)
    assert classes(path) == ("cat", "dog house", "emu")
    assert len(pictures(find_task(f"x=folder:{path}"), 0)["train"]) == size
    assert digest(path) == before
    assert re.search(told, notes(path)) if told else notes(path) == ""


def test_all_that_is_passed_over_is_counted(tmp_path: Path) -> None:
    path = folder(tmp_path)
    for name in CLASSES:
        for number in range(20):
            (path / name / f"{number}.gif").write_bytes(b"GIF89a")
    (path / "cat/notes.txt").write_text("hello")
    assert notes(path).startswith("files passed over for their suffix: 61 (.gif 60, .txt 1); read are .bmp")


def test_a_class_of_nothing_but_what_is_passed_over_says_so(tmp_path: Path) -> None:
    path = folder(tmp_path)
    (path / "ant").mkdir()
    (path / "ant/1.gif").write_bytes(b"GIF89a")
    with pytest.raises(InputError, match=r"ant' has no image .*suffix: 1 \(\.gif 1\)"):
        classes(path)


def test_the_run_tells_it_when_it_prepares_and_the_dry_run_before(tmp_path: Path) -> None:
    path = folder(tmp_path / "f")
    (path / "cat/1.gif").write_bytes(b"GIF89a")
    job, storage = task_job(f"x=folder:{path}", 0, size=32), Storage(str(tmp_path / "s"))
    job.run(storage)
    told = storage.manifest(job.artifact)["info"]["notes"]
    assert [note for note in told if ".gif 1" in note] == told[:1]
    plan = make_plan(Experiment(name="e", archs=("tiny-vit",), tasks=("digits", f"x=folder:{path}"), n=(2,)))
    assert any(".gif 1" in line for line in at_hand(plan))


@pytest.mark.parametrize(
    "kind", [pytest.param("folder", id="F30-folder"), "folder-of-splits", "hub", "hub-placed"]
)
def test_data_that_is_named_is_not_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("NEULIG_DATA", str(tmp_path / "root"))
    given = {"train": 4, "test": 4} if kind == "folder-of-splits" else {}
    entry = f"x=folder:{folder(tmp_path / 'f', **given)}"
    if kind.startswith("hub"):
        place = tmp_path / ("root/x" if kind == "hub-placed" else "somewhere")
        data_files.parquet(place, "eurosat")
        entry = f"x=hub:{'me/x' if kind == 'hub-placed' else place}?image=image&label=label"
    plan = make_plan(Experiment(name="e", archs=("tiny-vit",), tasks=("digits", entry), n=(2,)))
    assert absent(plan, Storage(str(tmp_path / "s"))) == []
    (line,) = at_hand(plan)
    assert str(tmp_path / "f") in line or kind.startswith("hub")
    assert line.startswith("data of x: ")


# Names


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param("hot_dog", "hot dog", id="F12-underscore"),
        pytest.param("Dog", "dog", id="F12-case"),
        pytest.param("hot  dog", "hot dog", id="F12-white-space"),
        pytest.param("Straße", "strasse", id="sharp-s"),
        pytest.param("\ufb01sh", "fish", id="ligature"),
        pytest.param("cat", "cat\u200b", id="invisible-sign"),
        pytest.param("hot\u00a0dog", "hot_dog", id="no-break-space"),
        pytest.param("ＡＢ", "ab", id="full-width"),
    ],
)
def test_two_folders_of_one_spoken_name_are_refused(tmp_path: Path, one: str, other: str) -> None:
    path = folder(tmp_path, train=3, test=3)
    for split in ("train", "test"):
        for number, name in enumerate((one, other)):
            for k in range(3):
                image(path / split / name / f"{k}.png", 10 * number + k)
    with pytest.raises(InputError, match="no head can tell them apart") as caught:
        find_task(f"x=folder:{path}")
    for name in (one, other):
        assert repr(name) in str(caught.value) or ascii(name) in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(" cat", id="F10-blank-in-front"),
        pytest.param("cat ", id="F10-blank-behind"),
        pytest.param("_cat", id="underscore-in-front"),
        pytest.param("__", id="nothing-but-underscores"),
        pytest.param("\u200b", id="nothing-to-see"),
        pytest.param("cat\t", id="tabulator"),
    ],
)
def test_names_that_are_blank_are_refused(tmp_path: Path, name: str) -> None:
    path = folder(tmp_path)
    image(path / name / "1.png")
    with pytest.raises(InputError, match=r"the class name .* is blank, or begins or ends"):
        find_task(f"x=folder:{path}")


SINGLE = {
    "32-class-folder": ("cat",),
    "splits": ("train/cat", "test/cat"),
    "beside-a-hidden-one": ("cat", ".dog"),
    "beside-what-archivers-leave": ("cat", "__MACOSX"),
}


@pytest.mark.parametrize("folders", SINGLE.values(), ids=SINGLE.keys())
def test_a_single_class_is_refused(tmp_path: Path, folders: tuple[str, ...]) -> None:
    """Everybody would be right about all of it."""
    for place in folders:
        for number in range(10):
            image(tmp_path / place / f"{number}.png", number)
    with pytest.raises(InputError, match=r"one class, 'cat'\. It needs two"):
        find_task(f"x=folder:{tmp_path}")


@pytest.mark.parametrize(
    ("train", "test"), [(COMPOSED, SEPARATE), (SEPARATE, COMPOSED), (SEPARATE, SEPARATE)]
)
def test_accents_of_macos_are_the_same_name(tmp_path: Path, train: str, test: str) -> None:
    path = folder(tmp_path, train=3, test=3)
    for split, name in (("train", train), ("test", test)):
        for k in range(3):
            image(path / split / name / f"{k}.png", 20 + k)
    task = find_task(f"x=folder:{path}")
    fetch(task)
    assert task.class_names == (COMPOSED, "cat", "dog house", "emu") or task.class_names[0] == COMPOSED


def test_a_folder_that_was_copied_from_macos_keeps_its_fingerprint(tmp_path: Path) -> None:
    for name in (COMPOSED, SEPARATE):
        path = folder(tmp_path / name.encode().hex())
        for k in range(3):
            image(path / name / f"{name}{k}.png", 20 + k)
    one, other = (digest(tmp_path / name.encode().hex()) for name in (COMPOSED, SEPARATE))
    assert one == other


@pytest.mark.parametrize(
    ("train", "test", "told"),
    [
        pytest.param(COMPOSED, "cafe", r"caf\\xe9", id="F27-with-and-without"),
        pytest.param("z\u0430", "za", r"'z\\u0430'", id="cyrillic"),
        pytest.param("C#", "C++", "'C#'", id="signs-alone"),
        pytest.param("z\u094d", "z\u0947", r"\\u094d", id="signs-that-combine"),
    ],
)
def test_names_that_differ_between_splits_show_how(tmp_path: Path, train: str, test: str, told: str) -> None:
    path = tmp_path / "f"
    for split, name in (("train", train), ("test", test)):
        for k in range(3):
            image(path / split / name / f"{k}.png", k)
            image(path / split / ("C" if "C" in name else "b") / f"{k}.png", 9 + k)
    with pytest.raises(InputError, match=told):
        fetch(find_task(f"x=folder:{path}"))


def test_both_spellings_in_one_folder(tmp_path: Path) -> None:
    path = folder(tmp_path)
    for number, name in enumerate((COMPOSED, SEPARATE)):
        image(path / name / "1.png", number)
    with pytest.raises(InputError, match=r"with composed and with separate accents \('cafe?\\"):
        find_task(f"x=folder:{path}")


def test_names_that_are_no_utf_8(tmp_path: Path) -> None:
    path = folder(tmp_path / "f")
    before = digest(path)
    file = image(tmp_path / "a.png")
    shutil.copy(file, os.fsencode(path / "cat") + b"/\xe9t\xe9.png")  # of an image: it is only a place
    assert digest(path) != before
    part = pictures(find_task(f"x=folder:{path}"), 0)
    described = [p.describe(i) for p in part.values() for i in range(len(p))]
    (odd,) = [name for name in described if "xe9t" in name]
    odd.encode()
    os.mkdir(os.fsencode(path) + b"/caf\xe9")
    shutil.copy(file, os.fsencode(path) + b"/caf\xe9/1.png")
    with pytest.raises(InputError, match=r"caf\\+xe9' is no UTF-8: rename it") as caught:
        find_task(f"x=folder:{path}")
    str(caught.value).encode()


def test_names_as_long_as_they_may_be(tmp_path: Path) -> None:
    path = folder(tmp_path)
    for k in range(10):
        image(path / ("y" * 255) / f"{str(k) * 251}.png", 30 + k)
    fetch(find_task(f"x=folder:{path}"))


# Splits by other names


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("Train", "", "Test"),
        ("TRAIN", "VAL", "TEST"),
        ("train", "validation", "test"),
        ("training", "valid", "testing"),
    ],
)
def test_other_names_of_splits(tmp_path: Path, train: str, val: str, test: str) -> None:
    path = tmp_path / "f"
    for split in filter(None, (train, val, test)):
        folder(path, **{split: 3})
    found = pictures(find_task(f"x=folder:{path}"), 0)
    assert {name: len(part) for name, part in found.items()} == (
        {"train": 9, "val": 9, "test": 9} if val else {"train": 6, "val": 3, "test": 9}
    )
    assert classes(path) == ("cat", "dog house", "emu")


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (("train", "Train", "test"), "has 'Train' and 'train', and both would be its train split"),
        (("train", "val"), "train and val but not both train and test.*rename it to test"),
        (("Training",), "has Training but not both train and test"),
    ],
)
def test_splits_that_are_not_clear(tmp_path: Path, folders: tuple[str, ...], message: str) -> None:
    for name in folders:
        folder(tmp_path / "f", **{name: 3})
    with pytest.raises(InputError, match=message):
        find_task(f"x=folder:{tmp_path / 'f'}")


def test_valid_and_invalid_are_classes(tmp_path: Path) -> None:
    for name in ("valid", "invalid"):
        for k in range(9):
            image(tmp_path / name / f"{k}.png", k)
    assert classes(tmp_path) == ("invalid", "valid")


def test_folders_beside_the_splits_are_told(tmp_path: Path) -> None:
    path = folder(tmp_path, train=3, test=3, unlabeled=2)
    assert "folders beside the splits passed over: 'unlabeled'" in notes(path)


@pytest.mark.parametrize(
    ("split", "told"), [("test", "missing there: 'emu'"), ("train", "only in the data: 'emu'")]
)
def test_a_split_without_the_folder_of_a_class(tmp_path: Path, split: str, told: str) -> None:
    path = folder(tmp_path, train=3, test=3)
    shutil.rmtree(path / split / "emu")
    with pytest.raises(InputError, match=told):
        fetch(find_task(f"x=folder:{path}"))


# Links and rights


def test_links_to_classes_and_images_are_followed(tmp_path: Path) -> None:
    path, elsewhere = folder(tmp_path / "f"), tmp_path / "elsewhere"
    (path / "cat").rename(elsewhere)
    (path / "cat").symlink_to(elsewhere)
    image(tmp_path / "one.png", 99)
    (path / "emu/linked.png").symlink_to(tmp_path / "one.png")
    found = pictures(find_task(f"x=folder:{path}"), 0)
    assert sum(map(len, found.values())) == 31


@pytest.mark.parametrize(
    ("make", "told"),
    [
        pytest.param(lambda p: (p / "cat/x.png").symlink_to(p / "no.png"), "cat/x.png", id="to-nothing"),
        pytest.param(lambda p: (p / "cat/loop").symlink_to(p / "cat"), "cat/loop", id="loop-in-a-class"),
        pytest.param(lambda p: (p / "loop").symlink_to(p), "loop", id="loop-as-a-class"),
        pytest.param(lambda p: (p / "up").symlink_to(p.parent), "up", id="to-the-folder-above"),
        pytest.param(lambda p: (p / "cat/self.png").symlink_to("self.png"), "cat/self.png", id="to-itself"),
        pytest.param(lambda p: os.mkfifo(p / "cat/pipe.png"), "cat/pipe.png", id="pipe"),
    ],
)
def test_links_that_lead_nowhere_are_passed_over_and_told(
    tmp_path: Path, make: Callable[[Path], object], told: str
) -> None:
    path = folder(tmp_path / "f")
    make(path)
    assert sum(len(part) for part in pictures(find_task(f"x=folder:{path}"), 0).values()) == 30
    assert notes(path).endswith(f"passed over: 1, such as {told}")
    digest(path)


def test_one_folder_as_two_classes(tmp_path: Path) -> None:
    path = folder(tmp_path)
    (path / "dog").symlink_to(path / "cat")
    with pytest.raises(InputError, match=r"cat' and .*dog' are one folder"):
        find_task(f"x=folder:{path}")


def test_a_folder_called_like_an_image(tmp_path: Path) -> None:
    path = folder(tmp_path)
    (path / "cat/x.png").mkdir()
    assert sum(len(part) for part in pictures(find_task(f"x=folder:{path}"), 0).values()) == 30


def test_a_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated: whoever runs the tests may read everything."""
    path, real = folder(tmp_path), os.scandir

    def scandir(place: object) -> object:
        if str(place).endswith("emu"):
            raise PermissionError(13, "Permission denied", str(place))
        return real(place)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(InputError, match=r"cannot be read: .*Permission denied.*emu"):
        read_tree("x", path)


def test_an_image_that_may_not_be_read_is_one_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = folder(tmp_path, train=40, test=3), Path.open
    before = digest(path)

    def deny(self: Path, *arguments: object, **more: object) -> object:
        if self.name == "007.png":
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, *arguments, **more)

    monkeypatch.setattr(Path, "open", deny)
    assert digest(path) != before


# Too few images


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        pytest.param({"cat": 1, "dog": 1}, "'(cat|dog)'.* has 1 image: .*at least 3", id="F14-one-each"),
        pytest.param({"cat": 2, "dog": 2}, "has 2 images: .*at least 3", id="F14-two-each"),
        pytest.param({"cat": 30, "dog": 1}, "'dog'.* has 1 image", id="one-of-one-class"),
        pytest.param({"cat": 300, "dog": 2}, "class 'dog'.* has 2 images", id="two-of-one-class"),
        pytest.param({"cat": 3, "dog": 3}, "", id="three-are-enough"),
        pytest.param({"cat": 200, "dog": 3}, "", id="three-beside-many"),
    ],
)  # fmt: skip
def test_too_few_images_are_known_to_the_plan(tmp_path: Path, counts: dict[str, int], message: str) -> None:
    for name, count in counts.items():
        for k in range(count):
            image(tmp_path / name / f"{k}.png", k % 256)
    experiment = Experiment(name="e", archs=("tiny-vit",), tasks=("digits", f"x=folder:{tmp_path}"), n=(2,))
    if message:
        with pytest.raises(InputError, match=message):
            make_plan(experiment)
    else:
        make_plan(experiment)
        for part in pictures(find_task(f"x=folder:{tmp_path}"), 0).values():
            assert set(part.labels) == {0, 1}


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": 1, "test": 1}, r"split 'train' .*\. The class has 2 images: train 0, val 1, test 1\."),
        ({"train": 2, "test": 1}, ""),
        ({"train": 1, "val": 1, "test": 1}, ""),
    ],
)  # fmt: skip
def test_too_few_images_of_splits_that_the_data_has(
    tmp_path: Path, splits: dict[str, int], message: str
) -> None:
    entry = f"x=folder:{folder(tmp_path, **splits)}"
    if message:
        with pytest.raises(InputError, match=message):
            task_job(entry, 0)
    else:
        task_job(entry, 0)
