"""Zero-shot heads: classifiers that a CLIP's text tower writes from class names."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from neulig_ray.models.archs import Arch
from neulig_ray.models.clip import tokenize
from neulig_ray.models.logits import head_logits


@torch.no_grad()
def zero_shot_head(clip: Any, arch: Arch, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """The frozen head float32 (C, d) of a task: see `head_logits`.

    Row c = exp(logit_scale) * normalize(mean over templates of the normalised text embeddings), CLIP's
    prompt ensemble (arXiv 2103.00020, section 3.1.4). Templates hold one `{}` for the class name.
    """
    device = clip.logit_scale.device
    training = clip.training
    clip.eval()
    rows = []
    for name in class_names:
        tokens = tokenize([template.format(name) for template in templates], arch).to(device)
        rows.append(normalize(clip.encode_text(tokens, normalize=True).float().mean(0), dim=0))
    clip.train(training)
    head: Tensor = clip.logit_scale.float().exp() * torch.stack(rows)
    return head


def accuracy(embeddings: Tensor, head: Tensor, labels: Tensor) -> float:
    """Percentage of embeddings (N, d) whose largest logit is their label's; raises ValueError for NaN."""
    logits = head_logits(embeddings, head)
    if not logits.isfinite().all():
        raise ValueError("logits are NaN or infinite: an accuracy would be meaningless")
    return 100.0 * float((logits.argmax(-1) == labels).float().mean())
