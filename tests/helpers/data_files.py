"""Small data sets in the on-disk formats of the real ones, written for the tests.

Each writer puts every class of a data set into `root`, a few images of each in each split. An image is of one
colour, which tells its split, its label and its place: `colour(split, label, place)`.
"""

import csv
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from neulig_ray.tasks import TASKS

SPLITS = ("train", "val", "test")


def colour(split: str, label: int, place: int = 0) -> tuple[int, int, int]:
    """Far enough apart to survive JPEG, for labels below 400 and places below 5."""
    return 20 + 4 * (label % 50), 20 + 8 * (label // 50) + 40 * place, 30 + 80 * SPLITS.index(split)


def grey(split: str, label: int, place: int = 0) -> int:
    return 10 + 60 * SPLITS.index(split) + 2 * label + place


def picture(split: str, label: int, place: int = 0, size: tuple[int, int] = (40, 36)) -> Image.Image:
    return Image.new("RGB", size, colour(split, label, place))


def save(path: Path, image: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **({"quality": 95} if path.suffix == ".jpg" else {}))


def items(task: str, count: int) -> list[tuple[int, int]]:
    """(label, place) of `count` images of each class, place by place."""
    return [(label, place) for place in range(count) for label in range(len(TASKS[task].class_names))]


def array(split: str, what: list[tuple[int, int]], side: int) -> np.ndarray:
    """Images uint8 (N, side, side, 3) of plain colours."""
    colours = np.array([colour(split, *item) for item in what], np.uint8)
    return np.broadcast_to(colours[:, None, None], (len(what), side, side, 3)).copy()


def cifar(root: Path, task: str) -> None:
    names, key = list(TASKS[task].files.names.carried), "labels" if task == "cifar10" else "fine_labels"
    folder = root / ("cifar-10-batches-py" if task == "cifar10" else "cifar-100-python")
    folder.mkdir(parents=True)
    train, test = items(task, 5), items(task, 1)
    parts = {f"data_batch_{i + 1}": train[i::5] for i in range(5)} if task == "cifar10" else {"train": train}
    parts["test_batch" if task == "cifar10" else "test"] = test
    for name, what in parts.items():
        images = array("test" if "test" in name else "train", what, 32)
        data = images.transpose(0, 3, 1, 2).reshape(len(what), -1)
        (folder / name).write_bytes(pickle.dumps({"data": data, key: [label for label, _ in what]}))
    meta = {"label_names" if task == "cifar10" else "fine_label_names": names}
    (folder / ("batches.meta" if task == "cifar10" else "meta")).write_bytes(pickle.dumps(meta))


def _idx(path: Path, data: np.ndarray) -> None:
    """The format of MNIST's files: zeros, the type (8: uint8), the dimensions, the bytes."""
    header = bytes([0, 0, 8, data.ndim]) + np.array(data.shape, ">i4").tobytes()
    path.write_bytes(header + data.astype(np.uint8).tobytes())


def mnist(root: Path, task: str) -> None:
    folder = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}.get(task, "EMNIST")
    raw = root / folder / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", 5), ("test", 1)):
        what = items(task, count)
        images = np.stack([np.full((28, 28), grey(split, *item), np.uint8) for item in what])
        labels = np.array([label for label, _ in what])
        prefix = "train" if split == "train" else "t10k"
        if folder == "EMNIST":
            images[:, :, 0] = 255  # a line on the left, where the files have rows and columns exchanged
            images = images.transpose(0, 2, 1)
            labels = labels + (task == "emnist-letters")
            prefix = f"{task}-{split}"
        for each in (prefix,) if folder == "EMNIST" else ("train", "t10k"):
            if folder == "EMNIST" or each == prefix:
                _idx(raw / f"{each}-images-idx3-ubyte", images)
                _idx(raw / f"{each}-labels-idx1-ubyte", labels)


def svhn(root: Path, task: str) -> None:
    from scipy.io import savemat

    root.mkdir(exist_ok=True)
    for split, count in (("train", 5), ("test", 1)):
        what = items(task, count)
        labels = np.array([[label or 10] for label, _ in what], np.uint8)  # in the files 10 is the digit 0
        savemat(root / f"{split}_32x32.mat", {"X": array(split, what, 32).transpose(1, 2, 3, 0), "y": labels})


def stl10(root: Path, task: str) -> None:
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    for split, count in (("train", 5), ("test", 1)):
        what = items(task, count)
        (folder / f"{split}_X.bin").write_bytes(array(split, what, 96).transpose(0, 3, 2, 1).tobytes())
        (folder / f"{split}_y.bin").write_bytes(bytes(label + 1 for label, _ in what))
    (folder / "unlabeled_X.bin").write_bytes(b"")
    (folder / "class_names.txt").write_text("\n".join(TASKS[task].class_names) + "\n")
    (folder / "fold_indices.txt").write_text("0 1 2\n")


def gtsrb(root: Path, task: str) -> None:
    base = root / "gtsrb"
    for label, place in items(task, 4):
        # Signs have many sizes.
        image = picture("train", label, place, (20 + label, 25 + place))
        save(base / f"GTSRB/Training/{label:05d}/{place:05d}_00000.ppm", image)
    rows = []
    for number, (label, place) in enumerate(items(task, 1)):
        save(base / f"GTSRB/Final_Test/Images/{number:05d}.ppm", picture("test", label, place))
        rows.append(f"{number:05d}.ppm;40;36;1;1;39;35;{label}")
    (base / "GT-final_test.csv").write_text(
        "\n".join(["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId", *rows]) + "\n"
    )


