"""Models of other libraries: merged by their names, loaded strictly, run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from merge_cli_helpers import Run
from safetensors.torch import load_file
from torch import nn

State = dict[str, torch.Tensor]


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=30, n_positions=8, n_embd=8, n_layer=2, n_head=2))


def resnet() -> nn.Module:
    from torchvision.models.resnet import Bottleneck, ResNet

    return ResNet(Bottleneck, [1, 1, 1, 1], num_classes=3, width_per_group=2)


def mobilenet() -> nn.Module:
    from torchvision.models import mobilenet_v2

    return mobilenet_v2(width_mult=0.1, num_classes=3)


def vision_transformer() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(image_size=32, patch_size=16, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=8)


def lstm() -> nn.Module:
    return nn.LSTM(4, 5, num_layers=2, bidirectional=True)


IMAGES = torch.ones(2, 3, 32, 32)
# The model, what wraps its state dict in the file, and an input.
MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[State], Any], torch.Tensor]] = {
    "41-gpt2": (gpt2, lambda state: state, torch.arange(6)[None]),
    "41-resnet": (resnet, lambda state: {"state_dict": state}, IMAGES),
    "mobilenet": (mobilenet, lambda state: {"model": state, "epoch": 3}, IMAGES),
    "vision-transformer": (vision_transformer, lambda state: state, IMAGES),
    "lstm": (lstm, lambda state: {"state_dict": state}, torch.ones(3, 2, 4)),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_merged_model_loads_strictly_and_runs(neulig: Run, tmp_path: Path, name: str) -> None:
    make, wrapped, given = MODELS[name]
    paths = []
    for seed in range(3):
        torch.manual_seed(seed)
        paths.append(tmp_path / f"{seed}.pt")
        torch.save(wrapped(make().state_dict()), paths[-1])
    out = tmp_path / "m.safetensors"
    status, _, told = neulig("merge", "ties", "--base", paths[0], "--experts", *paths[1:], "--out", out)
    assert status == 0, told
    model = make().eval()
    model.load_state_dict(load_file(out), strict=True)
    found = model(given)
    found = found.logits if hasattr(found, "logits") else found[0]
    assert found.isfinite().all()
