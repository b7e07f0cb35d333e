"""Every other model of open_clip whose visual tower we know, as an arch by its open_clip name.

Read from the files of open_clip's package: importing it takes seconds, and a misspelt name is to be told
at once.
"""

import functools
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neulig_ray.errors import InputError
from neulig_ray.models.archs._base import Arch
from neulig_ray.models.archs._clip import CLIP_EPOCHS, CLIP_FINETUNE


@functools.cache
def _configurations() -> dict[str, dict[str, Any]]:
    """Model name -> configuration, of all models that open_clip comes with."""
    package = importlib.util.find_spec("open_clip")
    assert package is not None
    assert package.origin is not None
    files = (Path(package.origin).parent / "model_configs").glob("*.json")
    found = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(files)}
    return {name: c for name, c in found.items() if {"embed_dim", "vision_cfg", "text_cfg"} <= c.keys()}


def names() -> list[str]:
    """The models that open_clip comes with."""
    return list(_configurations())


def find(name: str) -> Arch | None:
    """The arch of an open_clip model, None for a name that open_clip does not know.

    Raises InputError for a model whose visual tower is none of ours.
    """
    if name not in _configurations():
        return None
    config = _configurations()[name]
    if reason := _unknown_tower(config):
        raise InputError(
            f"arch {name!r}: {reason}. The towers known here are open_clip's VisionTransformer and "
            "ModifiedResNet with one embedding for each image: use an open_clip ViT-* or RN* model"
        )
    return Arch(
        name=name,
        description=f"open_clip's {name}",
        config=config,
        token_seed=None,
        finetune=CLIP_FINETUNE,
        task_epochs=CLIP_EPOCHS,
    )


def _unknown_tower(config: Mapping[str, Any]) -> str:
    vision = config["vision_cfg"]
    if timm := vision.get("timm_model_name"):
        return f"its visual tower is timm's {timm}"
    if "multimodal_cfg" in config or vision.get("output_tokens") or vision.get("attentional_pool"):
        return "its visual tower gives tokens beside the embedding (CoCa)"
    return ""
