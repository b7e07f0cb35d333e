"""What the tests that kill compare: `smallest` with an origin of its own, disturbed and undisturbed."""

import contextlib
import hashlib
import json
from pathlib import Path

import pandas as pd

SMALLEST = str(Path(__file__).parents[2] / "experiments/smallest.py")
FLAGS = (
    *("--pretrain.no-shipped", "--pretrain.steps", "300", "--pretrain.images", "2000"),
    *("--pretrain.tasks", "digits", "textures"),
    *("--finetune.epochs", "4"),
)
_TIMING = ["seconds", "peak_memory_bytes"]


def results(folder: Path) -> pd.DataFrame:
    """The results table, without what differs from run to run."""
    return pd.read_parquet(folder / "smallest/results.parquet").drop(columns=_TIMING)


def hashes(folder: Path) -> dict[str, str]:
    """The sha256 of every artifact's files but those that hold how long something took."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted((folder / "artifacts").rglob("*"))
        if file.suffix in (".npy", ".safetensors")
    }


def checkpoints(folder: Path, stage: str) -> list[Path]:
    """Checkpoints that a later run would find: those that Ray Train has noted down."""
    found = []
    for noted in (folder / "ray/train").glob(f"{stage}-*/*/group-*/checkpoint_manager_snapshot.json"):
        with contextlib.suppress(json.JSONDecodeError, OSError):
            if json.loads(noted.read_text())["checkpoint_results"]:
                found += noted.parent.glob("checkpoint_*/checkpoint.pt")
    return found
