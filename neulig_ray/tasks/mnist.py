"""MNIST and the data sets in its format: 28x28, grey, white on black.

EMNIST has two meanings in the literature: the 20-task tables of TALL-masks use its split `digits`, those of
FusionBench its split `letters`. They are two tasks here, and averages over lists with the one and with the
other are not comparable.
"""

from typing import TYPE_CHECKING

from neulig_ray.tasks._names import Names
from neulig_ray.tasks.reading.torchvision import TRAIN_FLAG, torchvision_task

if TYPE_CHECKING:
    from PIL.Image import Image

_SIZES = {"train": 60000, "test": 10000}
_DIGITS = tuple("0123456789")
_DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_CHARACTER = ('a photo of the digit character: "{}".',)


def _upright(image: "Image") -> "Image":
    """EMNIST's files hold every image with rows and columns exchanged."""
    from PIL.Image import Transpose

    return image.transpose(Transpose.TRANSPOSE)


def _place(folder: str) -> str:
    kinds = ", ".join(f"{s}-{k}-ubyte" for s in ("train", "t10k") for k in ("images-idx3", "labels-idx1"))
    return f"{folder}/raw/ ({kinds})"


def _emnist_place(split: str) -> str:
    kinds = ", ".join(f"{s}-{k}-ubyte" for s in ("train", "test") for k in ("images-idx3", "labels-idx1"))
    return f"EMNIST/raw/ (each of {kinds} with emnist-{split}- in front)"


mnist = torchvision_task(
    "mnist",
    "MNIST",
    TRAIN_FLAG,
    templates=('a photo of the number: "{}".',),
    source="torchvision MNIST",
    place=_place("MNIST"),
    class_names=Names(_DIGITS, tuple(f"{d} - {w}" for d, w in zip(_DIGITS, _DIGIT_WORDS, strict=True))),
    native=(28, 28),
    num_images=_SIZES,
    download_mb=12,
    paper=True,
)
fashion_mnist = torchvision_task(
    "fashion-mnist",
    "FashionMNIST",
    TRAIN_FLAG,
    templates=("a photo of a {}.", "a photo of the {}."),
    source="torchvision FashionMNIST",
    place=_place("FashionMNIST"),
    native=(28, 28),
    num_images=_SIZES,
    download_mb=31,
)
kmnist = torchvision_task(
    "kmnist",
    "KMNIST",
    TRAIN_FLAG,
    templates=("a photo of the character {}.",),
    source="torchvision KMNIST: cursive hiragana",
    place=_place("KMNIST"),
    native=(28, 28),
    num_images=_SIZES,
    download_mb=21,
)
emnist_digits = torchvision_task(
    "emnist-digits",
    "EMNIST",
    {split: {"split": "digits", **flag} for split, flag in TRAIN_FLAG.items()},
    templates=_CHARACTER,
    source="torchvision EMNIST digits (TALL-masks' EMNIST)",
    place=_emnist_place("digits"),
    class_names=_DIGITS,
    native=(28, 28),
    num_images={"train": 240000, "test": 40000},
    download_mb=562,
    turn=_upright,
)
emnist_letters = torchvision_task(
    "emnist-letters",
    "EMNIST",
    {split: {"split": "letters", **flag} for split, flag in TRAIN_FLAG.items()},
    templates=_CHARACTER,
    source="torchvision EMNIST letters (FusionBench's EMNIST)",
    place=_emnist_place("letters"),
    class_names=_LETTERS,
    native=(28, 28),
    num_images={"train": 124800, "test": 20800},
    download_mb=562,
    labels=lambda dataset: dataset.targets - 1,  # in the files 1 is A
    carried=lambda dataset: dataset.classes[1:],
    turn=_upright,
)
