"""Several tasks in one training: how they mix, which head judges which image, resuming bit for bit."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_training import MICRO, TINY, Recorder, arch_of, corners, equal, through_a_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from neulig_ray.errors import InputError, TrainingDiverged
from neulig_ray.models.archs import FinetuneRecipe
from neulig_ray.models.clip import build_clip, build_tower, embed, preprocess
from neulig_ray.models.heads import accuracy, zero_shot_head
from neulig_ray.tasks import Split
from neulig_ray.training.finetune import Epoch, finetune
from neulig_ray.training.lessons import EpochImages, Lesson

CLASSES = (("top left", "top right", "bottom left", "bottom right"), ("left", "right"))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def sides(count: int, seed: int = 0, size: int = 32) -> Split:
    """The corners' images by their bright half."""
    found = corners(count, seed + 10, size)
    return Split(found.images, found.labels % 2)


def lessons(name: str, counts: tuple[int, int] = (48, 16), sizes: tuple[int, int] = (32, 32)) -> list[Lesson]:
    """Two tasks with heads of different sizes."""
    arch, made = arch_of(name), (corners, sides)
    heads = [zero_shot_head(build_clip(arch), arch, names, ("the {}",)) for names in CLASSES]
    return [
        Lesson(head, draw(count, size=size), draw(24, seed=1, size=size))
        for head, draw, count, size in zip(heads, made, counts, sizes, strict=True)
    ]


Taken = list[tuple[Epoch, dict[str, Any]]]


def tune(
    name: str,
    *,
    epochs: int = 3,
    tower: nn.Module | None = None,
    given: list[Lesson] | None = None,
    **more: Any,
) -> tuple[Taken, nn.Module]:
    """A run on a fresh tower: its epochs with their checkpoints, and the tower."""
    tower = build_tower(arch_of(name)) if tower is None else tower
    keywords = {key: more.pop(key) for key in ("checkpoint", "wrap", "rank", "world_size") if key in more}
    recipe = FinetuneRecipe(**{"epochs": epochs, "batch_size": 16, **more})
    run = finetune(tower, given or lessons(name), arch_of(name), recipe, seed=0, name="x", **keywords)
    return [(epoch, epoch.checkpoint()) for epoch in run], tower


def drawn(made: list[Lesson], seed: int = 0) -> EpochImages:
    recipe = FinetuneRecipe()
    return EpochImages.drawn(made, recipe, np.random.default_rng(seed), np.random.default_rng((seed, 1)))


def blank(count: int, share: float = 1.0) -> Lesson:
    """A lesson whose images are their own numbers."""
    images = np.arange(count, dtype=np.uint8)[:, None, None, None]
    split = Split(images, np.arange(count))
    return Lesson(torch.zeros(1, 1), split, split, share)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(30, 250), min_size=1, max_size=5), st.integers(10, 60), st.integers(0, 2**16))
def test_every_batch_mixes_the_tasks_in_proportion(counts: list[int], batch: int, seed: int) -> None:
    order = drawn([blank(count) for count in counts], seed).order
    assert sorted(map(tuple, order)) == [(t, row) for t, count in enumerate(counts) for row in range(count)]
    shares = np.array(counts) / sum(counts)
    for start in range(0, len(order) - batch + 1, batch):
        found = np.bincount(order[start : start + batch, 0], minlength=len(counts))
        # Each edge of a batch may take the one image that lies across it of each task, and its place.
        assert (abs(found - batch * shares) <= 2 * (1 + shares * len(counts))).all()


def test_neighbours_are_of_any_two_tasks() -> None:
    """Of equal tasks that took turns, each of two workers would see one alone."""
    tasks = drawn([blank(200), blank(200)]).order[:, 0]
    assert 0.3 < (tasks[::2] == 0).mean() < 0.7
    assert set(itertools.pairwise(tasks)) == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_a_share_is_another_part_of_the_images_in_each_epoch() -> None:
    whole, part = blank(40), blank(90, share=1 / 3)
    epochs = [drawn([whole, part], seed).order for seed in range(2)]
    rows = [set(order[order[:, 0] == 1, 1].tolist()) for order in epochs]
    assert [len(order) for order in epochs] == [70, 70]
    assert [len(own) for own in rows] == [30, 30]
    assert rows[0] != rows[1]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 2**16))
def test_a_batch_keeps_each_images_label_and_move_and_can_be_cut(one: int, other: int, seed: int) -> None:
    images = drawn([blank(20), blank(25)], seed)
    batch = images.read(images.order[5:35])
    start, stop = sorted((one, other))
    seen = {}
    for lesson, places, pixels, labels, moves in batch.cut(slice(start, stop)):
        assert pixels.flatten().tolist() == labels.tolist()
        assert np.array_equal(moves.numpy(), images.moves[lesson][labels.numpy()])
        seen |= {int(at): (lesson, int(label)) for at, label in zip(places, labels, strict=True)}
    assert seen == {at: tuple(images.order[5 + at].tolist()) for at in range(start, stop)}


