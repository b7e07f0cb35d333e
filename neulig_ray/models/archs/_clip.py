"""What OpenAI's CLIPs share: the text tower's vocabulary, and the field's recipe of fine-tuning."""

from typing import Any

from neulig_ray.models.archs._base import FinetuneRecipe

# AdamW 1e-5, weight decay 0.1, cosine after 500 steps, batches of 128, open_clip's training transform
# (Ilharco et al., arXiv 2212.04089).
CLIP_FINETUNE = FinetuneRecipe(epochs=10, batch_size=128, learning_rate=1e-5, warmup=500, augment="crop")

# Of the first seven as in the NeuLig paper's code, of the others as in TALL-masks (arXiv 2405.07813); both
# follow arXiv 2212.04089 where that has the task.
CLIP_EPOCHS = {
    "gtsrb": 11,
    "cifar100": 5,
    "resisc45": 15,
    "cifar10": 5,
    "mnist": 5,
    "stl10": 50,
    "svhn": 4,
    "sun397": 14,
    "cars": 35,
    "eurosat": 12,
    "dtd": 76,
    "oxfordiiitpet": 82,
    "flowers102": 147,
    "pcam": 1,
    "fer2013": 10,
    "food101": 4,
    "fashionmnist": 5,
    "renderedsst2": 39,
    "emnistdigits": 2,
    "emnistletters": 2,
    "kmnist": 5,
}


def clip_config(embed_dim: int, vision: dict[str, Any], text_width: int, *, quick: bool) -> dict[str, Any]:
    """open_clip's configuration of a CLIP with OpenAI's text tower; `quick`: QuickGELU, or GELU."""
    text = {"context_length": 77, "vocab_size": 49408, "width": text_width, "heads": text_width // 64}
    activation = {"quick_gelu": True} if quick else {}
    return {"embed_dim": embed_dim, **activation, "vision_cfg": vision, "text_cfg": {**text, "layers": 12}}
