"""Which image is in which split: protocols `standard` and `paper`."""

from collections.abc import Mapping

import numpy as np

from neulig_ray.errors import InputError
from neulig_ray.tasks._base import Protocol, Task
from neulig_ray.tasks._names import check_names
from neulig_ray.tasks.reading.labels import labelled
from neulig_ray.tasks.reading.pictures import Labels, Pictures, pooled
from neulig_ray.tasks.reading.splits import stratified, with_every_class

VAL_SHARE, MOST_VAL = 0.1, 5000


def val_size(images: int) -> int:
    """How many of an official training split's images become val: 10 %, at most 5000."""
    return min(MOST_VAL, max(1, round(VAL_SHARE * images)))


def split_sizes(task: Task, protocol: Protocol, views: int = 1) -> dict[str, int] | None:
    """Images of each split of a task that is read from files, as it will be stored; None where not known.

    `views` of protocol `paper`: how often each test image is stored, 0 counting as once.
    """
    official = task.files.num_images if task.files else {}
    if "train" not in official or "test" not in official:
        return None
    train, val, test = official["train"], official.get("val"), official["test"]
    if protocol == "paper":
        assert task.files is not None
        pool, held_out = train + (val or 0), task.files.held_out or test
        half = (pool - held_out) // 2
        return {"train": half, "val": held_out, "test": (pool - held_out - half) * max(1, views)}
    if val is None:
        val = val_size(train)
        train -= val
    return {"train": train, "val": val, "test": test}


def standard_rows(task: str, seed: int, labels: Labels) -> dict[str, Labels]:
    """Train and val rows of an official training split: val has 10 % of each class, at most 5000 images."""
    val = val_size(len(labels))
    rows = stratified(task, seed, labels, {"val": val, "train": len(labels) - val})
    return {name: np.sort(rows[name]) for name in ("train", "val")}


def paper_rows(total: int, held_out: int) -> dict[str, Labels]:
    """The reference's rows of an official training split of `total` images.

    `held_out` images, as many as the official test split has, become val (its "shadow" split). The others
    are halved: target train, and the "test" of its tables. One permutation by torch's generator of seed 0 is
    cut in the order train, test, val. Raises InputError where nothing would be left to halve.
    """
    import torch

    left = total - held_out
    if held_out < 1 or left < 2:
        raise InputError(
            f"protocol paper: of {total} training images {held_out} go to val, and {max(left, 0)} are left "
            "for train and test: use protocol standard"
        )
    order = torch.randperm(total, generator=torch.Generator().manual_seed(0)).numpy()
    ends = (left // 2, left)
    return {"train": order[: ends[0]], "val": order[ends[1] :], "test": order[ends[0] : ends[1]]}


def official(task: Task, splits: Mapping[str, Pictures]) -> dict[str, Pictures]:
    """The official splits after their checks: labels in range, and the data's class names the task's.

    Images without a label are left out and noted; more than 1 % of them is an InputError.
    """
    assert task.files is not None
    if missing := [name for name in ("train", "test") if name not in splits]:
        raise InputError(f"task {task.name!r} gives no {' and no '.join(missing)} split")
    found = {}
    for name, pictures in splits.items():
        if pictures.class_names is not None:
            check_names(task.name, task.files.names, pictures.class_names, f"split {name!r} of the data")
        found[name] = labelled(pictures, task.name, name)
        task.check_labels(found[name].labels, name)
    return found


def divide(task: Task, protocol: Protocol, seed: int, splits: Mapping[str, Pictures]) -> dict[str, Pictures]:
    """Train, val and test of a protocol, from a task's official splits (train, test and perhaps val).

    `standard` keeps an official val split and carves one from train where there is none; its test is the
    official one. `paper` never shows the official test split. Raises InputError where a split would have no
    image of some class.
    """
    found = _divide(task, protocol, seed, splits)
    for name, part in found.items():
        have = np.bincount(part.labels, minlength=len(task.class_names))
        if not have.all():
            raise InputError(_lacking(task, protocol, found, name, np.flatnonzero(have == 0)))
    return found


def _lacking(
    task: Task, protocol: Protocol, splits: Mapping[str, Pictures], split: str, classes: Labels
) -> str:
    first = int(classes[0])
    names = task.files.names.carried if task.files else task.class_names
    counts = {name: int((part.labels == first).sum()) for name, part in splits.items()}
    total, each = sum(counts.values()), ", ".join(f"{name} {count}" for name, count in counts.items())
    more = f" (and of {len(classes) - 1} other classes)" if len(classes) > 1 else ""
    return (
        f"task {task.name!r}: split {split!r} of protocol {protocol} would have no image of class "
        f"{names[first]!r}{more}. The class has {total} image{'s' * (total != 1)}: {each}. It needs at least "
        "3, one each for train, val and test (val is taken out of train where the data has none): add images "
        "or leave the class out"
    )


def _divide(task: Task, protocol: Protocol, seed: int, splits: Mapping[str, Pictures]) -> dict[str, Pictures]:
    train, test = splits["train"], splits["test"]
    if protocol == "standard":
        if "val" in splits:
            return {"train": train, "val": splits["val"], "test": test}
        rows = standard_rows(task.name, seed, train.labels)
        rows = with_every_class(rows, train.labels, small="val", large="train")
        return {"train": train.take(rows["train"]), "val": train.take(rows["val"]), "test": test}
    pool = pooled([train, splits["val"]]) if "val" in splits else train
    held_out = task.files.held_out if task.files and task.files.held_out else len(test)
    try:
        rows = paper_rows(len(pool), held_out)
    except InputError as error:
        raise InputError(f"task {task.name!r}, {error}") from None
    return {name: pool.take(rows[name]) for name in ("train", "val", "test")}
