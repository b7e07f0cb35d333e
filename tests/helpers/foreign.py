"""Experts near a shipped origin, as states and as tower files, and commands that import them."""

from pathlib import Path

import numpy as np
import torch

from neulig_ray.cli import main
from neulig_ray.models.archs import ARCHS, Arch
from neulig_ray.models.clip import build_clip, preprocess
from neulig_ray.models.origin_files import load_origin, shipped
from neulig_ray.models.tower_files import describe, tower_bytes

ARCH = ARCHS["tiny-vit"]


def moved(arch: Arch = ARCH, seed: int = 1) -> tuple[dict[str, torch.Tensor], object]:
    """An expert's tower, near the shipped origin's, and that origin's CLIP."""
    clip = load_origin(shipped(arch.name, "seed-0"), arch)
    generator = torch.Generator().manual_seed(seed)
    state = {
        name: t + 0.01 * torch.randn(t.shape, generator=generator) if t.is_floating_point() else t + 3
        for name, t in clip.visual.state_dict().items()
    }
    if arch.name == "tiny-rn":
        state |= {name: t.abs() for name, t in state.items() if name.endswith("running_var")}
    return state, clip


def expert_file(folder: Path, arch: Arch = ARCH, **about) -> tuple[Path, dict[str, torch.Tensor]]:
    state, _ = moved(arch)
    path = folder / "expert.safetensors"
    path.write_bytes(
        tower_bytes(state, describe(arch, "tower", **{"task": "digits", "origin": "seed-0", **about}))
    )
    return path, state


def equal(found, wanted) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def features(output):
    """What get_image_features gives: a tensor, or since transformers 5 an output that holds it."""
    return output if isinstance(output, torch.Tensor) else output.pooler_output


def embedded_by_open_clip(arch, state, images) -> torch.Tensor:
    tower = build_clip(arch).visual
    tower.load_state_dict(state)
    with torch.no_grad():
        return tower.eval()(images)


def images_of(arch, count=3) -> torch.Tensor:
    size = arch.config["vision_cfg"]["image_size"]
    pixels = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return preprocess(pixels, arch)


def imported(source, out, *flags, arch="tiny-vit") -> int:
    given = ["import", str(source), "--arch", arch, "--task", "digits", "--origin", "seed-0"]
    return main([*given, "--out", str(out), *map(str, flags)])
