"""Preparing tasks into the storage: fitted, sharded, counted, and read back row by row."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import data_files
import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from image_folders import folder, made, noisy_folder
from PIL import Image

from neulig_ray.errors import InputError
from neulig_ray.models.archs import ARCHS
from neulig_ray.models.clip import preprocess
from neulig_ray.stages.tasks import load_split, task_job
from neulig_ray.storage import sharded_images as shards
from neulig_ray.storage.inventory import inventory
from neulig_ray.storage.storage import Storage
from neulig_ray.tasks import TASKS
from neulig_ray.tasks.reading.crops import CROP_AREA, CROP_RATIO, crop_boxes
from neulig_ray.tasks.reading.encode import fitted


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "storage"))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NEULIG_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(
        "torchvision.datasets.cifar.check_integrity", lambda path, md5=None: os.path.isfile(path)
    )
    return tmp_path / "data"


def test_a_drawn_task_is_stored_as_it_is_drawn(storage: Storage) -> None:
    artifact, info = made(storage, "digits")
    for name, split in TASKS["digits"].splits(0).items():
        stored = load_split(storage, artifact, name)
        assert isinstance(stored.images, np.ndarray)
        assert np.array_equal(stored.images, split.images)
        assert np.array_equal(stored.labels, split.labels)
    assert info["images"] == {"train": 900, "val": 297, "test": 600}
    assert info["notes"] == []


def test_images_of_one_small_size_keep_it(storage: Storage, root: Path) -> None:
    data_files.cifar(root, "cifar10")
    artifact, _ = made(storage, "cifar10", size=224)
    test = load_split(storage, artifact, "test")
    assert test.images.shape == (10, 32, 32, 3)
    assert [tuple(image[3, 3]) for image in test.images] == [
        data_files.colour("test", i) for i in test.labels
    ]
    artifact, _ = made(storage, "cifar10", size=16)
    assert load_split(storage, artifact, "test").images.shape == (10, 16, 16, 3)


@pytest.mark.parametrize("size", [(40, 36), (300, 200), (33, 97), (32, 32), (31, 500), (7, 7)])
def test_images_are_fitted_as_open_clip_does(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    image = Image.fromarray(pixels)
    transform = open_clip.image_transform(32, is_train=False, mean=(0, 0, 0), std=(1, 1, 1))
    expected = (transform(image) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    assert np.array_equal(np.asarray(fitted(image, 32)), expected)


def test_prepared_images_give_the_embedding_inputs_that_open_clip_gives(
    storage: Storage, tmp_path: Path
) -> None:
    path = noisy_folder(tmp_path / "f", train=12, test=4)
    artifact, _ = made(storage, f"x=folder:{path}", size=32)
    transform = open_clip.image_transform(32, is_train=False)
    images = load_split(storage, artifact, "test").images
    files = sorted((path / "test").rglob("*.png"))
    expected = torch.stack([transform(Image.open(file)) for file in files])
    assert torch.allclose(preprocess(images, ARCHS["tiny-vit"]), expected, atol=1e-6)


# Images that do not decode


def test_few_broken_images_are_left_out_counted_and_named(storage: Storage, tmp_path: Path) -> None:
    path = noisy_folder(tmp_path / "f", train=240, test=5)
    whole = (path / "train/c1/0007.png").read_bytes()
    (path / "train/c1/0007.png").write_bytes(whole[:300])
    (path / "train/c0/0010.png").write_text("no image")
    artifact, info = made(storage, f"x=folder:{path}", size=32)
    left = sum(info["images"][s] for s in ("train", "val"))
    assert left == 238
    for split in ("train", "val"):
        stored = load_split(storage, artifact, split)
        assert len(stored.images) == len(stored.labels) == info["images"][split]
    notes = " ".join(info["notes"])
    assert "0007.png" in notes
    assert "0010.png" in notes
    assert "left out" in notes


def test_many_broken_images_are_refused(storage: Storage, tmp_path: Path) -> None:
    path = noisy_folder(tmp_path / "f", train=100, test=40)
    (path / "test/c0/0010.png").write_text("no image")
    with pytest.raises(InputError, match=r"'x', split 'test': more than 1% of 40 images.*0010\.png \(Unid"):
        made(storage, f"x=folder:{path}", size=32)
    assert not storage.exists(task_job(f"x=folder:{path}", 0, size=32).artifact)


def test_an_image_of_another_size_than_its_data_set(storage: Storage, root: Path) -> None:
    data_files.parquet(root / "eurosat", "eurosat", count=3)
    import datasets

    file = root / "eurosat/data/test-00000-of-00001.parquet"
    table = datasets.Dataset.from_parquet(str(file))
    cells = table.to_list()
    cells[4]["image"] = Image.new("RGB", (63, 64))
    datasets.Dataset.from_list(cells, features=table.features).to_parquet(str(file))
    with pytest.raises(InputError, match=r"row 4 of tanganke/eurosat test is 63x64 pixels, but .* is 64x64"):
        made(storage, "eurosat", size=224)


# Images in two splits: DTD's trap


def test_a_split_within_another_is_refused(storage: Storage, tmp_path: Path) -> None:
    path = noisy_folder(tmp_path / "f", train=40, val=20, test=20)
    for file in (path / "val").rglob("*.png"):
        shutil.copy(file, path / "train" / file.parent.name / f"also-{file.name}")
    with pytest.raises(InputError, match=r"20 of the 20 images of val are in train too.*too high"):
        made(storage, f"x=folder:{path}", size=32)


def test_a_few_shared_images_are_told(storage: Storage, tmp_path: Path) -> None:
    path = noisy_folder(tmp_path / "f", train=150, val=110, test=110)
    shutil.copy(path / "test/c0/0000.png", path / "train/c0/zzz.png")
    _, info = made(storage, f"x=folder:{path}", size=32)
    assert info["notes"] == ["1 images are both in train and in test"]


# Views of the training transform


def test_the_papers_test_images_are_views_of_training_images(storage: Storage) -> None:
    artifact, info = made(storage, "digits", protocol="paper", size=32, views=3)
    again, _ = made(Storage(storage.root + "2"), "digits", protocol="paper", size=32, views=3)
    plain, _ = made(storage, "digits", protocol="paper", size=32, views=0)
    assert info["images"] == {"train": 298, "test": 897, "val": 600}
    assert "3 times each through the training transform" in info["notes"][0]
    views, seen = load_split(storage, artifact, "test"), load_split(storage, plain, "test")
    assert np.array_equal(views.labels, np.tile(seen.labels, 3))
    stacked = views.images.reshape(3, 299, 32, 32, 3)
    assert not np.array_equal(stacked[0], stacked[1])
    difference = np.abs(stacked.astype(int) - seen.images).mean((0, 2, 3, 4))
    assert difference.max() < 40  # crops of at least 90 % look like the image
    assert np.array_equal(views.images, load_split(Storage(storage.root + "2"), again, "test").images)
    assert np.array_equal(
        load_split(storage, artifact, "train").images, load_split(storage, plain, "train").images
    )


@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 50))
def test_crops_lie_within_the_image_and_have_their_shape(width: int, height: int, seed: int) -> None:
    for left, top, right, bottom in crop_boxes(np.random.default_rng(seed), 5, width, height):
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        if min(width, height) > 40 and 0.8 < width / height < 1.25:
            area = (right - left) * (bottom - top) / (width * height)
            assert CROP_AREA[0] * 0.97 < area <= CROP_AREA[1]
            assert CROP_RATIO[0] * 0.97 < (right - left) / (bottom - top) < CROP_RATIO[1] * 1.03


def test_memory_stays_at_some_shards(tmp_path: Path) -> None:
    """Files are handed over one by one: the storage never sees two shards at once."""
    path = noisy_folder(tmp_path / "f", train=60, test=5)
    job = task_job(f"x=folder:{path}", 0, size=32)
    files, info = job.make(Storage(str(tmp_path / "s")))
    assert info["shards"] == {}
    first = next(files)
    assert first[0] == "train-images-0000.npy"
    assert info["shards"] == {}
    rest = dict(files)
    assert set(info["shards"]) == {"train", "val", "test"}
    assert json.dumps(info)
    assert hashlib.sha256(rest["test-labels.npy"]).hexdigest()


def test_an_empty_folder_task_is_not_prepared(storage: Storage, tmp_path: Path) -> None:
    path = folder(tmp_path / "f")
    job = task_job(f"x=folder:{path}", 0, size=32)
    shutil.rmtree(path)
    with pytest.raises(InputError, match="there is no folder"):
        job.run(storage)
    assert not inventory(storage)
    assert shards.SHARD_BYTES <= 256 * 2**20
