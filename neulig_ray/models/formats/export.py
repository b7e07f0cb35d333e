"""Models out: a visual tower as an open_clip checkpoint, a Hugging Face CLIP folder, or plain safetensors."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from neulig_ray.errors import InputError
from neulig_ray.models.archs import Arch
from neulig_ray.models.clip import image_size
from neulig_ray.models.formats.card import model_card
from neulig_ray.models.formats.huggingface import clip_to, config_of
from neulig_ray.parts import whole_file, whole_folder
from neulig_ray.weights.metadata import file_metadata
from neulig_ray.weights.tensor_writer import write_tensors

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
    with _explained(out), whole_folder(out) as part:
        write_tensors(part / "model.safetensors", clip_to(whole_clip(tower, clip)), file_metadata())
        texts = {"config.json": config, **_processor(arch)}
        for name, value in texts.items():
            (part / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
        (part / "merges.txt").write_text(_merges(), encoding="utf-8")
        (part / "README.md").write_text(model_card(out, about, command, "hf"), encoding="utf-8")
    return sorted(out.iterdir())


def _write_file(out: Path, state: State, about: Mapping[str, Any], command: str, form: str) -> list[Path]:
    card = out.with_suffix(".md")
    torch_file = out.suffix in TORCH_SUFFIXES
    if out.suffix != ".safetensors" and not (torch_file and form == "open_clip"):
        also = f", or {', '.join(TORCH_SUFFIXES)}" if form == "open_clip" else ""
        raise InputError(f"--out {str(out)!r}: a file of format {form} ends in .safetensors{also}")
    with _explained(out), whole_file(card) as text:
        text.write(model_card(out, about, command, form).encode())
        if torch_file:
            with whole_file(out) as stream:
                torch.save({name: tensor.detach().contiguous() for name, tensor in state.items()}, stream)
        else:
            write_tensors(out, state, file_metadata())
    return [out, card]


def write_whole(out: Path, data: bytes) -> None:
    """A file whole or not at all; raises InputError where it cannot be written."""
    with _explained(out), whole_file(out) as stream:
        stream.write(data)


@contextlib.contextmanager
def _explained(target: Path) -> Iterator[None]:
    """The folder of `target` is there; what cannot be written is an InputError."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield
    except (OSError, RuntimeError) as error:  # torch's own, and ours, for a full disk
        raise InputError(f"--out {str(target)!r} cannot be written: {error}") from error


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
