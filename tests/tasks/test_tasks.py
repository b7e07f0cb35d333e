"""The offline tasks: what they give, that it is the same everywhere, and what a bad task is told."""

import functools
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from neulig_ray.errors import InputError
from neulig_ray.registry import Registry
from neulig_ray.tasks import TASKS, Split, Task
from neulig_ray.tasks.drawing import captions, fonts, outlines
from neulig_ray.tasks.drawing import raster as drawing
from neulig_ray.tasks.reading.splits import balanced, stratified

OFFLINE = {
    "count": (6, 3000, 500, 600),
    "digits": (10, 900, 297, 600),
    "letters": (26, 3600, 500, 600),
    "mnist-5k": (10, 3000, 800, 1000),
    "shapes": (10, 3000, 500, 600),
    "signs": (20, 3000, 500, 600),
    "textures": (14, 3000, 500, 600),
}
each_task = pytest.mark.parametrize("name", OFFLINE)


@functools.cache
def splits(name: str, seed: int = 0) -> dict[str, Split]:
    return TASKS[name].splits(seed)


def digest(splits: Mapping[str, Split]) -> str:
    sha = hashlib.sha256()
    for name in sorted(splits):
        sha.update(name.encode() + splits[name].images.tobytes() + splits[name].labels.tobytes())
    return sha.hexdigest()


@functools.cache
def digests_of_a_fresh_process() -> dict[str, list[str]]:
    """Digests of seeds 1 and 0, drawn in that order, the tasks in reverse, with another hash seed."""
    program = (
        "import json\n"
        "import numpy as np\n"
        "np.random.seed(5)\n"
        "from neulig_ray.tasks import TASKS\n"
        "from test_tasks import OFFLINE, digest\n"
        "print(json.dumps({n: [digest(TASKS[n].splits(s)) for s in (1, 0)] for n in reversed(OFFLINE)}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=Path(__file__).parent
    )
    return json.loads(done.stdout)


def test_the_package_has_the_offline_tasks() -> None:
    assert set(OFFLINE) <= set(TASKS)


@each_task
def test_splits_have_their_sizes_and_every_class(name: str) -> None:
    num_classes, *sizes = OFFLINE[name]
    task = TASKS[name]
    assert len(task.class_names) == len(set(task.class_names)) == num_classes
    assert [len(splits(name)[part]) for part in ("train", "val", "test")] == sizes
    for split in splits(name).values():
        assert split.images.dtype == np.uint8
        assert split.images.shape == (len(split), 32, 32, 3)
        assert split.labels.dtype == np.int64
        counts = np.bincount(split.labels, minlength=num_classes)
        assert counts.min() > 0
        assert counts.max() <= 1.3 * counts.min() + 1  # scikit-learn's digits are not quite balanced


@each_task
def test_templates_hold_one_place_for_the_class_name(name: str) -> None:
    templates = TASKS[name].templates
    assert len(templates) > 1
    assert all(template.count("{}") == 1 and "{" not in template.replace("{}", "") for template in templates)


@each_task
def test_the_seed_alone_decides(name: str) -> None:
    other, again = digests_of_a_fresh_process()[name]
    assert digest(splits(name)) == again
    assert other != again


@each_task
def test_no_image_stands_in_two_splits(name: str) -> None:
    images = [image.tobytes() for split in splits(name).values() for image in split.images]
    assert len(set(images)) == len(images)


def test_real_images_are_split_before_they_are_drawn() -> None:
    """digits draws each image in random colours, so equal bytes would not show a source image used twice."""
    labels = np.arange(1797) % 10
    parts = stratified("digits", 3, labels, {"train": 900, "val": 297, "test": 600})
    together = np.concatenate(list(parts.values()))
    assert sorted(together) == list(range(1797))


@each_task
def test_pictures_are_light_on_dark(name: str) -> None:
    """The tiny models stall without a fixed polarity. Patterns have no border: their darker half tells."""
    images = splits(name)["train"].images.astype(np.float64).mean(axis=3)
    border = np.concatenate([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], axis=1)
    level = np.median(border) if name != "textures" else np.quantile(images, 0.25)
    assert level < 80 < np.quantile(images, 0.98)


@each_task
def test_the_stream_is_captioned_and_a_function_of_its_seed(name: str) -> None:
    task = TASKS[name]
    assert task.pretraining is not None
    images, texts = task.pretraining(3, 400)
    again, same_texts = task.pretraining(3, 400)
    assert images.shape == (400, 32, 32, 3)
    assert images.dtype == np.uint8
    assert np.array_equal(images, again)
    assert texts == same_texts
    assert not np.array_equal(images, task.pretraining(4, 400)[0])

    mentioned = [
        {label for label, word in enumerate(task.class_names) if re.search(rf"\b{word}\b", text)}
        for text in texts
    ]
    assert set().union(*mentioned) == set(range(len(task.class_names)))
    assert np.mean([len(found) > 0 for found in mentioned]) > 0.7  # the others use another wording
    assert len(set(texts)) > 4 * len(task.class_names)  # not one fixed sentence a class


@each_task
def test_the_stream_shows_none_of_the_task_s_own_images(name: str) -> None:
    pretraining = TASKS[name].pretraining
    assert pretraining is not None
    own = {image.tobytes() for split in splits(name).values() for image in split.images}
    assert not own & {image.tobytes() for image in pretraining(0, 400)[0]}


def test_no_font_of_the_letters_is_in_their_stream() -> None:
    assert not set(fonts.WEB_FONTS) & set(fonts.TASK_FONTS)


