"""Models out: a visual tower as an open_clip checkpoint, a Hugging Face CLIP folder, or plain safetensors."""

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import open_clip
import safetensors.torch
import torch
from open_clip.tokenizer import SimpleTokenizer
from safetensors import SafetensorError
from torch import Tensor

from neulig_ray.errors import InputError
from neulig_ray.models.archs import Arch
from neulig_ray.models.clip import image_size
from neulig_ray.models.foreign.card import model_card
from neulig_ray.models.foreign.huggingface import clip_to, config_of

State = Mapping[str, Tensor]
TORCH_SUFFIXES = (".pt", ".pth", ".bin")


def whole_clip(tower: State, clip: Any) -> dict[str, Tensor]:
    """The origin's CLIP, in open_clip's names, with `tower` as its visual tower."""
    state = {name: t for name, t in clip.state_dict().items() if not name.startswith("visual.")}
    return {**{f"visual.{name}": t for name, t in tower.items()}, **state}


def write_safetensors(out: Path, tower: State, about: Mapping[str, Any], command: str) -> list[Path]:
    """The tower alone, names as in open_clip's visual tower, and a card beside it; the files written."""
    return _write_file(out, tower, about, command, "safetensors")


def write_open_clip(out: Path, tower: State, clip: Any, about: Mapping[str, Any], command: str) -> list[Path]:
    """A checkpoint for `open_clip.create_model(ARCH, pretrained=OUT)`, and a card; the files written.

    .safetensors, or .pt, .pth and .bin for a state dict of torch.save.
    """
    return _write_file(out, whole_clip(tower, clip), about, command, "open_clip")


def write_huggingface(
    out: Path, tower: State, clip: Any, arch: Arch, about: Mapping[str, Any], command: str
) -> list[Path]:
    """A folder for transformers' CLIPModel and CLIPProcessor; the files written.

    Raises InputError for an arch that CLIPModel cannot express, and for a folder that is there already.
    """
    if out.exists():
        raise InputError(f"--out {str(out)!r} exists: name a new folder")
    config = config_of(arch)
    with _whole(out) as part:
        part.mkdir(parents=True)
        state = {name: tensor.contiguous() for name, tensor in clip_to(whole_clip(tower, clip)).items()}
        safetensors.torch.save_file(state, part / "model.safetensors", {"format": "pt"})
        texts = {"config.json": config, **_processor(arch)}
        for name, value in texts.items():
            (part / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
        (part / "merges.txt").write_text(_merges(), encoding="utf-8")
        (part / "README.md").write_text(model_card(out, about, command, "hf"), encoding="utf-8")
        shutil.copymode(part / "README.md", part / "model.safetensors")
    return sorted(out.iterdir())


def _write_file(out: Path, state: State, about: Mapping[str, Any], command: str, form: str) -> list[Path]:
    card = out.with_suffix(".md")
    torch_file = out.suffix in TORCH_SUFFIXES
    if out.suffix != ".safetensors" and not (torch_file and form == "open_clip"):
        also = f", or {', '.join(TORCH_SUFFIXES)}" if form == "open_clip" else ""
        raise InputError(f"--out {str(out)!r}: a file of format {form} ends in .safetensors{also}")
    tensors = {name: tensor.detach().contiguous() for name, tensor in state.items()}
    with _whole(card) as card_part, _whole(out) as part:
        if torch_file:
            torch.save(tensors, part)
        else:
            safetensors.torch.save_file(tensors, part, {"format": "pt"})
        card_part.write_text(model_card(out, about, command, form), encoding="utf-8")
        shutil.copymode(card_part, part)  # safetensors makes files that only their owner reads
    return [out, card]


def write_whole(out: Path, data: bytes) -> None:
    """A file whole or not at all; raises InputError where it cannot be written."""
    with _whole(out) as part:
        part.write_bytes(data)


@contextlib.contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """A name beside `target` to write to; it becomes the target at the end, and vanishes on an error."""
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, target)
    except (OSError, RuntimeError, SafetensorError) as error:  # the two libraries' own for a full disk
        raise InputError(f"--out {str(target)!r} cannot be written: {error}") from error
    finally:
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        part.unlink(missing_ok=True)


def _processor(arch: Arch) -> dict[str, Any]:
    """How images and texts are prepared, as transformers reads it."""
    size = image_size(arch)
    ids = SimpleTokenizer().encoder
    ids["<|startoftext|>"], ids["<|endoftext|>"] = ids.pop("<start_of_text>"), ids.pop("<end_of_text>")
    return {
        "preprocessor_config.json": {
            "image_processor_type": "CLIPImageProcessor",
            "do_resize": True,
            "size": {"shortest_edge": size},
            "resample": 3,  # bicubic
            "do_center_crop": True,
            "crop_size": {"height": size, "width": size},
            "do_rescale": True,
            "do_normalize": True,
            "image_mean": list(open_clip.OPENAI_DATASET_MEAN),
            "image_std": list(open_clip.OPENAI_DATASET_STD),
            "do_convert_rgb": True,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "CLIPTokenizer",
            "processor_class": "CLIPProcessor",
            "model_max_length": arch.config["text_cfg"]["context_length"],
            "bos_token": "<|startoftext|>",
            "eos_token": "<|endoftext|>",
            "unk_token": "<|endoftext|>",
            "pad_token": "<|endoftext|>",
        },
        "vocab.json": ids,
    }


def _merges() -> str:
    pairs = sorted(SimpleTokenizer().bpe_ranks.items(), key=lambda item: item[1])
    return "\n".join(["#version: 0.2", *(" ".join(pair) for pair, _ in pairs)]) + "\n"
