"""How images are prepared for a pretrained model: ours are prepared as OpenAI's, for every model alike."""

from collections.abc import Mapping
from typing import Any

from neulig_ray.errors import InputError
from neulig_ray.models.clip import MEAN, STD

OURS = {
    "mean": MEAN,
    "std": STD,
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}


def check_preprocessing(found: Any, what: str) -> None:
    """Raises InputError for weights trained on images prepared in another way (keys as open_clip's)."""
    if not isinstance(found, Mapping):
        raise InputError(
            f"{what}: its preprocess_cfg is {type(found).__name__}, and not an object of settings"
        )
    for key, ours in OURS.items():
        theirs = found.get(key, ours)
        theirs = tuple(theirs) if isinstance(theirs, list) else theirs
        if theirs != ours:
            raise InputError(
                f"{what}: these weights want images with {key} {theirs}, and every origin and expert is "
                f"shown images with {key} {ours}: use other weights"
            )
