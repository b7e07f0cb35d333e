"""RN50 of CLIP (arXiv 2103.00020). Its activation is the text tower's: the visual tower has ReLU."""

from neulig_ray.models.archs._base import Arch, register_arch
from neulig_ray.models.archs._clip import CLIP_EPOCHS, CLIP_FINETUNE, clip_config

for _quick in (True, False):
    _vision = {"image_size": 224, "layers": [3, 4, 6, 3], "width": 64, "patch_size": None}
    register_arch(
        Arch(
            name="RN50-quickgelu" if _quick else "RN50",
            description="CLIP's ModifiedResNet for 224 x 224 images: 50 layers, BatchNorm, attention pooling",
            config=clip_config(1024, _vision, 512, quick=_quick),
            token_seed=None,
            finetune=CLIP_FINETUNE,
            task_epochs=CLIP_EPOCHS,
        )
    )
