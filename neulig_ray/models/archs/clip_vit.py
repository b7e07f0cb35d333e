"""ViT-B-32, ViT-B-16 and ViT-L-14 of CLIP (arXiv 2103.00020), with OpenAI's QuickGELU and with plain GELU."""

from neulig_ray.models.archs._base import Arch, register_arch
from neulig_ray.models.archs._clip import CLIP_EPOCHS, CLIP_FINETUNE, clip_config

for _name, _patch, _width, _layers, _dim, _text in (
    ("ViT-B-32", 32, 768, 12, 512, 512),
    ("ViT-B-16", 16, 768, 12, 512, 512),
    ("ViT-L-14", 14, 1024, 24, 768, 768),
):
    for _quick in (True, False):
        _vision = {"image_size": 224, "layers": _layers, "width": _width, "patch_size": _patch}
        register_arch(
            Arch(
                name=f"{_name}-quickgelu" if _quick else _name,
                description=f"ViT for 224 x 224 images: patch {_patch}, width {_width}, {_layers} layers",
                config=clip_config(_dim, _vision, _text, quick=_quick),
                token_seed=None,
                finetune=CLIP_FINETUNE,
                task_epochs=CLIP_EPOCHS,
            )
        )
