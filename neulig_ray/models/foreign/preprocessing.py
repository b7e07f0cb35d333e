"""How images are prepared for a pretrained model: ours are prepared as OpenAI's, for every model alike."""

from collections.abc import Mapping
from typing import Any

import open_clip

from neulig_ray.errors import InputError

OURS = {
    "mean": open_clip.OPENAI_DATASET_MEAN,
    "std": open_clip.OPENAI_DATASET_STD,
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