def dtd(root: Path, task: str) -> None:
    base = root / "dtd/dtd"
    (base / "labels").mkdir(parents=True)
    for split in SPLITS:
        lines = []
        for label, place in items(task, 2):
            name = TASKS[task].files.names.carried[label]
            lines.append(f"{name}/{name}_{split}{place}.jpg")
            save(base / "images" / lines[-1], picture(split, label, place))
        (base / f"labels/{split}1.txt").write_text("\n".join(lines) + "\n")


def pets(root: Path, task: str) -> None:
    base = root / "oxford-iiit-pet"
    (base / "annotations").mkdir(parents=True)
    for split, file, count in (("train", "trainval", 4), ("test", "test", 1)):
        lines = []
        for label, place in items(task, count):
            stem = f"{TASKS[task].class_names[label].replace(' ', '_')}_{split}{place}"
            save(base / f"images/{stem}.jpg", picture(split, label, place))
            lines.append(f"{stem} {label + 1} 1 1")
        (base / f"annotations/{file}.txt").write_text("\n".join(lines) + "\n")


def flowers102(root: Path, task: str) -> None:
    from scipy.io import savemat

    base = root / "flowers-102"
    labels, ids = [], {}
    for split, key in (("train", "trnid"), ("val", "valid"), ("test", "tstid")):
        ids[key] = []
        for label, place in items(task, 1):
            labels.append(label + 1)
            ids[key].append(len(labels))
            save(base / f"jpg/image_{len(labels):05d}.jpg", picture(split, label, place))
    savemat(base / "imagelabels.mat", {"labels": np.array([labels])})
    savemat(base / "setid.mat", {key: np.array([found]) for key, found in ids.items()})


def food101(root: Path, task: str) -> None:
    base, names = root / "food-101", TASKS[task].files.names.carried
    (base / "meta").mkdir(parents=True)
    for split, count in (("train", 3), ("test", 1)):
        meta: dict[str, list[str]] = {}
        for label, place in items(task, count):
            path = f"{names[label]}/{split}{place}"
            save(base / f"images/{path}.jpg", picture(split, label, place))
            meta.setdefault(names[label], []).append(path)
        # The real file is in another order than the sorted one that labels follow.
        (base / f"meta/{split}.json").write_text(json.dumps(dict(reversed(meta.items()))))


def pcam(root: Path, task: str) -> None:
    import h5py

    base = root / "pcam"
    base.mkdir(parents=True)
    for split, theirs in (("train", "train"), ("val", "valid"), ("test", "test")):
        what = items(task, 3)
        with h5py.File(base / f"camelyonpatch_level_2_split_{theirs}_x.h5", "w") as file:
            file["x"] = array(split, what, 96)
        with h5py.File(base / f"camelyonpatch_level_2_split_{theirs}_y.h5", "w") as file:
            file["y"] = np.array([label for label, _ in what]).reshape(-1, 1, 1, 1)


def fer2013(root: Path, task: str) -> None:
    (root / "fer2013").mkdir(parents=True)
    with (root / "fer2013/fer2013.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["emotion", "pixels", "Usage"])
        for usage, split, count in (
            ("Training", "train", 5),
            ("PublicTest", "test", 1),
            ("PrivateTest", "test", 1),
        ):
            for label, place in items(task, count):
                writer.writerow([label, " ".join([str(grey(split, label, place))] * 48 * 48), usage])


def rendered_sst2(root: Path, task: str) -> None:
    for split, theirs in (("train", "train"), ("val", "valid"), ("test", "test")):
        for label, place in items(task, 3):
            name = f"rendered-sst2/{theirs}/{TASKS[task].class_names[label]}/{place}.png"
            save(root / name, picture(split, label, place, (448, 448)))


def parquet(folder: Path, task: str, image: str = "image", label: str = "label", count: int = 3) -> None:
    """A copy of a hub repository: parquet files whose columns are an image and a class label."""
    import datasets

    names = list(TASKS[task].files.names.carried)
    native = TASKS[task].files.native or (40, 36)
    features = datasets.Features({image: datasets.Image(), label: datasets.ClassLabel(names=names)})
    for split, each in (("train", count), ("test", 1)):
        what = items(task, each)
        cells = {
            image: [picture(split, *item, size=(native[1], native[0])) for item in what],
            label: [item[0] for item in what],
        }
        (folder / "data").mkdir(parents=True, exist_ok=True)
        table = datasets.Dataset.from_dict(cells, features=features)
        table.to_parquet(str(folder / f"data/{split}-00000-of-00001.parquet"))


WRITERS: dict[str, Callable[[Path, str], None]] = {
    "cifar10": cifar,
    "cifar100": cifar,
    "mnist": mnist,
    "fashion-mnist": mnist,
    "kmnist": mnist,
    "emnist-digits": mnist,
    "emnist-letters": mnist,
    "svhn": svhn,
    "stl10": stl10,
    "gtsrb": gtsrb,
    "dtd": dtd,
    "oxford-iiit-pet": pets,
    "flowers102": flowers102,
    "food101": food101,
    "pcam": pcam,
    "fer2013": fer2013,
    "rendered-sst2": rendered_sst2,
}
GREY = {"mnist", "fashion-mnist", "kmnist", "emnist-digits", "emnist-letters", "fer2013"}
HUB = ("resisc45", "eurosat", "sun397", "cars")
