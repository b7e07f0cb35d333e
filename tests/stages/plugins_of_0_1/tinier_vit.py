from neulig_ray.models.archs import Arch, FinetuneRecipe, register_arch

register_arch(
    Arch(
        name="tinier-vit",
        config={  # as in open_clip's own JSON files
            "embed_dim": 64,
            "vision_cfg": {"image_size": 32, "patch_size": 8, "layers": 2, "width": 64, "head_width": 32},
            "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
        },
        description="a ViT of two layers",
        finetune=FinetuneRecipe(epochs=4),
    )
)
