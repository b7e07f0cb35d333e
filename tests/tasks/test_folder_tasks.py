"""Image folders as tasks, and the names that an experiment may give to its tasks."""

from pathlib import Path

import data_files
import numpy as np
import pytest
from image_folders import folder
from PIL import Image

from neulig_ray.errors import InputError
from neulig_ray.tasks import find_task
from neulig_ray.tasks.reading.files import fetch, pictures


def sizes(entry: str) -> dict[str, int]:
    return {split: len(part) for split, part in pictures(find_task(entry), 0).items()}


def test_train_and_test_folders(tmp_path: Path) -> None:
    path = folder(tmp_path / "my pets", train=20, test=4)
    task = find_task(f"folder:{path}")
    assert task.name == "my-pets"
    assert task.class_names == ("cat", "dog house", "emu")
    assert task.templates == ("a photo of a {}.",)
    fetch(task)
    found = pictures(task, 0)
    assert {split: len(part) for split, part in found.items()} == {"train": 54, "val": 6, "test": 12}
    for split, length in (("train", 5), ("val", 5), ("test", 4)):
        for i, label in enumerate(found[split].labels):
            assert found[split].read(i).getpixel((0, 0))[1:] == (label, length)
    assert found["test"].describe(0) == str(path / "test/cat/000.png")


def test_its_own_val_folder_stays(tmp_path: Path) -> None:
    path = folder(tmp_path, train=4, val=2, test=3)
    assert sizes(f"x=folder:{path}") == {"train": 12, "val": 6, "test": 9}


def test_class_folders_alone_are_divided_the_same_way_for_every_seed(tmp_path: Path) -> None:
    task = find_task(f"x=folder:{folder(tmp_path)}")
    one, two = pictures(task, 0), pictures(task, 1)
    assert {split: len(part) for split, part in one.items()} == {"train": 21, "val": 3, "test": 6}
    assert np.bincount(one["test"].labels).tolist() == [2, 2, 2]
    names = [{part.describe(i) for i in range(len(part))} for part in one.values()]
    assert len(set.union(*names)) == 30
    assert [one["test"].describe(i) for i in range(6)] == [two["test"].describe(i) for i in range(6)]


def test_its_fingerprint_follows_the_content_and_not_the_place(tmp_path: Path) -> None:
    one, two = (find_task(f"x=folder:{folder(tmp_path / place)}") for place in ("here", "there"))
    before = one.files.identity()
    assert two.files.identity() == before
    Image.new("RGB", (9, 7), "red").save(tmp_path / "there/cat/003.png")
    assert two.files.identity() != before
    (tmp_path / "here/cat/004.png").rename(tmp_path / "here/emu/104.png")
    assert one.files.identity() != before


def test_files_that_are_no_images_are_passed_over(tmp_path: Path) -> None:
    path = folder(tmp_path)
    (path / "cat/notes.txt").write_text("hello")
    (path / "README.md").write_text("hello")
    (path / ".git/objects").mkdir(parents=True)
    assert sum(sizes(f"x=folder:{path}").values()) == 30


@pytest.mark.parametrize(
    ("prepare", "entry", "message"),
    [
        (lambda p: None, "folder:{}/none", "there is no folder '.*none'.*PATH/train/<class>"),
        (lambda p: p.mkdir(), "x=folder:{}", "has no class folders.*PATH/train/<class>"),
        (lambda p: folder(p, train=3), "x=folder:{}", "has train but not both train and test"),
        (lambda p: (folder(p) / "ant").mkdir(), "x=folder:{}", "class folder '.*ant' has no image"),
        (lambda p: (folder(p, train=3, test=2) / "test/emu").rename(p / "test/gnu"), "x=folder:{}",
         "test.*calls class 2 'gnu'.*says 'emu'"),
        (lambda p: data_files.save(folder(p, train=3, test=2) / "test/fox/1.png", Image.new("L", (3, 3))),
         "x=folder:{}", "test.*4 classes.*has 3"),
        (lambda p: folder(p), "digits=folder:{}", "'digits' is a task of its own already.*NAME="),
        (lambda p: folder(p), "a,b=folder:{}", "'a,b' cannot be a name"),
        (lambda p: folder(p), "x=folder:{}?image=img", "unknown option 'image'"),
        (lambda p: None, "folder:", r"write \[NAME=\]folder:PATH"),
        (lambda p: None, "zip:{}", r"write \[NAME=\]folder:PATH"),
        (lambda p: None, "mnst", "unknown task 'mnst'.*Did you mean 'mnist'"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_task_is_told(tmp_path: Path, prepare, entry: str, message: str) -> None:
    path = tmp_path / "here"
    prepare(path)
    with pytest.raises(InputError, match=message):
        fetch(find_task(entry.format(path)))
