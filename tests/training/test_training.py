"""Training: schedules, resuming bit for bit, workers, divergence, and what pre-training leaves behind."""

import copy
import dataclasses
import functools
import io
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, normalize

from neulig_ray.errors import InputError, TrainingDiverged
from neulig_ray.models.archs import ARCHS, Arch, FinetuneRecipe, PretrainRecipe
from neulig_ray.models.clip import build_clip, build_tower, embed, preprocess, tokenize
from neulig_ray.models.heads import accuracy, zero_shot_head
from neulig_ray.models.tower_files import describe, read_tower, tower_bytes
from neulig_ray.tasks import Split, Task
from neulig_ray.training import contrastive
from neulig_ray.training.augmentation import shifted
from neulig_ray.training.contrastive import pretrain, pretraining_stream, set_embedding_norm
from neulig_ray.training.finetune import _batches, finetune
from neulig_ray.training.lessons import Lesson
from neulig_ray.training.optimisation import scheduled

TINY = ("tiny-rn", "tiny-vit")
CORNERS = ("top left", "top right", "bottom left", "bottom right")
MICRO = Arch(
    name="micro",
    description="for tests: no BatchNorm, trains in milliseconds",
    config={
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 1},
        "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    },
)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def arch_of(name):
    return MICRO if name == "micro" else ARCHS[name]


