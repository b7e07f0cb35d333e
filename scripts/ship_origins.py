"""Put the origins that `neulig pretrain pretrain_tiny` made into the package, with what they measure.

    neulig pretrain pretrain_tiny --storage STORAGE
    python scripts/ship_origins.py STORAGE

Each file is copied byte for byte. The .json beside it holds the command, the recipe, the seconds of training
and the zero-shot accuracies in percent, on val and test, that anyone can measure again.
"""

import datetime
import json
import sys
from pathlib import Path

import torch

from neulig_ray.models.archs import ARCHS
from neulig_ray.models.clip import embed
from neulig_ray.models.heads import accuracy, zero_shot_head
from neulig_ray.models.origin_files import load_origin
from neulig_ray.stages.origins import FILE
from neulig_ray.tasks import TASKS

COMMAND = "neulig pretrain pretrain_tiny"
TARGET = Path(__file__).parent.parent / "neulig_ray" / "models" / "origins"


def measured(path: Path, arch_name: str) -> dict[str, dict[str, float]]:
    """Zero-shot accuracy of an origin on val and test of every task."""
    arch = ARCHS[arch_name]
    clip = load_origin(path, arch)
    found: dict[str, dict[str, float]] = {}
    for task in TASKS.values():
        head, splits = zero_shot_head(clip, arch, task.class_names, task.templates), task.splits(0)
        found[task.name] = {
            name: round(
                accuracy(
                    torch.from_numpy(embed(clip.visual, splits[name].images, arch)),
                    head,
                    torch.from_numpy(splits[name].labels),
                ),
                2,
            )
            for name in ("val", "test")
        }
    return found


def main(storage: Path) -> None:
    for folder in sorted((storage / "artifacts" / "origin").iterdir()):
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        info, label = manifest["info"], manifest["label"]
        target = TARGET / f"{label}.safetensors"
        target.write_bytes((folder / FILE).read_bytes())
        about = {
            "command": COMMAND,
            "date": str(datetime.date.today()),
            "recipe": info["recipe"],
            "streams": info["tasks"],
            "seconds": round(sum(point["seconds"] for point in info["curve"])),
            "sha256": manifest["files"][FILE]["sha256"],
            "zero_shot": measured(target, info["arch"]),
        }
        target.with_suffix(".json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        print(target, target.stat().st_size, "bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
