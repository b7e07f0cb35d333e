"""Tasks read by Hugging Face `datasets`: from local parquet repositories of the same columns."""

import builtins
import io
import re
from pathlib import Path
from typing import Any

import data_files
import huggingface_hub
import numpy as np
import pytest
from PIL import Image

from neulig_ray.errors import InputError
from neulig_ray.tasks import TASKS, find_task
from neulig_ray.tasks.reading.files import fetch, pictures

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NEULIG_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (12, 10), (value, 0, 0)).save(stream, "png")
    return stream.getvalue()


def repository(
    folder: Path, labels: Any = None, columns: tuple[str, str] = ("img", "kind"), **splits: int
) -> str:
    """A repository of three classes; image i of a split is red of strength i."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (splits or {"train": 30, "test": 6}).items():
        cells = {
            columns[0]: [{"bytes": png(i), "path": None} for i in range(count)],
            columns[1]: [i % 3 for i in range(count)]
            if labels is None
            else [labels[i % 3] for i in range(count)],
        }
        label = (
            datasets.ClassLabel(names=["a_cat", "dog", "emu"]) if labels is None else datasets.Value("string")
        )
        features = datasets.Features({columns[0]: datasets.Image(), columns[1]: label})
        datasets.Dataset.from_dict(cells, features=features).to_parquet(str(folder / f"{split}-0.parquet"))
    return str(folder)


@pytest.mark.parametrize("name", data_files.HUB)
def test_a_hub_task_is_read_from_a_copy_placed_by_hand(name: str, root: Path) -> None:
    data_files.parquet(root / name, name, count=2)
    task = TASKS[name]
    fetch(task)
    found = pictures(task, 0)
    assert set(found["test"].labels) == set(range(len(task.class_names)))
    for split, stored in (("train", "train"), ("val", "train"), ("test", "test")):
        part = found[split]
        for i in (0, len(part) - 1):
            wanted = {data_files.colour(stored, int(part.labels[i]), place) for place in range(2)}
            assert part.read(i).getpixel((3, 3)) in wanted


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A hub that has a small RESISC45 with two of the corrupted splits; what it was asked for."""
    repository, asked = tmp_path / "repository", []
    data_files.parquet(repository, "resisc45")
    for name in ("contrast", "spatter"):
        (repository / f"data/{name}-00000-of-00001.parquet").write_bytes(b"never read")

    def snapshot_download(dataset: str, **keywords: Any) -> str:
        asked.append({"dataset": dataset, **keywords})
        snapshot = Path(keywords["cache_dir"]) / "snapshot"
        for file in repository.rglob("*.parquet"):
            if any(file.match(pattern) for pattern in keywords["allow_patterns"]):
                (snapshot / "data").mkdir(parents=True, exist_ok=True)
                (snapshot / "data" / file.name).write_bytes(file.read_bytes())
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def test_a_hub_task_fetches_its_own_splits_of_a_pinned_revision(
    root: Path, hub: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = TASKS["resisc45"].files.read
    monkeypatch.setitem(vars(reader), "num_images", {"train": 135, "test": 45})
    found = reader(root, True)
    assert {split: len(part) for split, part in found.items()} == {"train": 135, "test": 45}
    (asked,) = hub
    assert asked["dataset"] == "tanganke/resisc45"
    assert asked["allow_patterns"] == ["data/train-*.parquet", "data/test-*.parquet"]
    assert re.fullmatch("[0-9a-f]{40}", asked["revision"])
    assert TASKS["resisc45"].files.identity() == {"revision": asked["revision"]}


@pytest.mark.usefixtures("hub")
def test_half_a_download_is_refused(root: Path) -> None:
    with pytest.raises(InputError, match=r"'resisc45'.*'train' has 135 images instead of 18900.*incomplete"):
        fetch(TASKS["resisc45"])


def test_other_class_names_than_the_tasks(root: Path) -> None:
    data_files.parquet(root / "cars", "resisc45")
    with pytest.raises(InputError, match=r"'cars'.*45 classes.*196"):
        fetch(TASKS["cars"])


def test_a_data_set_by_its_name_and_columns(tmp_path: Path) -> None:
    path = repository(tmp_path / "some.animals")
    task = find_task(f"hub:{path}?image=img&label=kind&template=a {{}} drawn.&template={{}}")
    assert task.class_names == ("a cat", "dog", "emu")
    assert task.templates == ("a {} drawn.", "{}")
    assert task.name.endswith("some.animals")
    assert "/" not in task.name
    assert task.protocols == ("standard",)
    found = pictures(task, 0)
    assert {split: len(part) for split, part in found.items()} == {"train": 27, "val": 3, "test": 6}
    for i in range(6):
        assert found["test"].labels[i] == i % 3
        assert found["test"].read(i).getpixel((0, 0)) == (i, 0, 0)


def test_its_own_val_split_and_other_names_of_splits(tmp_path: Path) -> None:
    path = repository(tmp_path / "x", train=9, validation=6, test=3)
    task = find_task(f"mine=hub:{path}?image=img&label=kind&val=validation&test=test")
    assert task.name == "mine"
    assert {s: len(p) for s, p in pictures(task, 0).items()} == {"train": 9, "val": 6, "test": 3}


def test_texts_as_labels_are_numbered_in_sorted_order(tmp_path: Path) -> None:
    path = repository(tmp_path / "x", labels=("gnu", "ant", "bee"))
    task = find_task(f"m=hub:{path}?image=img&label=kind")
    assert task.class_names == ("ant", "bee", "gnu")
    assert pictures(task, 0)["test"].labels.tolist() == [2, 0, 1] * 2


def test_its_fingerprint_follows_the_content(tmp_path: Path) -> None:
    entry = f"m=hub:{repository(tmp_path / 'x')}?image=img&label=kind"
    before = find_task(entry).files.identity()
    assert find_task(entry).files.identity() == before
    (tmp_path / "x/train-0.parquet").unlink()
    repository(tmp_path / "x", train=33)
    assert find_task(entry).files.identity() != before


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("image=image&label=kind", "unknown column 'image'.*'img'.*image= and label="),
        ("image=img&label=kid", r"unknown column 'kid'\. Did you mean 'kind'"),
        ("image=img&label=kind&test=tests", r"unknown split 'tests'\. Did you mean 'test'"),
        ("image=img&label=kind&lable=x", r"unknown option 'lable'\. Did you mean 'label'"),
        ("image=kind&label=kind", "column 'kind' holds no images"),
        ("image=img&label=kind&template=x", "must hold one {} for the class name"),
    ],
)
def test_what_the_data_set_has_not(tmp_path: Path, query: str, message: str) -> None:
    path = repository(tmp_path / "x")
    with pytest.raises(InputError, match=message):
        pictures(find_task(f"m=hub:{path}?{query}"), 0)


