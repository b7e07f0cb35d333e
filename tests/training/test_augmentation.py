"""Augmentation: the field's random crop on the device, and what draws it."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_training import MICRO, Recorder, corners, equal, head_of, tune

from neulig_ray.models.archs import ARCHS, FinetuneRecipe
from neulig_ray.models.clip import build_tower
from neulig_ray.tasks.reading.crops import crop_boxes
from neulig_ray.training.augmentation import augmented, cropped, draw
from neulig_ray.training.finetune import finetune
from neulig_ray.training.lessons import Lesson

CROP = FinetuneRecipe(augment="crop")


@settings(max_examples=40, deadline=None)
@given(st.integers(8, 60), st.integers(8, 60), st.integers(4, 60), st.integers(0, 2**16))
def test_a_crop_is_pils_within_a_level(width: int, height: int, size: int, seed: int) -> None:
    """Growing and shrinking, in both directions at once; no overshooting colours, which PIL clips twice."""
    rng = np.random.default_rng(seed)
    images = rng.integers(80, 176, (3, height, width, 3), dtype=np.uint8)
    boxes = crop_boxes(rng, 3, width, height)
    found = cropped(torch.from_numpy(images), torch.from_numpy(boxes), size).numpy()
    for image, box, result in zip(images, boxes.tolist(), found, strict=True):
        wanted = Image.fromarray(image).crop(box).resize((size, size), Image.Resampling.BICUBIC)
        assert np.abs(np.asarray(wanted).astype(int) - result).max() <= 1


def test_a_box_of_the_whole_image_at_its_own_size_is_the_image() -> None:
    images = torch.from_numpy(corners(5).images)
    assert torch.equal(cropped(images, torch.tensor([[0, 0, 32, 32]] * 5), 32), images)


def test_boxes_drawn_at_once_cover_their_ranges() -> None:
    boxes = draw(CROP, np.random.default_rng(0), (4000, 200, 200, 3))
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    area, ratio = width * height / 200**2, width / height
    whole = (width == 200) & (height == 200)
    assert 0.05 < whole.mean() < 0.3  # ten tries failed: square images leave little room for the ratios
    assert 0.9 - 0.005 < area.min() < 0.905
    assert 0.89 < ratio.min() < 0.92 < 1.08 < ratio.max() < 1.12  # a wider one would not fit
    assert {0} < set(boxes[:, 0].tolist())
    assert len(np.unique(boxes, axis=0)) > 2500


def test_the_kinds_of_augmentation() -> None:
    images = torch.from_numpy(corners(6).images)
    drawn = {
        kind: draw(FinetuneRecipe(augment=kind), np.random.default_rng(0), tuple(images.shape))
        for kind in ("none", "shift", "crop")
    }
    assert {kind: moves.shape for kind, moves in drawn.items()} == {
        "none": (6, 0),
        "shift": (6, 2),
        "crop": (6, 4),
    }
    assert np.abs(drawn["shift"]).max() == 2
    same = augmented(FinetuneRecipe(augment="none"), images, torch.from_numpy(drawn["none"]), 32)
    assert torch.equal(same, images)
    assert not torch.equal(augmented(CROP, images, torch.from_numpy(drawn["crop"]), 32), images)


def test_full_size_archs_crop_and_tiny_ones_shift() -> None:
    for name in ("RN50-quickgelu", "ViT-B-32-quickgelu", "ViT-L-14", "ViT-B-16-plus-240"):
        assert ARCHS[name].finetune.augment == "crop"
    for name in ("tiny-vit", "tiny-rn"):
        assert ARCHS[name].finetune.augment == "shift"


def test_a_shifting_recipe_is_told_apart_as_before_there_were_others() -> None:
    """Fingerprints of experts hold it: a new key would train every expert of every storage again."""
    recipe = ARCHS["tiny-vit"].recipe("digits")
    assert recipe.identity() == {
        "epochs": 8,
        "batch_size": 64,
        "learning_rate": 1e-3,
        "weight_decay": 0.1,
        "warmup": 0.05,
        "gradient_clip": 1.0,
        "shift": 2,
        "micro_batch": 0,
        "precision": "auto",
        "batchnorm": "train",
        "channels_last": False,
        "gradient_checkpointing": False,
        "compile": False,
    }
    kinds: list[Any] = ["shift", "crop", "none"]
    told = [dataclasses.replace(recipe, augment=kind).identity() for kind in kinds]
    assert told[0] != told[1] != told[2] != told[0]
    assert dataclasses.replace(recipe, augment="crop", shift=7).identity() == told[1]


def test_crops_are_the_same_however_many_workers_share_them() -> None:
    seen = {}
    for world_size, rank in ((1, 0), (2, 0), (2, 1)):
        recorders: list[Recorder] = []
        recipe = FinetuneRecipe(epochs=1, batch_size=16, augment="crop", micro_batch=5)
        run = finetune(
            build_tower(MICRO),
            [Lesson(head_of("micro"), corners(16, size=40), corners(8))],
            MICRO,
            recipe,
            seed=0,
            rank=rank,
            world_size=world_size,
            wrap=lambda module, kept=recorders: kept.append(Recorder(module)) or kept[0],
        )
        list(run)
        seen[world_size, rank] = torch.cat(recorders[0].batches)
    assert seen[1, 0].shape == (16, 3, 32, 32)
    for rank in range(2):
        # A level of 255 may round the other way in a batch of another size.
        assert (seen[2, rank] - seen[1, 0][rank::2]).abs().max() < 0.02


@pytest.mark.parametrize("augment", ["crop", "none"])
def test_a_resumed_expert_is_bit_identical_under_each_augmentation(augment: str) -> None:
    whole, tower = tune("micro", augment=augment)
    _, other = tune("micro", augment=augment, checkpoint=whole[0][1])
    assert equal(dict(tower.state_dict()), dict(other.state_dict()))
    assert not equal(dict(tower.state_dict()), dict(tune("micro")[1].state_dict()))
