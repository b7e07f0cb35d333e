"""CLIP models of an architecture, built by open_clip from its configuration."""

import contextlib
import functools
import hashlib
import json
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from neulig_ray.errors import InputError
from neulig_ray.models.archs import ARCHS, Arch

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of OpenAI's images, as open_clip.OPENAI_DATASET_MEAN
STD = (0.26862954, 0.26130258, 0.27577711)
TOKEN_STD = 0.02  # open_clip's own initialisation of token embeddings
TOKEN_SHA256 = {
    # (seed, vocabulary, width): of the float32 bytes, little-endian, row by row
    (0, 49408, 64): "8770664f956c038fbcf45d5851c50e751a7bbe754d6d544493e5360eb211769f",
}


@functools.cache
def _library() -> Any:
    """open_clip, with our archs among its models. Imported with the first model: it takes seconds."""
    import open_clip

    for arch in ARCHS.values():
        add_to_open_clip(arch)
    return open_clip


def add_to_open_clip(arch: Arch) -> None:
    """Make `open_clip.create_model(arch.name)` and `open_clip.get_tokenizer(arch.name)` work.

    Raises InputError when the name means another configuration already.
    """
    import open_clip

    config = json.loads(json.dumps(arch.config))
    known = open_clip.get_model_config(arch.name)
    if known == config:
        return
    if known is not None:
        raise InputError(f"arch {arch.name!r}: open_clip has another configuration of that name; rename it")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / f"{arch.name}.json").write_text(json.dumps(config), encoding="utf-8")
        open_clip.add_model_config(folder)
    if open_clip.get_model_config(arch.name) is None:
        raise InputError(
            f"arch {arch.name!r}: open_clip does not accept its configuration; it needs the keys "
            "'embed_dim', 'vision_cfg' and 'text_cfg'"
        )


@functools.cache
def token_table(seed: int, vocabulary: int, width: int) -> Tensor:
    """The frozen token embeddings (vocabulary, width), the same on every machine and for ever.

    RandomState is numpy's legacy generator, whose stream is guaranteed never to change. Raises RuntimeError
    when the shipped shape does not have its known sha256.
    """
    table = (np.random.RandomState(seed).standard_normal((vocabulary, width)) * TOKEN_STD).astype("<f4")
    expected = TOKEN_SHA256.get((seed, vocabulary, width))
    if expected is not None and hashlib.sha256(table.tobytes()).hexdigest() != expected:
        raise RuntimeError(
            "the token table rebuilt from numpy's legacy generator differs from the one that the shipped "
            f"origins were trained with (numpy {np.__version__}): they cannot be used here"
        )
    return torch.from_numpy(table)


def build_clip(arch: Arch, *, seed: int = 0) -> Any:
    """The whole open_clip model in eval mode, its initial weights a function of `seed` alone.

    Where the arch has a `token_seed`, its frozen token table is filled in.
    Raises InputError when open_clip cannot build the configuration.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clip = _create(arch, "cpu")
    if arch.token_seed is not None:
        weight = clip.token_embedding.weight
        weight.requires_grad_(False)
        weight.copy_(token_table(arch.token_seed, *weight.shape))
    return clip.eval()


def skeleton(arch: Arch) -> Any:
    """The open_clip model without memory for its weights: names, shapes and dtypes in milliseconds."""
    with torch.device("meta"):
        return _create(arch, "meta")


def _create(arch: Arch, device: str) -> Any:
    add_to_open_clip(arch)
    with _without_warnings():
        try:
            return _library().create_model(
                arch.name, load_weights=False, pretrained_text=False, device=device
            )
        except Exception as error:
            raise InputError(f"arch {arch.name!r}: open_clip cannot build it: {error}") from error


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # open_clip warns of random weights, which are what is wanted
    try:
        yield
    finally:
        logging.disable(before)


def build_tower(arch: Arch) -> nn.Module:
    """The visual tower with random weights, in eval mode: images (B, 3, S, S) -> embeddings (B, d)."""
    tower: nn.Module = build_clip(arch).visual
    return tower


@functools.cache
def _tokenizer(name: str) -> Any:
    return _library().get_tokenizer(name)


def tokenize(texts: list[str], arch: Arch) -> Tensor:
    """Token ids int64 (len(texts), context length), from open_clip's tokenizer of the arch."""
    add_to_open_clip(arch)
    tokens: Tensor = _tokenizer(arch.name)(texts)
    return tokens


def image_size(arch: Arch) -> int:
    """Pixels on a side of the images that the visual tower takes."""
    size = arch.config["vision_cfg"].get("image_size", 224)
    return int(size if isinstance(size, int) else size[0])


def preprocess(images: np.ndarray | Tensor, arch: Arch, device: torch.device | str = "cpu") -> Tensor:
    """uint8 (B, H, W, 3) -> float32 (B, 3, S, S): open_clip's evaluation transform, a batch at a time.

    Images of another size are resized on their shorter side (bicubic, antialiased) and cropped in the middle.
    """
    batch = torch.as_tensor(images).to(device).permute(0, 3, 1, 2)
    size = image_size(arch)
    if batch.shape[-2:] != (size, size):
        from torchvision.transforms.v2 import InterpolationMode  # seconds
        from torchvision.transforms.v2 import functional as transforms

        batch = transforms.resize(batch, [size], InterpolationMode.BICUBIC, antialias=True)
        batch = transforms.center_crop(batch, [size, size])
    mean = torch.tensor(MEAN, device=batch.device).view(3, 1, 1)
    std = torch.tensor(STD, device=batch.device).view(3, 1, 1)
    return (batch.float() / 255).sub_(mean).div_(std).contiguous()


def embed(
    tower: nn.Module,
    images: np.ndarray,
    arch: Arch,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
) -> np.ndarray:
    """Embeddings float32 (N, d), not normalised, of images uint8 (N, H, W, 3); the tower in eval mode."""
    return in_batches(tower, tower, images, arch, batch_size, device)


@torch.no_grad()
def in_batches(
    look: Callable[[Tensor], Tensor],
    tower: nn.Module,
    images: np.ndarray,
    arch: Arch,
    batch_size: int,
    device: torch.device | str,
) -> np.ndarray:
    """What `look` makes of preprocessed images, a batch at a time: (B, 3, S, S) -> (B, d), float32 (N, d) in
    all. It looks through `tower`, which is on the device and in eval mode meanwhile."""
    training = tower.training
    tower.to(device).eval()
    try:
        parts = [
            look(preprocess(images[i : i + batch_size].copy(), arch, device)).float().cpu()
            for i in range(0, len(images), batch_size)
        ]
    finally:
        tower.train(training)
    return torch.cat(parts).numpy()


if "open_clip" in sys.modules:  # who has it already finds our archs in it
    _library()