def test_a_label_without_names_asks_for_them(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    table = datasets.Dataset.from_dict({"img": [{"bytes": png(1), "path": None}] * 4, "n": [0, 1, 0, 1]})
    for split in ("train", "test"):
        table.to_parquet(str(folder / f"{split}-0.parquet"))
    with pytest.raises(InputError, match=r"'n' carries no class names.*plugin"):
        find_task(f"m=hub:{folder}?image=img&label=n")


def test_a_hub_that_cannot_be_reached(root: Path) -> None:
    """conftest sets HF_HUB_OFFLINE, so that no test reaches for the network."""
    for entry in ("resisc45", "hub:somebody/pictures?image=image&label=label"):
        with pytest.raises(InputError) as caught:
            fetch(find_task(entry))
        told = str(caught.value)
        assert "tanganke/resisc45" in told or "somebody/pictures" in told
        for word in ("HF_HUB_OFFLINE", "By hand: place", str(root), "parquet", "NEULIG_DATA"):
            assert word in told


def test_a_damaged_copy_is_named(root: Path) -> None:
    data_files.parquet(root / "eurosat", "eurosat")
    file = root / "eurosat/data/test-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(InputError, match=f"'eurosat'.*cannot be had.*{root}/eurosat.*damaged or incomplete"):
        fetch(TASKS["eurosat"])


def test_the_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "datasets":
            raise ImportError("No module named 'datasets'")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"pip install 'neulig-ray\[hf\]'"):
        fetch(TASKS["resisc45"])


def test_images_in_files_beside_the_table_do_not_matter_to_labels(tmp_path: Path) -> None:
    """Labels are read without decoding any image: a broken one is found when it is prepared."""
    folder = tmp_path / "x"
    folder.mkdir()
    cells = {"img": [{"bytes": b"broken", "path": None}] * 6, "kind": [0, 1, 2] * 2}
    features = datasets.Features(
        {"img": datasets.Image(), "kind": datasets.ClassLabel(names=["x", "y", "z"])}
    )
    for split in ("train", "test"):
        datasets.Dataset.from_dict(cells, features=features).to_parquet(str(folder / f"{split}-0.parquet"))
    part = pictures(find_task(f"m=hub:{folder}?image=img&label=kind"), 0)["test"]
    assert np.bincount(part.labels).tolist() == [2, 2, 2]
    with pytest.raises(OSError, match="cannot identify"):
        part.read(0)
