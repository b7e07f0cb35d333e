"""Does reading images starve the model? Images per second of the input alone, of training alone, of both.

    python benchmarks/input_pipeline.py
    python benchmarks/input_pipeline.py --arch ViT-B-32-quickgelu --device cuda --batch-size 128

A folder of seeded noise as JPEG files is prepared into a storage as a task would be (decoded, fitted to the
model's size, sharded), then read in random order as fine-tuning reads it: rows of memory-mapped shards in one
thread ahead, uint8 to the device, augmentation, resize and normalisation there. Rounds of the three kinds
take turns, so that what else the machine does meets all of them; the figures are medians over the rounds.

    preparing   decoding and storing, once for all experiments, with all threads of the stage
    input       batches of pixels on the device, nothing computed with them
    synthetic   optimiser steps on one batch of pixels that stays on the device
    together    optimiser steps on batches as they come

The ratio is together / synthetic: 1 means that the model never waits. On a CPU the input takes its time from
the model's own processor, and the ratio is what that costs; it says nothing about a GPU.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from neulig_ray.models.archs import ARCHS, Arch
from neulig_ray.models.clip import build_tower, image_size, preprocess
from neulig_ray.stages import tasks as prepare
from neulig_ray.stages.tasks import load_split, task_job
from neulig_ray.storage.storage import Storage
from neulig_ray.tasks import Split
from neulig_ray.training.augmentation import augmented, draw
from neulig_ray.training.execution import Execution, ahead
from neulig_ray.training.optimisation import adamw, take_step

CLASSES = 10
FILE_SIZE = (500, 375)  # pixels, as photographs on the web are


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--arch", default="tiny-vit", choices=list(ARCHS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20, help="of one round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--shard-mib", type=float, default=4, help="small, so that there are many shards")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    prepare.SHARD_BYTES = int(given.shard_mib * 2**20)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(given, Path(folder))
    if given.json:
        json.dump(found, sys.stdout, indent=1)
        print()
        return 0
    print(f"{given.arch} on {found['device']}, {found['threads']} threads, batches of {given.batch_size}, "
          f"{found['shards']} shards")  # fmt: skip
    for name in ("preparing", "input", "synthetic", "together"):
        print(f"{name:<10} {found[name]:10.0f} images/s")
    print(f"ratio      {found['ratio']:10.3f} together / synthetic")
    return 0


def measure(given: argparse.Namespace, folder: Path) -> dict[str, float | str]:
    arch, device = ARCHS[given.arch], torch.device(given.device)
    write_images(folder / "images", given.images)
    storage = Storage(str(folder / "storage"))
    job = task_job(f"noise=folder:{folder / 'images'}", 0, size=image_size(arch))
    started = time.perf_counter()
    job.run(storage)
    preparing = given.images / (time.perf_counter() - started)
    train = load_split(storage, job.artifact, "train")

    step = training_step(arch, device, given.batch_size)
    fixed = next(batches(train, arch, device, given.batch_size, 1, seed=0))
    kinds: dict[str, Callable[[int], None]] = {
        "input": lambda seed: drain(batches(train, arch, device, given.batch_size, given.steps, seed)),
        "synthetic": lambda seed: [step(*fixed) for _ in range(given.steps)] and None,
        "together": lambda seed: (
            [step(*batch) for batch in batches(train, arch, device, given.batch_size, given.steps, seed)]
            and None
        ),
    }
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for round_number in range(given.rounds + 1):
        for kind, run in kinds.items():
            started = time.perf_counter()
            run(round_number)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if round_number:  # the first round warms up
                seconds[kind].append(time.perf_counter() - started)
    images = given.steps * given.batch_size
    ratios = [alone / both for alone, both in zip(seconds["synthetic"], seconds["together"], strict=True)]
    return {
        "preparing": preparing,
        **{kind: images / statistics.median(spent) for kind, spent in seconds.items()},
        "ratio": statistics.median(ratios),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "shards": len(storage.manifest(job.artifact)["info"]["shards"]["train"]),
    }


def write_images(folder: Path, count: int) -> None:
    """JPEG files of seeded noise, smoothed as photographs are, in CLASSES class folders."""
    rng = np.random.default_rng(0)
    for split, number in (("train", count - count // 10), ("test", count // 10)):
        for i in range(number):
            small = Image.fromarray(rng.integers(0, 256, (47, 63, 3), np.uint8))
            path = folder / split / f"class-{i % CLASSES}" / f"{i:06d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            small.resize(FILE_SIZE, Image.Resampling.BICUBIC).save(path, quality=85)


def batches(train: Split, arch: Arch, device: torch.device, batch_size: int, steps: int, seed: int):
    """Pixels and labels on the device, in an order of `seed`, as fine-tuning reads them."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, len(train), (steps, batch_size))
    for images, labels in ahead(partial(read, train), list(rows)):
        moves = torch.from_numpy(draw(arch.finetune, rng, tuple(images.shape)))
        moved = augmented(arch.finetune, images.to(device), moves, image_size(arch))
        yield preprocess(moved, arch, device), labels.to(device)


def read(train: Split, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(np.ascontiguousarray(train.images[rows])), torch.from_numpy(train.labels[rows])


def training_step(arch: Arch, device: torch.device, batch_size: int) -> Callable[[Tensor, Tensor], None]:
    """One optimiser step of the arch's own recipe under a random head."""
    execution = Execution(arch.finetune, device)
    tower = build_tower(arch)
    execution.prepare(tower)
    execution.train(tower)
    optimizer = adamw(tower, arch.finetune.learning_rate, arch.finetune.weight_decay)
    head = 100 * normalize(torch.randn(CLASSES, arch.config["embed_dim"], device=device), dim=-1)

    def step(pixels: Tensor, labels: Tensor) -> None:
        def loss(rows: slice) -> Tensor:
            z = execution.forward(tower, pixels[rows])
            return cross_entropy(normalize(z.float(), dim=-1) @ head.T, labels[rows], reduction="sum")

        total = execution.backward(tower, optimizer, loss, len(labels), 1 / batch_size)
        take_step(optimizer, total, 1e-6, arch.finetune.gradient_clip, "benchmark")

    return step


def drain(items) -> None:
    for _ in items:
        pass


if __name__ == "__main__":
    sys.exit(main())