def corners(count, seed=0, size=32):
    """Images whose label is their bright quarter."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, count)
    images = rng.integers(0, 60, (count, size, size, 3), dtype=np.uint8)
    half = size // 2
    for image, label in zip(images, labels, strict=True):
        image[label // 2 * half :, label % 2 * half :][:half, :half] += 120
    return Split(images, labels)


@functools.cache
def head_of(name, seed=0):
    return zero_shot_head(build_clip(arch_of(name), seed=seed), arch_of(name), CORNERS, ("the {}",))


def tune(name, *, epochs=3, count=50, checkpoint=None, seed=0, tower=None, **recipe):
    """A run on a fresh tower: the yielded epochs with their checkpoints and states taken, and the tower."""
    arch = arch_of(name)
    tower = build_tower(arch) if tower is None else tower
    settings = FinetuneRecipe(epochs=epochs, batch_size=16, **recipe)
    data = (corners(count), corners(24, seed=1))
    run = finetune(
        tower, [Lesson(head_of(name), *data)], arch, settings, seed=seed, checkpoint=checkpoint, name="x"
    )
    return [(epoch, epoch.checkpoint(), copy.deepcopy(dict(tower.state_dict()))) for epoch in run], tower


def through_a_file(checkpoint):
    file = io.BytesIO()
    torch.save(checkpoint, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


# The pieces


@pytest.mark.parametrize("train", ["tune", "learn"])
@pytest.mark.parametrize("flushed", [True, False])
def test_a_training_leaves_how_its_process_computes_as_it_was(train, flushed):
    """It is set for a job's process as a whole: a user's own does not lose its smallest numbers."""
    torch.set_flush_denormal(flushed)
    smallest = torch.tensor(1e-40) * 1
    tune("micro", epochs=1) if train == "tune" else learn("micro", steps=2)
    assert (torch.tensor(1e-40) * 1 == 0) == (smallest == 0) == flushed


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 400), st.floats(0, 0.5), st.floats(1e-5, 1))
def test_the_learning_rate_rises_to_its_peak_then_falls_to_nearly_zero(steps, warmup, peak):
    rates = [scheduled(step, steps, peak, warmup) for step in range(steps)]
    top = rates.index(max(rates))
    assert rates[top] == pytest.approx(peak)
    assert top in {max(1, round(warmup * steps)) - 1, max(1, round(warmup * steps))}
    assert all(a < b for a, b in itertools.pairwise(rates[: top + 1]))
    assert all(a >= b for a, b in itertools.pairwise(rates[top:]))
    assert min(rates) > 0


def test_the_schedule_is_linear_then_cosine():
    rates = [scheduled(step, 12, 1.0, 2 / 12) for step in range(12)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[7] == pytest.approx(0.5)
    assert rates[11] == pytest.approx(0.5 * (1 + math.cos(0.9 * math.pi)))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**16), st.integers(0, 3), st.integers(4, 7), st.integers(4, 7))
def test_a_shift_moves_every_pixel_and_repeats_the_border(seed, most, height, width):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (3, height, width, 3), dtype=np.uint8)
    shifts = rng.integers(-most, most + 1, (3, 2))
    moved = shifted(torch.from_numpy(images), torch.from_numpy(shifts)).numpy()
    for image, (dy, dx), result in zip(images, shifts, moved, strict=True):
        for y in range(height):
            for x in range(width):
                source = image[min(max(y - dy, 0), height - 1), min(max(x - dx, 0), width - 1)]
                assert np.array_equal(result[y, x], source)


# Fine-tuning


@pytest.mark.parametrize("name", TINY)
def test_an_expert_learns_its_task_and_its_head_stays(name):
    head = head_of(name).clone()
    epochs, tower = tune(name, epochs=4, count=128, learning_rate=1e-3)
    assert epochs[-1][0].val_accuracy > 60
    assert epochs[-1][0].loss < epochs[0][0].loss
    assert torch.equal(head, head_of(name))
    assert [e.index for e, _, _ in epochs] == [1, 2, 3, 4]
    assert {e.epochs for e, _, _ in epochs} == {4}
    val = corners(24, seed=1)
    z = torch.from_numpy(embed(tower, val.images, arch_of(name)))
    assert epochs[-1][0].val_accuracy == accuracy(z, head, torch.from_numpy(val.labels))
    assert equal(epochs[-1][1]["tower"], dict(tower.state_dict()))


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("killed_after", [1, 2])
def test_a_resumed_expert_is_bit_identical(name, killed_after):
    whole, tower = tune(name)
    torch.manual_seed(99)  # a resumed process has another global generator
    resumed, other = tune(
        name,
        checkpoint=through_a_file(whole[killed_after - 1][1]),
        tower=build_clip(arch_of(name), seed=77).visual,
    )
    assert equal(dict(tower.state_dict()), dict(other.state_dict()))
    assert [(e.index, e.loss, e.val_accuracy) for e, _, _ in resumed] == [
        (e.index, e.loss, e.val_accuracy) for e, _, _ in whole[killed_after:]
    ]


def test_resuming_from_the_end_gives_the_expert_and_trains_nothing():
    whole, tower = tune("micro")
    resumed, other = tune("micro", checkpoint=whole[-1][1], tower=build_clip(MICRO, seed=5).visual)
    assert resumed == []
    assert equal(dict(tower.state_dict()), dict(other.state_dict()))


def test_checkpoints_hold_plain_values_that_later_epochs_do_not_change():
    epochs, _ = tune("micro", epochs=2)
    (_, first, first_state), (_, second, _) = epochs
    assert first["epoch"] == 1
    assert not equal(first["tower"], second["tower"])
    assert equal(first["tower"], first_state)
    steps = {float(entry["step"]) for entry in first["optimizer"]["state"].values()}
    assert steps == {3.0}  # 50 images give three batches of 16; the two left over wait


def test_the_last_smaller_batch_is_kept_where_the_recipe_says_so():
    (only, checkpoint, _), *_ = tune("micro", epochs=1, keep_last=True)[0]
    steps = {float(entry["step"]) for entry in checkpoint["optimizer"]["state"].values()}
    assert steps == {4.0}  # 16, 16, 16 and 2
    assert only.images_per_second * only.seconds == pytest.approx(50)
    kept, dropped = (tune("micro", epochs=1, count=48, keep_last=k)[1].state_dict() for k in (True, False))
    assert equal(kept, dropped), "nothing is left over"


@pytest.mark.parametrize(
    ("images", "least", "sizes"),
    [
        (50, 16, [16, 16, 16]),
        (50, 2, [16, 16, 16, 2]),
        (49, 2, [16, 16, 16]),  # BatchNorm has no statistics of one image
        (50, 4, [16, 16, 16]),  # two workers would get one each
        (48, 2, [16, 16, 16]),
        (16, 16, [16]),
    ],
)
def test_batches_cover_an_epoch(images, least, sizes):
    found = _batches(images, 16, least)
    assert [batch.stop - batch.start for batch in found] == sizes
    assert [batch.start for batch in found] == list(range(0, 16 * len(sizes), 16))


def test_a_recipe_without_it_has_the_name_that_it_had():
    assert "keep_last" not in FinetuneRecipe().identity()
    assert FinetuneRecipe(keep_last=True).identity() == {**FinetuneRecipe().identity(), "keep_last": True}


def test_an_expert_is_a_function_of_its_seed():
    first, again, other = (tune("micro", seed=s, epochs=1)[1].state_dict() for s in (0, 0, 1))
    assert equal(first, again)
    assert not equal(first, other)


def test_batchnorm_statistics_follow_the_data_and_survive_a_file():
    epochs, tower = tune("tiny-rn", epochs=2)
    state = tower.state_dict()
    assert int(state["bn1.num_batches_tracked"]) == 6
    assert not torch.equal(state["bn1.running_mean"], torch.zeros(8))
    read, _ = read_tower(tower_bytes(epochs[-1][2], describe(ARCHS["tiny-rn"], "tower")), ARCHS["tiny-rn"])
    assert equal(read, dict(state))


def test_a_task_smaller_than_a_batch_is_one_batch():
    epochs, _ = tune("micro", epochs=1, count=5)
    assert math.isfinite(epochs[0][0].loss)


def test_a_loss_that_is_not_finite_names_the_expert_the_epoch_and_the_step():
    tower = build_tower(MICRO)
    run = finetune(
        tower,
        [Lesson(head_of("micro"), corners(48), corners(8))],
        MICRO,
        FinetuneRecipe(epochs=3, batch_size=16),
        seed=0,
        name="corners@seed-0",
    )
    next(run)
    with torch.no_grad():
        tower.proj.fill_(float("nan"))
    with pytest.raises(TrainingDiverged, match=r"corners@seed-0: epoch 2, step 1: loss nan.*learning rate"):
        next(run)


def test_weights_that_the_last_step_spoilt_are_noticed():
    with pytest.raises(TrainingDiverged, match=r"x: epoch 1: embeddings of val are NaN"):
        tune("micro", epochs=1, count=16, learning_rate=1e30)
    with pytest.raises(TrainingDiverged, match="mean norm is nan"):
        learn("micro", steps=1, learning_rate=1e30)


def test_the_first_step_is_adamws_on_the_clipped_gradient_of_the_heads_loss():
    """One step by hand: plain torch.optim on the same batch gives the same weights."""
    train, head = corners(16), head_of("micro")
    recipe = FinetuneRecipe(epochs=1, batch_size=16, shift=0, gradient_clip=0.1, weight_decay=0.3)
    tower, by_hand = build_tower(MICRO), build_tower(MICRO).train()
    list(finetune(tower, [Lesson(head, train, train)], MICRO, recipe, seed=0))
    z = by_hand(preprocess(train.images, MICRO))
    cross_entropy(normalize(z, dim=-1) @ head.T, torch.from_numpy(train.labels)).backward()
    torch.nn.utils.clip_grad_norm_(by_hand.parameters(), 0.1)
    matrices = [p for p in by_hand.parameters() if p.ndim > 1]
    vectors = [p for p in by_hand.parameters() if p.ndim <= 1]
    torch.optim.AdamW(matrices, lr=1e-3, weight_decay=0.3).step()
    torch.optim.AdamW(vectors, lr=1e-3, weight_decay=0.0).step()
    # Adam's first step is a sign: where a gradient is about 0 (biases of keys), its rounding decides.
    for (name, mine), (_, theirs) in zip(tower.named_parameters(), by_hand.named_parameters(), strict=True):
        clear = theirs.grad.abs() > 1e-6
        assert clear.any(), name
        torch.testing.assert_close(mine[clear], theirs[clear], rtol=0, atol=2e-5, msg=name)


# Several workers


class Recorder(torch.nn.Module):
    """Stands where data parallelism goes, and keeps the batches that it sees."""

    def __init__(self, module):
        super().__init__()
        self.module, self.batches = module, []

    def forward(self, images):
        self.batches.append(images.clone())
        return self.module(images)


def test_workers_share_every_global_batch_and_their_mean_gradient_is_the_whole_batchs():
    batches, gradients = {}, {}
    for world_size, rank in ((1, 0), (3, 0), (3, 1), (3, 2)):
        tower, recorders = build_tower(MICRO), []
        run = finetune(
            tower,
            [Lesson(head_of("micro"), corners(16), corners(8))],
            MICRO,
            FinetuneRecipe(epochs=1, batch_size=16, gradient_clip=1e9),
            seed=0,
            rank=rank,
            world_size=world_size,
            wrap=lambda module, kept=recorders: kept.append(Recorder(module)) or kept[0],
        )
        list(run)
        batches[world_size, rank] = recorders[0].batches[0]
        gradients[world_size, rank] = tower.proj.grad
    assert [len(batches[3, r]) for r in range(3)] == [6, 5, 5]
    for rank in range(3):
        assert torch.equal(batches[3, rank], batches[1, 0][rank::3])
    mean = sum(gradients[3, r] for r in range(3)) / 3
    torch.testing.assert_close(mean, gradients[1, 0], rtol=1e-4, atol=1e-6)


def test_a_batch_too_small_to_share_is_refused():
    run = finetune(
        build_tower(MICRO), [Lesson(head_of("micro"), corners(16), corners(8))], MICRO,
        FinetuneRecipe(batch_size=16), seed=0, world_size=9, name="x",
    )  # fmt: skip
    with pytest.raises(InputError, match="9 workers"):
        next(run)


# Pre-training

CAPTIONS = tuple(f"{form} {corner}" for corner in CORNERS for form in ("the", "a"))


def learn(name, *, seed=0, checkpoint=None, clip=None, **recipe):
    arch = arch_of(name)
    clip = build_clip(arch, seed=seed) if clip is None else clip
    split = corners(200)
    captions = [CAPTIONS[2 * label + i % 2] for i, label in enumerate(split.labels)]
    settings = PretrainRecipe(batch_size=16, **recipe)
    run = pretrain(clip, split.images, captions, arch, settings, seed=seed, checkpoint=checkpoint, name="x")
    return [(chunk, chunk.checkpoint()) for chunk in run], clip


@pytest.fixture
def _short_chunks(monkeypatch):
    monkeypatch.setattr(contrastive, "CHUNK", 3)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.usefixtures("_short_chunks")
def test_a_resumed_origin_is_bit_identical(name):
    whole, clip = learn(name, steps=7)
    assert [c.step for c, _ in whole] == [3, 6, 7]
    checkpoint = through_a_file(whole[1][1])
    assert "token_embedding.weight" not in checkpoint["clip"]
    torch.manual_seed(99)
    resumed, other = learn(name, steps=7, checkpoint=checkpoint, clip=build_clip(arch_of(name), seed=55))
    assert equal(dict(clip.state_dict()), dict(other.state_dict()))
    assert [(c.step, c.loss) for c, _ in resumed] == [(7, whole[2][0].loss)]
    finished, last = learn(name, steps=7, checkpoint=whole[2][1], clip=build_clip(arch_of(name), seed=55))
    assert finished == []
    assert equal(dict(clip.state_dict()), dict(last.state_dict()))


def test_pretraining_teaches_zero_shot_classification_and_leaves_the_token_table():
    chunks, clip = learn("tiny-rn", steps=40, learning_rate=2e-3)
    assert torch.equal(clip.token_embedding.weight, build_clip(ARCHS["tiny-rn"]).token_embedding.weight)
    val = corners(64, seed=1)
    head = zero_shot_head(clip, ARCHS["tiny-rn"], CORNERS, ("the {}", "a {}"))
    z = embed(clip.visual, val.images, ARCHS["tiny-rn"])
    assert accuracy(torch.from_numpy(z), head, torch.from_numpy(val.labels)) > 60
    assert chunks[-1][0].accuracy <= 75, "two captions a corner: no image can tell which is its own"


@pytest.mark.parametrize("name", TINY)
def test_embeddings_of_an_origin_have_clips_usual_norm(name):
    _, clip = learn(name, steps=2, embedding_norm=10.0)
    norms = np.linalg.norm(embed(clip.visual, corners(200).images, arch_of(name)), axis=1)
    assert norms.mean() == pytest.approx(10.0, rel=1e-4)


@pytest.mark.parametrize("name", TINY)
def test_rescaling_the_projection_changes_no_direction(name):
    tower, images = build_tower(arch_of(name)), corners(40).images
    before = embed(tower, images, arch_of(name))
    factor = set_embedding_norm(tower, images, arch_of(name), 25.0)
    np.testing.assert_allclose(embed(tower, images, arch_of(name)), factor * before, rtol=1e-3, atol=1e-4)


def test_a_tower_without_output_projection_is_refused():
    class Bare(torch.nn.Module):
        def forward(self, images):
            return images.flatten(1)

    with pytest.raises(InputError, match=r"micro.*output projection"):
        set_embedding_norm(Bare(), corners(4).images, MICRO, 10.0)


def test_the_contrastive_loss_finds_each_caption_among_distinct_ones():
    """The first step's loss by hand: candidates are all eight captions, each once."""
    clip, split = build_clip(MICRO, seed=3), corners(16)
    captions = [CAPTIONS[2 * label] for label in split.labels] * 1
    with torch.no_grad():
        z = normalize(clip.encode_image(preprocess(split.images, MICRO)), dim=-1)
        distinct = sorted(set(captions))
        t = normalize(clip.encode_text(tokenize(distinct, MICRO)), dim=-1)
        target = torch.tensor([distinct.index(c) for c in captions])
        expected = cross_entropy(clip.logit_scale.exp() * z @ t.T, target).item()
    recipe = PretrainRecipe(steps=1, batch_size=16, candidates=8)
    (chunk,) = pretrain(clip, split.images, captions, MICRO, recipe, seed=3)
    assert chunk.loss == pytest.approx(expected, rel=1e-4)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 30), st.integers(0, 40), st.integers(0, 2**16))