@pytest.mark.parametrize("font", fonts.WEB_FONTS + fonts.TASK_FONTS)
def test_every_font_has_the_capitals_and_digits(font: str) -> None:
    """Missing glyphs are drawn as empty boxes or as nothing, all alike: distinct pictures are real ones."""
    atlas = fonts.glyphs((font,), "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
    assert (atlas.sum(axis=(1, 2)) > 60).all()
    assert len({glyph.tobytes() for glyph in atlas}) == 36
    assert atlas[:, [0, -1]].max() == atlas[:, :, [0, -1]].max() == 0  # nothing is cut off at the margin


def test_importing_tasks_is_cheap() -> None:
    program = (
        "import sys\nfrom neulig_ray.tasks import TASKS\nlist(TASKS)\n"
        "heavy = {'torch', 'sklearn', 'mlxtend', 'matplotlib', 'PIL', 'pandas', 'scipy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# What tasks are made of


def test_a_frame_rotates_clockwise_about_its_centre() -> None:
    one = np.ones(1, np.float32)
    frame = drawing.place(2.5 * one, -3.5 * one, 4 * one, 90 * one)
    centre_row, centre_column = 12, 18  # pixel 15.5 + shift
    assert frame.u[0, centre_row, centre_column] == pytest.approx(0, abs=1e-6)
    assert frame.u[0, centre_row + 4, centre_column] == pytest.approx(1)  # its right points down
    assert frame.v[0, centre_row, centre_column - 4] == pytest.approx(1, abs=1e-6)


def test_a_disc_covers_its_area() -> None:
    one = np.ones(1, np.float32)
    frame = drawing.place(0 * one, 0 * one, 10 * one, 0 * one)
    assert frame.coverage(outlines.disc(frame.u, frame.v)).sum() == pytest.approx(np.pi * 100, rel=0.01)


def test_a_picture_seen_at_its_own_scale_is_itself() -> None:
    atlas = np.random.default_rng(0).random((3, 32, 32)).astype(np.float32)
    zero, one = np.zeros(2, np.float32), np.ones(2, np.float32)
    index = np.array([2, 0])
    assert drawing.sample(atlas, index, drawing.place(zero, zero, one, zero), 1.0) == pytest.approx(
        atlas[index], abs=1e-5
    )
    moved = drawing.sample(atlas, index, drawing.place(zero + 3, zero, one, zero), 1.0)
    assert moved[:, :, 3:] == pytest.approx(atlas[index][:, :, :-3], abs=1e-5)
    assert moved[:, :, :3].max() == 0  # empty beyond the border


def test_stratified_splits_keep_the_shares_of_the_classes() -> None:
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    parts = stratified("any", 0, labels, {"train": 500, "test": 200})
    assert np.bincount(labels[parts["train"]]) == pytest.approx([300, 150, 50], abs=2)
    assert np.bincount(labels[parts["test"]]) == pytest.approx([120, 60, 20], abs=2)
    assert not set(parts["train"]) & set(parts["test"])


def test_balanced_labels_differ_by_at_most_one() -> None:
    assert sorted(np.bincount(balanced(np.random.default_rng(0), 20, 6))) == [3, 3, 3, 3, 4, 4]


def test_captions_use_every_wording_of_their_own_concept_only() -> None:
    texts = captions.write(
        np.random.default_rng(0), np.array([0, 1] * 300), [("moon", "crescent"), ("sun",)], ("a {} above",)
    )
    assert all(("moon" in text) != ("crescent" in text) for text in texts[::2])
    assert all("sun" in text for text in texts[1::2])
    assert 200 < sum("moon" in text for text in texts[::2]) < 290


# What a bad task is told


def bad_task(splits: Mapping[str, Split]) -> Task:
    return Task("bad", ("cat", "dog"), ("a {}.",), lambda seed: splits, "a test")


def split(count: int = 4, labels: list[int] | None = None, dtype: str = "uint8") -> Split:
    return Split(np.zeros((count, 8, 8, 3), dtype), np.array(labels if labels is not None else [0, 1] * 2))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"train": split(), "val": split()}, "no test split"),
        ({"test": split()}, "no train and no val split"),
        ({"train": split(), "val": split(0, []), "test": split()}, "'val' is empty"),
        ({"train": split(), "val": split(), "test": split(labels=[0, 1, 2, 0])}, "0 to 2.* 2 names"),
        ({"train": split(labels=[0, -1, 1, 0]), "val": split(), "test": split()}, "-1 to 1"),
        ({"train": split(dtype="float32"), "val": split(), "test": split()}, "uint8.*float32"),
        ({"train": split(3), "val": split(), "test": split()}, "3 images but 4 labels"),
        (
            {
                "train": Split(np.zeros((4, 8, 8), np.uint8), np.zeros(4, int)),
                "val": split(),
                "test": split(),
            },
            r"\(4, 8, 8\)",
        ),
    ],
)
def test_an_unusable_split_is_named(given: dict[str, Split], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        bad_task(given).splits(0)
    assert "'bad'" in str(caught.value)


def test_an_unknown_task_names_the_near_misses() -> None:
    with pytest.raises(InputError, match=r"unknown task 'leters'\. Did you mean 'letters'") as caught:
        TASKS["leters"]
    assert len(str(caught.value)) < 800, "some lines of a terminal"
    assert "`neulig ls tasks`" in str(caught.value)
    assert "leters" not in TASKS
    assert "letters" in TASKS


def test_two_files_cannot_define_one_task() -> None:
    registry: Registry[int] = Registry("task", "neulig_ray.tasks")
    registry.register("cats", 1, module="one")
    registry.register("cats", 2, module="one")  # the same file again: it was reloaded
    assert registry["cats"] == 2
    with pytest.raises(InputError, match="one and two both define the task 'cats'"):
        registry.register("cats", 3, module="two")
