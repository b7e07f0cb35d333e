"""Images in many shards: read like one array, on any node, by name."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from image_folders import made, noisy_folder

from neulig_ray.errors import StageError
from neulig_ray.models.archs import ARCHS
from neulig_ray.models.clip import embed
from neulig_ray.stages import tasks as prepare
from neulig_ray.stages.tasks import load_split, task_job
from neulig_ray.storage.inventory import damaged, inventory
from neulig_ray.storage.sharded_images import StoredImages, node_file
from neulig_ray.storage.storage import Storage


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "storage"))


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "SHARD_BYTES", 7 * 32 * 32 * 3)


def sharded(storage: Storage, tmp_path: Path) -> tuple[StoredImages, np.ndarray]:
    path = noisy_folder(tmp_path / "f", train=60, test=5)
    artifact, info = made(storage, f"x=folder:{path}", size=32)
    assert len(info["shards"]["train"]) == 8  # 54 images, 7 each
    assert sum((Path(storage.full(artifact.path)) / n).stat().st_size <= 7 * 3072 + 128
               for n in info["shards"]["train"]) == 8  # fmt: skip
    images = load_split(storage, artifact, "train").images
    whole = np.concatenate([prepare.read_array(storage, artifact, n) for n in info["shards"]["train"]])
    return images, whole


def test_many_shards_read_like_one_array(storage: Storage, tmp_path: Path, small_shards: None) -> None:
    images, whole = sharded(storage, tmp_path)
    assert isinstance(images, StoredImages)
    assert (len(images), images.shape, images.ndim, images.dtype) == (54, whole.shape, 4, np.uint8)
    rows = np.random.default_rng(0).permutation(54)
    for index in (0, -1, 53, slice(5, 23), slice(None), slice(50, 99), slice(None, None, 9), rows, rows[:0],
                  rows.tolist(), np.array([-1, 7, 7, 6]), torch.tensor([3, 50]).numpy()):  # fmt: skip
        assert np.array_equal(images[index], whole[index])
    assert np.array_equal(np.asarray(images), whole)
    for wrong in (54, np.array([0, -55])):
        with pytest.raises(IndexError, match="54 images"):
            images[wrong]
    with pytest.raises(TypeError, match="bool"):
        images[np.ones(54, bool)]


def test_sharded_images_travel_by_name(storage: Storage, tmp_path: Path, small_shards: None) -> None:
    images, whole = sharded(storage, tmp_path)
    packed = pickle.dumps(images)
    assert len(packed) < 2000
    assert np.array_equal(pickle.loads(packed)[:], whole)


def test_embedding_sharded_images_is_embedding_the_array(
    storage: Storage, tmp_path: Path, small_shards: None
) -> None:
    images, whole = sharded(storage, tmp_path)
    tower = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(32 * 32 * 3, 4))
    arch = ARCHS["tiny-vit"]
    assert np.array_equal(embed(tower, images, arch, batch_size=16), embed(tower, whole, arch, batch_size=16))


def test_every_file_is_in_the_manifest_with_its_hash(
    storage: Storage, tmp_path: Path, small_shards: None
) -> None:
    sharded(storage, tmp_path)
    (item,) = inventory(storage)
    assert list(damaged(storage, item)) == []
    file = next(Path(storage.full(item.path)).glob("train-images-0003.npy"))
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    assert [line for line in damaged(storage, item) if "train-images-0003" in line]


class Remote(Storage):
    """A storage whose files are not on this node."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.local = False


def test_nodes_read_copies_of_a_storage_that_is_elsewhere(
    storage: Storage, tmp_path: Path, small_shards: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, whole = sharded(storage, tmp_path)
    monkeypatch.setenv("NEULIG_CACHE", str(tmp_path / "cache"))
    remote = Remote(storage.root)
    artifact = task_job(f"x=folder:{tmp_path / 'f'}", 0, size=32).artifact
    names = tuple(storage.manifest(artifact)["info"]["shards"]["train"])
    assert np.array_equal(StoredImages(remote, artifact, names)[:], whole)
    shutil.rmtree(storage.root)
    assert np.array_equal(StoredImages(remote, artifact, names)[:], whole)  # the copies are whole
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_a_copy_that_arrives_damaged_is_no_copy(
    storage: Storage, tmp_path: Path, small_shards: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sharded(storage, tmp_path)
    monkeypatch.setenv("NEULIG_CACHE", str(tmp_path / "cache"))
    artifact = task_job(f"x=folder:{tmp_path / 'f'}", 0, size=32).artifact
    file = Path(storage.full(f"{artifact.path}/train-images-0001.npy"))
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    with pytest.raises(StageError, match=r"train-images-0001\.npy arrived damaged.*neulig storage verify"):
        node_file(Remote(storage.root), artifact, "train-images-0001.npy")
    assert not list((tmp_path / "cache").rglob("*.npy*"))
