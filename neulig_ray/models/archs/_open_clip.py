"""Every other model of open_clip whose visual tower we know, as an arch by its open_clip name."""

from collections.abc import Mapping
from typing import Any

import open_clip

from neulig_ray.errors import InputError
from neulig_ray.models.archs._base import Arch
from neulig_ray.models.archs._clip import CLIP_EPOCHS, CLIP_FINETUNE


def names() -> list[str]:
    """The models that open_clip knows."""
    return list(open_clip.list_models())


def find(name: str) -> Arch | None:
    """The arch of an open_clip model, None for a name that open_clip does not know.

    Raises InputError for a model whose visual tower is none of ours.
    """
    if name not in open_clip.list_models():  # also what open_clip would look for on a hub, or in a folder
        return None
    config = open_clip.get_model_config(name)
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
