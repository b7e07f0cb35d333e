"""Tasks that are read from files: each from small files in its own format, and what damaged ones are told."""

import io
import os
import urllib.error
import urllib.request
from pathlib import Path

import data_files
import numpy as np
import pytest
from PIL import Image

from neulig_ray.errors import InputError
from neulig_ray.tasks import TASKS
from neulig_ray.tasks.reading.files import fetch, pictures

SEVEN = ("gtsrb", "cifar100", "resisc45", "cifar10", "mnist", "stl10", "svhn")
EIGHT = ("sun397", "cars", "resisc45", "eurosat", "svhn", "gtsrb", "mnist", "dtd")
FOURTEEN = (*EIGHT, "flowers102", "pcam", "fer2013", "oxford-iiit-pet", "stl10", "cifar100")
TWENTY = (*FOURTEEN, "cifar10", "food101", "fashion-mnist", "kmnist", "rendered-sst2")
each_task = pytest.mark.parametrize("name", data_files.WRITERS)


@pytest.fixture(autouse=True)
def no_checksums(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision knows the real files' checksums: here every file that is there is the right one."""
    for module in ("cifar", "mnist", "svhn", "stl10", "flowers102", "fer2013"):
        monkeypatch.setattr(
            f"torchvision.datasets.{module}.check_integrity", lambda path, md5=None: os.path.isfile(path)
        )


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NEULIG_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def test_the_lists_of_the_field_are_there() -> None:
    emnist = {"emnist-digits", "emnist-letters"}
    assert {*SEVEN, *TWENTY, *emnist} == {t.name for t in TASKS.values() if t.files}
    assert {t.name for t in TASKS.values() if t.files and "paper" in t.protocols} == {
        *SEVEN,
        "oxford-iiit-pet",
    }


@each_task
def test_a_task_is_read_from_its_own_format(name: str, root: Path) -> None:
    task = TASKS[name]
    data_files.WRITERS[name](root, name)
    fetch(task)
    found = pictures(task, 0)
    assert list(found) == ["train", "val", "test"]
    own_val = "val" in task.files.num_images
    for split, part in found.items():
        assert len(part) > 0
        stored = "train" if split == "val" and not own_val else split
        for i in {0, len(part) // 2, len(part) - 1}:
            pixel = np.asarray(part.read(i).convert("RGB"))[-1, -1].astype(int)
            label = int(part.labels[i])
            if name in data_files.GREY:
                assert any(abs(pixel[0] - data_files.grey(stored, label, place)) == 0 for place in range(5))
            else:
                wanted = [np.array(data_files.colour(stored, label, place)) for place in range(5)]
                assert min(np.abs(pixel - want).max() for want in wanted) <= 2  # what JPEG changes
            assert part.describe(i)
    if own_val:
        assert len(found["val"]) == len(found["train"])
    assert set(found["test"].labels) == set(range(len(task.class_names)))


def test_emnist_is_upright(root: Path) -> None:
    data_files.mnist(root, "emnist-letters")
    image = np.asarray(pictures(TASKS["emnist-letters"], 0)["test"].read(0))
    assert (image[:, 0] == 255).all()
    assert (image[0, 1:] < 255).all()


def test_official_sizes_and_names_are_what_torchvision_says() -> None:
    from torchvision import datasets

    for name, known in {
        "mnist": datasets.MNIST.classes,
        "fashion-mnist": datasets.FashionMNIST.classes,
        "kmnist": datasets.KMNIST.classes,
        "flowers102": datasets.Flowers102.classes,
        "emnist-digits": datasets.EMNIST.classes_split_dict["digits"],
        "emnist-letters": [c.upper() for c in datasets.EMNIST.classes_split_dict["letters"][1:]],
    }.items():
        assert list(TASKS[name].files.names.carried) == list(known)


@pytest.mark.parametrize("name", sorted({*SEVEN, *TWENTY, "emnist-digits", "emnist-letters"}))
def test_prompts_are_usable(name: str) -> None:
    task = TASKS[name]
    assert len(set(task.class_names)) == len(task.class_names) == len(task.files.names.carried)
    assert all(text and text == text.strip() and "_" not in text for text in task.class_names)
    assert all(t.count("{}") == 1 and "{" not in t.replace("{}", "") for t in task.templates)
    assert {"train", "test"} <= task.files.num_images.keys()


# Missing, damaged, other data


def test_nothing_there_and_no_network_allowed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError) as caught:
        fetch(TASKS["cifar10"])
    for word in ("cifar10", str(root), "HF_HUB_OFFLINE", "cifar-10-batches-py", "NEULIG_DATA"):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("name", "file"),
    [("cifar10", "cifar-10-python.tar.gz"), ("gtsrb", "Training"), ("mnist", "train-images-idx3"),
     ("svhn", "train_32x32.mat"), ("flowers102", "102flowers.tgz"), ("emnist-digits", "gzip.zip")],
)  # fmt: skip
def test_a_host_that_cannot_be_reached(
    name: str, file: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says which file, from where, and where it goes: the URL is the library's own."""
    asked = []

    def refuse(request: urllib.request.Request, *_: object, **__: object) -> None:
        asked.append(request.full_url)
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(InputError) as caught:
        fetch(TASKS[name])
    told = str(caught.value)
    assert any(url in told for url in asked)
    assert file in told
    assert "Name or service not known" in told
    assert str(root) in told
    assert "By hand: place" in told


def test_a_download_with_another_checksum(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Answer(io.BytesIO):
        url = None
        length = 3

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_: Answer(b"bad"))
    with pytest.raises(InputError, match=r"svhn.*train_32x32\.mat.*File not found or corrupted"):
        fetch(TASKS["svhn"])


def test_what_is_not_downloaded_is_asked_for(root: Path) -> None:
    with pytest.raises(InputError, match=r"does not download it.*fer2013\.csv"):
        fetch(TASKS["fer2013"])


def test_incomplete_files_are_an_error(root: Path) -> None:
    data_files.dtd(root, "dtd")
    (root / "dtd/dtd/labels/val1.txt").unlink()
    with pytest.raises(InputError, match=r"dtd.*val split cannot be read.*val1\.txt"):
        fetch(TASKS["dtd"])


def test_a_missing_class_folder_does_not_shift_the_labels(root: Path) -> None:
    data_files.gtsrb(root, "gtsrb")
    folder = root / "gtsrb/GTSRB/Training/00007"
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    with pytest.raises(InputError, match=r"42 classes.*head, has 43"):
        fetch(TASKS["gtsrb"])


def test_classes_in_another_order_than_the_heads(root: Path) -> None:
    data_files.stl10(root, "stl10")
    names = list(TASKS["stl10"].class_names)
    names[2], names[3] = names[3], names[2]
    (root / "stl10_binary/class_names.txt").write_text("\n".join(names))
    with pytest.raises(InputError, match=r"calls class 2 'cat'.*says 'car'.*at 3: the order differs"):
        fetch(TASKS["stl10"])


def test_labels_that_no_class_has(root: Path) -> None:
    data_files.svhn(root, "svhn")
    from scipy.io import loadmat, savemat

    data = loadmat(root / "test_32x32.mat")
    data["y"][3] = 11
    savemat(root / "test_32x32.mat", {k: data[k] for k in ("X", "y")})
    with pytest.raises(InputError, match=r"'svhn', split 'test': labels run from 0 to 11.*10 names"):
        fetch(TASKS["svhn"])


def test_a_file_task_can_be_read_into_memory(root: Path) -> None:
    data_files.gtsrb(root, "gtsrb")
    splits = TASKS["gtsrb"].splits(0)
    assert splits["train"].images.shape[1:] == (224, 224, 3)
    assert Image.fromarray(splits["test"].images[0]).getpixel((0, 0)) == data_files.colour("test", 0)
