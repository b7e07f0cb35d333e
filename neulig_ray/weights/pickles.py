"""Files that torch.save or pickle wrote, by slices: another process says where the tensors lie in them."""

import json
import math
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from neulig_ray.errors import InputError
from neulig_ray.weights.metadata import RESERVED
from neulig_ray.weights.tensor_file import DTYPES, Reader, Spec, not_read, unreadable, with_more_files

SECONDS: Final = 60.0
RATE: Final = 50e6  # bytes of a file for each further second
# The child finds the standard library and, after it, this file's folder, for the sake of `unpickling` alone.
_START = "import sys; sys.path.append(sys.argv[1]); from unpickling.process import main; main(*sys.argv[2:])"
CHILD: Final = ("-I", "-S", "-c", _START, str(Path(__file__).parent))
REMEDY: Final = (
    "It is never unpickled here: where you trust it, load it there and save its state dict "
    "(`safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')`), then name that file"
)


class NoWeights(InputError):
    """A file that holds no weights which can be read here; `reason`: why, in words."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} cannot be read: {reason}. {REMEDY}")
        self.reason = reason


class TorchFile:
    """The weights of a state dict or of a whole pickled module. Nothing of the file is run.

    `key`: where in the file they are; `others`: keys of other tensors, passed over; `odd`: what is no tensor
    among them, name -> type; `inert`: names of classes and functions that were left alone; `module`: the
    class of a whole module; `unread`: tensors that nothing here computes with, name -> dtype.
    """

    def __init__(self, path: Path, weights: str = "") -> None:
        """`weights`: the key of those to take, where the file holds several models.

        Raises NoWeights for what holds no tensors or cannot be read, InputError where it does not say which.
        """
        self.path = path
        self._file = Reader(path)
        with tempfile.TemporaryDirectory(prefix="neulig-pickle-") as folder:
            side = Path(folder) / "numbers"
            found = _explored(path, side, weights, self._file.size)
            # Stays open, and vanishes with this object; most files need none.
            self._side = Reader(side) if side.stat().st_size else self._file
        self.key: str = found["key"]
        self.module: str = found["module"]
        self.others: tuple[str, ...] = tuple(found["others"])
        self.odd: Mapping[str, str] = found["odd"]
        self.inert: tuple[str, ...] = tuple(found["inert"])
        self._places: Mapping[str, Mapping[str, Any]] = found["tensors"]
        if RESERVED in self._places:
            raise InputError(
                f"{path}: a tensor is called {RESERVED!r}, which no safetensors file can hold: rename it"
            )
        self.unread = {n: str(p["dtype"]) for n, p in self._places.items() if p["dtype"] not in DTYPES}
        self.specs = {
            name: Spec(tuple(place["shape"]), DTYPES[place["dtype"]])
            for name, place in self._places.items()
            if name not in self.unread
        }
        self._whole: tuple[str, torch.Tensor] = ("", torch.empty(0))
        self._lock = threading.Lock()

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Numbers start..stop of a tensor's flat view, in its own dtype."""
        spec, place = self.specs[name], self._places[name]
        stop = spec.numel if stop is None else stop
        if not _is_contiguous(spec.shape, place["stride"]):
            return self._gathered(name)[start:stop].clone()
        found = torch.empty(stop - start, dtype=spec.dtype)
        (self._side if place["side"] else self._file).fill(found, place["begin"] + start * found.itemsize)
        return found

    def read_into(self, out: torch.Tensor, name: str, start: int = 0) -> None:
        """Fill `out` (float32, flat) with numbers of a tensor from `start` on, converted."""
        out.copy_(self.read(name, start, start + out.numel()))

    def _gathered(self, name: str) -> torch.Tensor:
        """A view that is not contiguous, flat; the last one is kept, since it is read piece by piece."""
        with self._lock:
            if self._whole[0] != name:
                shape, place = self.specs[name].shape, self._places[name]
                steps = [(n - 1) * step for n, step in zip(shape, place["stride"], strict=True)]
                span = torch.empty(1 + sum(steps), dtype=self.specs[name].dtype)
                (self._side if place["side"] else self._file).fill(span, place["begin"])
                self._whole = name, span.as_strided(shape, place["stride"]).reshape(-1)
            return self._whole[1]


def _is_contiguous(shape: tuple[int, ...], stride: list[int]) -> bool:
    if not math.prod(shape):
        return True
    step = 1
    for size, found in zip(reversed(shape), reversed(stride), strict=True):
        if size != 1 and found != step:
            return False
        step *= size
    return True


def _explored(path: Path, side: Path, weights: str, size: int) -> dict[str, Any]:
    """What `unpickling.process` prints."""
    seconds = SECONDS + size / RATE
    try:
        done = with_more_files(
            lambda: subprocess.run(
                [sys.executable, *CHILD, str(path.absolute()), str(side), weights],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=seconds,
                env={name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            )
        )
    except OSError as error:
        raise unreadable(str(path), error) from error
    except subprocess.TimeoutExpired:
        raise NoWeights(
            path, f"looking through it took more than the {seconds:.0f} s that its size allows"
        ) from None
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        reason = last[0][:200] if last else f"exit status {done.returncode}"
        raise NoWeights(path, f"its reader ended ({reason})") from None
    if "error" in found:
        if "--weights-key" in found["error"]:
            raise InputError(f"{path}: {found['error']}")
        raise NoWeights(path, found["error"])
    return found


def pickled_tensors(path: Path, weights: str = "") -> tuple[dict[str, torch.Tensor], TorchFile]:
    """All tensors of the file that can be read, in memory, and the file; raises InputError as `TorchFile`."""
    file = TorchFile(path, weights)
    if not file.specs:
        raise not_read(str(path), *next(iter(file.unread.items())))
    return {name: file.read(name).view(spec.shape) for name, spec in file.specs.items()}, file
