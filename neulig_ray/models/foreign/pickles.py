"""Files that torch.save or pickle wrote: their tensors, extracted by a process that runs nothing of them."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import safetensors.torch
from torch import Tensor

from neulig_ray.errors import InputError

SECONDS = 1800  # a 1.7 GB checkpoint takes some ten; what needs this long is no checkpoint
SCRIPT = Path(__file__).with_name("unpickling.py")
REMEDY = (
    "It is never unpickled here: where you trust it, load it there and save its state dict "
    "(`safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')`), then name that file"
)


def pickled_tensors(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a state dict or a whole pickled module, and the names in it that were left inert.

    Raises InputError, with the remedy, for what holds no tensors or cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="neulig-pickle-") as folder:
        target = Path(folder) / "tensors.safetensors"
        try:
            done = subprocess.run(
                [sys.executable, "-P", str(SCRIPT), str(path), str(target)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                encoding="utf-8",
                errors="replace",
                timeout=SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise InputError(f"{path} was not read within {SECONDS} s. {REMEDY}") from None
        try:
            found = json.loads(done.stdout.strip().splitlines()[-1])
        except (ValueError, IndexError):
            last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
            raise InputError(f"{path} cannot be read: its reader ended ({last[0]}). {REMEDY}") from None
        if done.returncode:
            raise InputError(f"{path} cannot be read: {found['error']}. {REMEDY}")
        return safetensors.torch.load_file(target), list(found["inert"])