def test_one_network_learns_both_tasks_and_the_heads_stay() -> None:
    given, before = lessons("micro", (128, 128)), lessons("micro")
    epochs, tower = tune("micro", epochs=7, given=given)
    assert all(torch.equal(new.head, old.head) for new, old in zip(given, before, strict=True))
    reached = []
    for lesson in given:
        z = torch.from_numpy(embed(tower, lesson.val.images, MICRO))
        reached.append(accuracy(z, lesson.head, torch.from_numpy(lesson.val.labels)))
    assert epochs[-1][0].val_accuracy == pytest.approx(np.mean(reached))
    assert min(reached) > 80
    assert epochs[-1][0].images_per_second * epochs[-1][0].seconds == pytest.approx(256)


@pytest.mark.parametrize("name", TINY)
def test_a_resumed_training_on_several_tasks_is_bit_identical(name: str) -> None:
    whole, tower = tune(name, epochs=2)
    torch.manual_seed(99)
    fresh = build_clip(arch_of(name), seed=77).visual
    resumed, other = tune(name, epochs=2, checkpoint=through_a_file(whole[0][1]), tower=fresh)
    assert equal(dict(tower.state_dict()), dict(other.state_dict()))
    assert [(e.index, e.loss, e.val_accuracy) for e, _ in resumed] == [
        (e.index, e.loss, e.val_accuracy) for e, _ in whole[1:]
    ]


@pytest.mark.parametrize("sizes", [(32, 32), (40, 24)], ids=["one size", "two sizes"])
def test_each_image_is_judged_by_its_own_tasks_head(sizes: tuple[int, int]) -> None:
    """The first step's loss and gradient by hand, for images of one size and of two."""
    given = lessons("micro", (24, 8), sizes)
    plain = {"epochs": 1, "batch_size": 32, "augment": "none", "gradient_clip": 1e9}
    epochs, tower = tune("micro", given=given, **plain)
    by_hand = build_tower(MICRO).train()
    losses: list[Tensor] = []
    for lesson in given:
        logits = normalize(by_hand(preprocess(lesson.train.images, MICRO)), dim=-1) @ lesson.head.T
        losses.append(cross_entropy(logits, torch.from_numpy(lesson.train.labels), reduction="sum"))
    loss = sum(losses[1:], losses[0]) / 32
    loss.backward()
    assert epochs[0][0].loss == pytest.approx(loss.item(), rel=1e-5)
    for (name, mine), (_, theirs) in zip(tower.named_parameters(), by_hand.named_parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_micro_batches_of_several_tasks_add_up_to_the_batch() -> None:
    plain, cut = (tune("micro", epochs=1, micro_batch=size)[1].state_dict() for size in (0, 5))
    names = [name for name in plain if not name.endswith("in_proj_bias")]
    assert max(float((plain[name] - cut[name]).abs().max()) for name in names) < 1e-5


def test_workers_share_what_one_would_see_of_all_tasks() -> None:
    images = {}
    for world_size, rank in ((1, 0), (2, 0), (2, 1)):
        recorders: list[Recorder] = []
        tune(
            "micro",
            epochs=1,
            rank=rank,
            world_size=world_size,
            wrap=lambda module, kept=recorders: kept.append(Recorder(module)) or kept[0],
        )
        images[world_size, rank] = [
            {row.numpy().tobytes() for row in batch} for batch in recorders[0].batches
        ]
    for whole, one, other in zip(images[1, 0], images[2, 0], images[2, 1], strict=True):
        assert one | other == whole
        assert not one & other


def test_tasks_that_are_too_small_together_are_refused() -> None:
    with pytest.raises(InputError, match="x: batches of 6 images cannot be shared by 4 workers"):
        tune("micro", given=lessons("micro", (4, 2)), world_size=4)


def test_what_diverges_on_one_task_is_told() -> None:
    good, other = lessons("micro")
    bad = other._replace(head=torch.full_like(other.head, float("nan")))
    with pytest.raises(TrainingDiverged, match=r"x: epoch 1, step 1: loss nan.*learning rate"):
        tune("micro", given=[good, bad])
    with pytest.raises(TrainingDiverged, match=r"x: epoch 1: embeddings of val are NaN"):
        tune("micro", epochs=1, batch_size=64, learning_rate=1e30)


def test_one_lesson_is_an_experts_training() -> None:
    """It draws nothing for mixing from what orders and moves its images."""
    (lesson, _), recipe = lessons("micro"), FinetuneRecipe(shift=2)
    images, generator = drawn([lesson]), np.random.default_rng(0)
    assert np.array_equal(images.order[:, 1], generator.permutation(48))
    assert np.array_equal(images.moves[0], generator.integers(-recipe.shift, recipe.shift + 1, (48, 2)))
