"""Block features in the storage: what a job makes, what it is called, and who is given it."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from neulig_ray.cluster.cost import Sizes
from neulig_ray.errors import InputError
from neulig_ray.experiment.catalog import ArchModels
from neulig_ray.experiment.config import Experiment
from neulig_ray.models.archs import ARCHS
from neulig_ray.models.block_features import block_features, block_width
from neulig_ray.models.work import forward_flops
from neulig_ray.stages.block_features import BlockFeatureJob, block_feature_job, load_block_features
from neulig_ray.stages.embeddings import embedding_job
from neulig_ray.stages.heads import FILE as HEAD_FILE
from neulig_ray.stages.origins import OriginFile, load_clip, plan_origin
from neulig_ray.stages.read_inputs import read_split
from neulig_ray.stages.tasks import array_bytes
from neulig_ray.storage.artifact import Artifact
from neulig_ray.storage.storage import Storage

ARCH = "tiny-rn"
SIZES = {"train": 5, "val": 3, "test": 4}
DATA = Artifact("task", "digits.s0", "d1")


def images(split: str) -> np.ndarray:
    return np.random.default_rng(SIZES[split]).integers(0, 256, (SIZES[split], 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    storage = Storage(str(tmp_path))
    shards = {split: [f"{split}-images-0000.npy"] for split in SIZES}
    files = {shards[split][0]: array_bytes(images(split)) for split in SIZES}
    files |= {f"{split}-labels.npy": array_bytes(np.arange(n)) for split, n in SIZES.items()}
    storage.commit(DATA, files, {"images": SIZES, "shards": shards})
    return storage


@pytest.fixture
def job(storage: Storage) -> BlockFeatureJob:
    origin = plan_origin(Experiment(name="blocks", archs=(ARCH,)), ARCH, "seed-0").job
    assert isinstance(origin, OriginFile)
    origin.store(storage)
    return block_feature_job(ARCH, origin.artifact, "digits", DATA)


def test_a_job_keeps_each_splits_features_to_the_bit(storage: Storage, job: BlockFeatureJob) -> None:
    job.run(storage)
    manifest = storage.manifest(job.artifact)
    assert sorted(manifest["files"]) == ["test.npy", "train.npy", "val.npy"]
    assert manifest["info"] == {"arch": ARCH, "origin": "tiny-rn.seed-0", "data": "digits.s0"}
    tower = load_clip(storage, job.origin, ARCH).visual
    for split in SIZES:
        stored = load_block_features(storage, {("seed-0", "digits"): job.artifact}, split)["seed-0", "digits"]
        assert stored.dtype == np.float32
        assert np.array_equal(stored, block_features(tower, images(split), ARCHS[ARCH]))


def test_its_name_and_inputs_are_the_origin_and_the_data(job: BlockFeatureJob) -> None:
    assert (job.artifact.kind, job.artifact.label) == ("blocks", "tiny-rn.seed-0.on.digits")
    assert job.inputs == (job.origin, DATA)
    fingerprint = job.artifact.fingerprint
    assert embedding_job(ARCH, job.origin, "digits", DATA).artifact.fingerprint != fingerprint
    for origin, data in ((Artifact("origin", "o", "o1"), DATA), (job.origin, Artifact("task", "t", "d2"))):
        assert block_feature_job(ARCH, origin, "digits", data).artifact.fingerprint != fingerprint


def test_its_cost_is_a_look_at_every_image(storage: Storage, job: BlockFeatureJob) -> None:
    cost = job.cost(Sizes(storage, {}))
    assert cost.flops == 12 * forward_flops(ARCH)
    assert cost.bytes == 4 * 12 * block_width(ARCH)


def test_a_combination_is_given_the_features_of_its_own_origins_and_tasks() -> None:
    def artifacts(*names: object) -> dict:
        return {name: Artifact("any", str(name), str(name)) for name in names}

    keys, tasks, origins = ("a@one", "b@two", "c@two"), "abc", ("one", "two")
    models = ArchModels(
        ARCH,
        artifacts(*origins),
        artifacts(*keys),
        artifacts(*keys),
        data=artifacts(*tasks),
        blocks=artifacts(*((origin, task) for origin in origins for task in tasks)),
    )
    pair = models.restricted(["c@two", "b@two"])
    assert pair.blocks == {("two", "b"): models.blocks["two", "b"], ("two", "c"): models.blocks["two", "c"]}
    assert models.restricted(keys).blocks == models.blocks
    assert not set(models.blocks.values()) & set(models.inputs())


# What a split's reader hands on


KEY = "digits@seed-0"
SEEN = ("seed-0", "digits")


@pytest.fixture
def models(storage: Storage, job: BlockFeatureJob) -> ArchModels:
    """One expert's, with an embedding and a head of zeros."""
    embedding, head = Artifact("embedding", "e", "e1"), Artifact("head", "h", "h1")
    zeros = {f"{split}.npy": array_bytes(np.zeros((n, 2), np.float32)) for split, n in SIZES.items()}
    storage.commit(embedding, zeros, {})
    storage.commit(head, {HEAD_FILE: array_bytes(np.zeros((10, 2), np.float32))}, {})
    return ArchModels(
        ARCH,
        {"seed-0": job.origin},
        {KEY: head},
        {KEY: Artifact("expert", "x", "x1")},
        {(KEY, "digits"): embedding},
        {"digits": DATA},
    )


def test_ligands_are_given_the_features_as_they_are_stored(
    storage: Storage, job: BlockFeatureJob, models: ArchModels
) -> None:
    job.run(storage)
    models = replace(models, blocks={SEEN: job.artifact})
    for split in SIZES:
        read = read_split(storage, models, split, [KEY], images=False)
        stored = load_block_features(storage, models.blocks, split)[SEEN]
        stored.flags.writeable = False  # as Ray's object store gives it
        data = replace(read, features={SEEN: stored}).data
        data.check((KEY,))
        assert np.array_equal(read.data.feature(*SEEN), stored)
        assert data.feature(*SEEN).data_ptr() == stored.ctypes.data, "copied"
        assert np.array_equal(pickle.loads(pickle.dumps(read)).data.feature(*SEEN), stored)


def test_without_them_nothing_is_read_and_asking_is_told(storage: Storage, models: ArchModels) -> None:
    data = read_split(storage, models, "val", [KEY], images=False).data
    data.check((KEY,))
    assert not data.features
    with pytest.raises(InputError, match=r"no block features of \('seed-0', 'digits'\)"):
        data.feature(*SEEN)


def test_features_of_other_images_are_refused(storage: Storage, models: ArchModels) -> None:
    data = read_split(storage, models, "val", [KEY], images=False).data
    with pytest.raises(InputError, match="'digits': 5 block features by 'seed-0', but 3 labels"):
        replace(data, features={SEEN: np.zeros((5, 7), np.float32)}).check((KEY,))
    replace(data, features={("seed-0", "other"): np.zeros((5, 7), np.float32)}).check((KEY,))
