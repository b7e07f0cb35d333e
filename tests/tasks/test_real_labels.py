"""Labels of real tables: missing in many ways, of many types, in class lists that no head can be made of."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from neulig_ray.errors import InputError
from neulig_ray.experiment.config import Experiment
from neulig_ray.pipeline.plan import make_plan
from neulig_ray.stages.tasks import task_job
from neulig_ray.storage.storage import Storage
from neulig_ray.tasks import TASKS, find_task
from neulig_ray.tasks._base import Files, Split, Task, task
from neulig_ray.tasks._names import Names, check_list
from neulig_ray.tasks.reading.files import fetch, file_task, pictures
from neulig_ray.tasks.reading.hub import HubReader
from neulig_ray.tasks.reading.labels import MISSING, numbers
from neulig_ray.tasks.reading.pictures import Pictures
from neulig_ray.tasks.reading.protocols import divide
from neulig_ray.tasks.reading.torchvision import TRAIN_TEST, torchvision_task

datasets = pytest.importorskip("datasets")
NAMES = ["cat", "dog"]


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NEULIG_DATA", str(tmp_path / "root"))
    return tmp_path / "root"


def png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (value % 256, value // 256, 0)).save(stream, "png")
    return stream.getvalue()


def place(root: Path, feature: Any, images: bool = True, **splits: list[Any]) -> str:
    """A data set x below the data root, image i of strength i; the entry that names it."""
    folder = root / "x"
    folder.mkdir(parents=True, exist_ok=True)
    start = 0
    for split, labels in splits.items():
        cells = {
            "img": [{"bytes": png(start + i), "path": None} for i in range(len(labels))],
            "kind": labels,
        }
        start += len(labels)
        features = datasets.Features({"img": datasets.Image(), "kind": feature})
        datasets.Dataset.from_dict(cells, features=features).to_parquet(str(folder / f"{split}-0.parquet"))
    return "x=hub:me/x?image=img&label=kind"


TEXT, CLASSES = datasets.Value("string"), datasets.ClassLabel(names=NAMES)
GONE = [
    pytest.param(TEXT, None, id="F13-null-text"),
    pytest.param(TEXT, "", id="F13-empty-text"),
    pytest.param(CLASSES, None, id="F13-null-class"),
    pytest.param(CLASSES, -1, id="F13-minus-one"),
    pytest.param(TEXT, "nan", id="NaN-as-text"),
    pytest.param(TEXT, "<NA>", id="NA-of-pandas"),
    pytest.param(TEXT, "   ", id="blank-text"),
    pytest.param(datasets.Value("large_string"), None, id="null-large-text"),
]


def good(feature: Any) -> list[Any]:
    return [0, 1] if feature is CLASSES else ["cat", "dog"]


@pytest.mark.parametrize(("feature", "missing"), GONE)
def test_few_missing_labels_are_left_out_and_told(root: Path, feature: Any, missing: Any) -> None:
    train = good(feature) * 100
    train[7] = missing
    entry = place(root, feature, train=train, test=good(feature) * 5)
    found = find_task(entry)
    assert found.class_names == ("cat", "dog")
    parts = pictures(found, 0)
    assert len(parts["train"]) + len(parts["val"]) == 199
    for name in ("train", "val"):
        for i, label in enumerate(parts[name].labels):
            with parts[name].read(i) as image:
                assert image.getpixel((0, 0))[0] % 2 == label  # rows after it have kept their labels
    (note,) = {note for part in parts.values() for note in part.notes}
    assert note.startswith("train: 1 of 200 images have no label")


@pytest.mark.parametrize(("feature", "missing"), GONE)
def test_more_than_one_in_a_hundred_is_refused(root: Path, feature: Any, missing: Any) -> None:
    entry = place(root, feature, train=[*good(feature) * 9, missing, missing], test=good(feature) * 5)
    with pytest.raises(InputError, match=r"'x', split 'train': 2 of 20 images have no label .*more than 1%"):
        task_job(entry, 0)


@pytest.mark.parametrize(
    ("feature", "missing"), [pytest.param(CLASSES, -1, id="case-31"), *GONE], ids=lambda value: None
)
def test_a_split_without_labels_names_one_that_has_them(root: Path, feature: Any, missing: Any) -> None:
    """Benchmarks keep the labels of test to themselves."""
    entry = place(root, feature, train=good(feature) * 9, validation=good(feature) * 3, test=[missing] * 6)
    experiment = Experiment(name="e", archs=("tiny-vit",), tasks=("digits", entry), n=(2,))
    with pytest.raises(
        InputError, match=r"'test': 6 of 6 .*such as test=validation.*train, validation, test"
    ):
        make_plan(experiment)
    assert {s: len(p) for s, p in pictures(find_task(f"{entry}&test=validation"), 0).items()} == {
        "train": 16, "val": 2, "test": 6,
    }  # fmt: skip


def test_no_split_is_advised_that_has_no_labels_either(root: Path) -> None:
    entry = place(root, CLASSES, train=[0, 1] * 5, validation=[-1] * 4, test=[-1] * 4)
    with pytest.raises(InputError) as caught:
        task_job(entry, 0)
    assert "test=" not in str(caught.value)


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ([1.0, 0.0, float("nan"), None], [1, 0, MISSING, MISSING]),
        ([True, False, None], [1, 0, MISSING]),
        ([-1, -100, 3], [MISSING, MISSING, 3]),
        ([-0.0, 2.0], [0, 2]),
        (["b", "a", None, ""], [1, 0, MISSING, MISSING]),
        ([], []),
    ],
)
def test_labels_of_other_types(cells: list[Any], expected: list[int]) -> None:
    assert numbers(cells, ("a", "b")).tolist() == expected


@pytest.mark.parametrize("cell", [0.5, float("inf"), "c"])
def test_what_is_no_label(cell: Any) -> None:
    with pytest.raises((ValueError, KeyError, OverflowError)):
        numbers([0.0, cell], ("a", "b"))


@pytest.mark.parametrize(
    ("feature", "labels"),
    [
        pytest.param(datasets.Value("float64"), [0.0, 1.0], id="float64"),
        pytest.param(datasets.Value("float32"), [0.0, 1.0], id="float32"),
        pytest.param(datasets.Value("bool"), [False, True], id="bool"),
        pytest.param(datasets.Value("int8"), [0, 1], id="int8"),
    ],
)
def test_a_plugins_class_list_for_columns_of_numbers(root: Path, feature: Any, labels: list[Any]) -> None:
    place(root, feature, train=labels * 50 + [None] if "float" in feature.dtype else labels * 50, test=labels)
    reader = HubReader(
        task="x", dataset="me/x", splits={"train": "train", "test": "test"}, image="img", label="kind"
    )
    assert reader(root, False)["train"].labels.tolist() == [0, 1] * 50


def test_numbers_beyond_the_class_list_are_never_left_out(root: Path) -> None:
    """They are no missing labels: the list lacks a class, or is in another order."""
    place(root, datasets.Value("int64"), train=[0, 1] * 100, test=[0, 1] * 100 + [2])
    reader = HubReader(
        task="x", dataset="me/x", splits={"train": "train", "test": "test"}, image="img", label="kind"
    )
    found = file_task(
        "x", Files(read=reader, names=Names(("a", "b"), ("a", "b"))), templates=("{}",), source=""
    )
    with pytest.raises(InputError, match=r"labels run from 0 to 2, but the class list has 2 names"):
        fetch(found)


# Class lists


@pytest.mark.parametrize(
    ("names", "message"),
    [
        pytest.param(["hot_dog", "hot dog"], "'hot.dog' and 'hot.dog' have one name", id="F12-underscore"),
        pytest.param(["cat", "dog", "Cat"], "'[cC]at' and '[cC]at' have one name", id="F12-case"),
        pytest.param(["a  b", "a b"], "'a *b' and 'a *b' have one name", id="F12-white-space"),
        pytest.param(["caf\u00e9", "cafe\u0301"], r"'caf\S+' and 'caf\S+' .* have one name", id="accents"),
        pytest.param(["cat", "dog "], "'dog ' is blank, or begins or ends", id="blank-behind"),
        pytest.param(["cat", "_dog"], "'_dog' is blank, or begins or ends", id="underscore-in-front"),
        pytest.param(["cat"], "has one class, 'cat'", id="32-one-class"),
    ],
)
@pytest.mark.parametrize("kind", ["class label", "texts"])
def test_class_names_of_a_table(root: Path, names: list[str], message: str, kind: str) -> None:
    feature = datasets.ClassLabel(names=names) if kind == "class label" else TEXT
    labels = list(range(len(names))) if kind == "class label" else names
    with pytest.raises(InputError, match=message):
        find_task(place(root, feature, train=labels * 9, test=labels * 3))


def test_class_names_of_every_other_kind_of_task() -> None:
    twins = ("a_b", "A b")
    with pytest.raises(InputError, match="'a_b' and 'A b' have one name"):
        file_task("y", Files(read=lambda *_: {}, names=Names(twins, twins)), templates=("{}",), source="here")
    with pytest.raises(InputError, match="'a_b' and 'A b' have one name"):
        torchvision_task(
            "y", "DTD", TRAIN_TEST, templates=("{}",), source="", place="", class_names=twins, num_images={}
        )


def test_class_names_of_a_drawn_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TASKS, "_items", dict(TASKS._items))
    monkeypatch.setattr(TASKS, "_modules", dict(TASKS._modules))
    with pytest.raises(InputError, match="'Dog' and 'dog' have one name"):

        @task("pets-of-a-plugin", class_names=("Dog", "dog"), source="here")
        def pets(seed: int) -> dict[str, Split]:
            raise NotImplementedError


@pytest.mark.parametrize("name", sorted(TASKS))
def test_class_lists_of_the_package_are_usable(name: str) -> None:
    check_list(name, Names(TASKS[name].class_names, TASKS[name].class_names))


def test_texts_that_may_stand_for_no_label_are_told(root: Path) -> None:
    entry = place(root, TEXT, train=["None", "cat"] * 9, test=["None", "cat"] * 3)
    (note,) = {note for part in pictures(find_task(entry), 0).values() for note in part.notes}
    assert note.startswith("'None' is one of the classes: where it stands for no label")


# Splits without a class


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        pytest.param(
            ["cat"] * 9 + ["dog"], ["cat", "dog"], "class 'dog'.* has 2 images", id="F14-one-to-train"
        ),
        pytest.param(["cat", "dog"] * 9, ["cat"] * 3, "split 'test' .*class 'dog'", id="none-to-test"),
        pytest.param(["cat"] * 9, ["cat", "dog"], "class 'dog'", id="none-to-train"),
        pytest.param(["cat", "dog"] * 9, [], "'test' is empty|cannot be had", id="nothing-to-test"),
    ],
)
@pytest.mark.parametrize("feature", [TEXT, CLASSES], ids=["texts", "class label"])
def test_a_split_without_a_class_is_known_to_the_plan(
    root: Path, feature: Any, train: list[str], test: list[str], message: str
) -> None:
    place_of = {"cat": 0, "dog": 1}
    cells = [[place_of[c] for c in split] if feature is CLASSES else split for split in (train, test)]
    with pytest.raises(InputError, match=message):
        task_job(place(root, feature, train=cells[0], test=cells[1]), 0)


def test_the_papers_splits_have_every_class_or_are_refused() -> None:
    found = Task("t", ("a", "b"), ("{}",), lambda seed: {}, "here")
    labels = np.array([0] * 39 + [1])
    splits = {
        name: Pictures.of_array(np.zeros((len(of), 2, 2, 3), np.uint8), of, name)
        for name, of in (("train", labels), ("test", labels[-10:]))
    }
    with pytest.raises(InputError, match=r"of protocol paper would have no image of class 'b'"):
        divide(found, "paper", 0, splits)


# Missing images


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        pytest.param(None, "there is no image in this row: it is null", id="case-37"),
        pytest.param({"bytes": None, "path": None}, "no image in this row", id="empty-cell"),
        pytest.param({"bytes": b"", "path": None}, "empty: 0 bytes", id="zero-bytes"),
        pytest.param({"bytes": None, "path": "/no/such.png"}, "there is no such file", id="path-to-nothing"),
        pytest.param({"bytes": None, "path": "/dev/zero"}, "no regular file", id="path-to-a-device"),
        pytest.param({"bytes": None, "path": "https://a.b/c.png"}, "no such file", id="address"),
    ],
)
@pytest.mark.parametrize("many", [True, False], ids=["refused", "left-out"])
def test_a_cell_without_an_image(root: Path, tmp_path: Path, cell: Any, message: str, many: bool) -> None:
    folder = root / "x"
    folder.mkdir(parents=True)
    start = 0
    for split, count in (("train", 20), ("test", 20 if many else 120)):
        images: list[Any] = [{"bytes": png(start + i), "path": None} for i in range(count)]
        start += count
        if split == "test":
            images[9] = cell
        image = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
        features = datasets.Features({"img": image, "kind": CLASSES})  # so that no path is looked at here
        cells = {"img": images, "kind": [0, 1] * (count // 2)}
        datasets.Dataset.from_dict(cells, features=features).to_parquet(str(folder / f"{split}-0.parquet"))
    job, storage = task_job("x=hub:me/x?image=img&label=kind", 0, size=8), Storage(str(tmp_path / "s"))
    if many:
        with pytest.raises(InputError, match=rf"row 9 of me/x test \([^(]*{message}") as caught:
            job.run(storage)
        told = str(caught.value)
    else:
        job.run(storage)
        info = storage.manifest(job.artifact)["info"]
        assert info["images"]["test"] == 119
        told = "\n".join(info["notes"])
    assert message in told
    assert "Error" not in told
