"""tiny-rn: CLIP's modified ResNet, with its BatchNorm, that trains on a laptop's CPU in seconds.

Recipe chosen on val: seven experts of seed-0 reach 95 % on average, in 9 seconds of one busy CPU each;
4 epochs give 93 % in 6, 8 epochs 96 % in 14.
"""

from neulig_ray.models.archs._base import Arch, FinetuneRecipe, PretrainRecipe, register_arch

register_arch(
    Arch(
        name="tiny-rn",
        description="ModifiedResNet for 32 x 32 images: one block a stage, width 16, embeddings of 128",
        config={
            "embed_dim": 128,
            "quick_gelu": True,
            "vision_cfg": {
                "image_size": 32,
                "layers": [1, 1, 1, 1],
                "width": 16,
                "patch_size": None,
            },
            "text_cfg": {
                "context_length": 20,
                "vocab_size": 49408,
                "width": 64,
                "heads": 2,
                "layers": 2,
            },
        },
        finetune=FinetuneRecipe(epochs=5, learning_rate=1e-3),
        pretrain=PretrainRecipe(steps=1200, learning_rate=3e-3),
    )
)