def test_candidates_are_the_batchs_captions_and_others_each_once(known, wanted, seed):
    rng = np.random.default_rng(seed)
    own = np.unique(rng.integers(0, known, 5))
    chosen = contrastive._candidates(own, known, wanted, rng)
    assert len(set(chosen.tolist())) == len(chosen) == min(known, max(wanted, len(own)))
    assert set(own.tolist()) <= set(chosen.tolist()) <= set(range(known))
    assert sorted(chosen.tolist()) == chosen.tolist()


def test_a_diverging_pretraining_names_itself_and_the_step():
    clip = build_clip(MICRO)
    with torch.no_grad():
        clip.visual.proj.fill_(float("inf"))
    with pytest.raises(TrainingDiverged, match=r"x: step 1: loss nan"):
        learn("micro", clip=clip, steps=2)


# The stream


def _captioned(name, size=8):
    def stream(seed, count):
        return np.full((count, size, size, 3), seed, np.uint8), [f"{name} {i}" for i in range(count)]

    return Task(name, ("a",), ("{}",), lambda seed: {}, "", pretraining=stream)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(0, 100), st.integers(0, 200))
def test_the_stream_is_shared_equally_in_the_order_of_the_tasks(tasks, count, seed):
    named = [_captioned(f"t{i}") for i in range(tasks)]
    silent = dataclasses.replace(_captioned("silent"), pretraining=None)
    images, captions = pretraining_stream([silent, *named], seed, count)
    assert len(images) == len(captions) == count
    shares = [sum(c.startswith(f"t{i} ") for c in captions) for i in range(tasks)]
    assert max(shares) - min(shares) <= 1
    assert captions == sorted(captions, key=lambda c: c.split()[0])
    assert (images == seed).all()


def test_a_stream_needs_captioned_tasks_of_one_image_size():
    with pytest.raises(InputError, match="pre-training stream"):
        pretraining_stream([dataclasses.replace(_captioned("silent"), pretraining=None)], 0, 10)
    with pytest.raises(InputError, match="differ in size"):
        pretraining_stream([_captioned("a", 8), _captioned("b", 16)], 0, 10)
