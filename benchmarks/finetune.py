"""Our fine-tuning loop against a bare torch loop on the same images, weights and settings.

python benchmarks/finetune.py [--arch tiny-vit] [--task signs] [--pairs 7] [--batch-size 64] [--epochs 2]

Both train the same tower on the same prepared task with fused AdamW, the same batches, the same frozen head
and the same precision and augmentation. The bare loop draws the latter by the batch, and has no
checkpoints, no clipping checks, no resuming. Runs alternate; a pair's ratio is ours / bare in images per
second, over steady-state epochs: the first epoch of each run (start-up) is left out and printed apart.
Target: the median ratio is at least 0.95. On a GPU the model FLOP utilisation is told too:

    python benchmarks/finetune.py --arch ViT-B-32-quickgelu --task synthetic --images 8192 --batch-size 128 \\
        --epochs 3 --threads 8
    python benchmarks/finetune.py --arch ViT-L-14-quickgelu --task synthetic --images 2048 --batch-size 128 \\
        --epochs 3 --threads 8
"""

import argparse
import statistics
import sys
import time
from dataclasses import replace

import numpy as np
import torch
from torch.nn.functional import cross_entropy, normalize
from torch.utils.flop_counter import FlopCounterMode

from neulig_ray.models.archs import ARCHS, Arch, FinetuneRecipe
from neulig_ray.models.clip import build_tower, image_size, preprocess
from neulig_ray.tasks import TASKS, Split
from neulig_ray.training.augmentation import augmented, draw
from neulig_ray.training.finetune import finetune
from neulig_ray.training.lessons import Lesson

TARGET = 0.95
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bfloat16, the makers' figures


def synthetic(arch: Arch, count: int) -> Split:
    """Random images at the arch's own size, for archs that no offline task is made for."""
    rng = np.random.default_rng(0)
    size = image_size(arch)
    images = rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return Split(images, rng.integers(0, 10, count))


def ours(
    train: Split, val: Split, head: torch.Tensor, arch: Arch, recipe: FinetuneRecipe, device: str
) -> list[float]:
    """Images per second of each epoch."""
    lessons = [Lesson(head, train, val)]
    run = finetune(build_tower(arch), lessons, arch, recipe, seed=0, device=device, name="ours")
    return [epoch.images_per_second for epoch in run]


def bare(train: Split, head: torch.Tensor, arch: Arch, recipe: FinetuneRecipe, device: str) -> list[float]:
    """The same by as little code as torch needs."""
    torch.set_flush_denormal(True)
    tower = build_tower(arch).to(device).train()
    head = head.to(device)
    optimizer = torch.optim.AdamW(tower.parameters(), lr=recipe.learning_rate, fused=True)
    rng = np.random.default_rng(0)
    steps = len(train) // recipe.batch_size
    reached = []
    for _ in range(recipe.epochs):
        start = time.perf_counter()
        order = rng.permutation(len(train))
        for step in range(steps):
            rows = order[step * recipe.batch_size : (step + 1) * recipe.batch_size]
            moves = torch.from_numpy(draw(recipe, rng, (len(rows), *train.images.shape[1:])))
            images = torch.from_numpy(train.images[rows]).to(device)
            images = augmented(recipe, images, moves, image_size(arch))
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                z = tower(preprocess(images, arch, device))
            labels = torch.from_numpy(train.labels[rows]).to(device)
            loss = cross_entropy(normalize(z.float(), dim=-1) @ head.T, labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(tower.parameters(), recipe.gradient_clip)
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        reached.append(steps * recipe.batch_size / (time.perf_counter() - start))
    return reached


def flops_per_image(arch: Arch) -> float:
    """Of a forward and a backward pass, as torch counts them."""
    tower, size = build_tower(arch), image_size(arch)
    with FlopCounterMode(display=False) as counter:
        tower(torch.zeros(1, 3, size, size)).sum().backward()
    return float(counter.get_total_flops())


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", default="tiny-vit")
    parser.add_argument("--task", default="signs", help="an offline task, or `synthetic`: random images")
    parser.add_argument("--images", type=int, default=1024, help="most training images")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--epochs", type=int, default=2, help="of each run; the first is start-up")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    arch, device = ARCHS[given.arch], "cuda" if torch.cuda.is_available() else "cpu"
    if given.task == "synthetic":
        train, val = synthetic(arch, given.images), synthetic(arch, 8)
    else:
        splits = TASKS[given.task].splits(0)
        train = Split(splits["train"].images[: given.images], splits["train"].labels[: given.images])
        val = Split(splits["val"].images[:8], splits["val"].labels[:8])
    recipe = replace(arch.finetune, epochs=given.epochs, batch_size=given.batch_size)
    head = torch.randn(int(max(train.labels.max(), val.labels.max())) + 1, arch.config["embed_dim"])

    ratios, starts, rates = [], [], []
    for pair in range(given.pairs):
        runs = {"ours": lambda: ours(train, val, head, arch, recipe, device),
                "bare": lambda: bare(train, head, arch, recipe, device)}  # fmt: skip
        reached = {name: runs[name]() for name in (sorted(runs) if pair % 2 else sorted(runs, reverse=True))}
        steady = {name: statistics.mean(epochs[1:]) for name, epochs in reached.items()}
        ratios.append(steady["ours"] / steady["bare"])
        rates.append(steady)
        starts.append({name: len(train) / epochs[0] for name, epochs in reached.items()})
        print(
            f"pair {pair + 1}: ours {steady['ours']:8.1f} images/s, bare {steady['bare']:8.1f}, "
            f"ratio {ratios[-1]:.3f}"
        )
    median = statistics.median(ratios)
    first = {name: statistics.median(s[name] for s in starts) for name in ("ours", "bare")}
    speed = {name: statistics.median(rate[name] for rate in rates) for name in ("ours", "bare")}
    print(f"medians: ours {speed['ours']:.1f} images/s, bare {speed['bare']:.1f}")
    print(f"first epochs (start-up, left out): ours {first['ours']:.2f} s, bare {first['bare']:.2f} s")
    if device == "cuda":
        name = torch.cuda.get_device_name()
        peak = next((flops for key, flops in PEAK_FLOPS.items() if key in name), None)
        used = flops_per_image(arch) * speed["ours"]
        print(
            f"{name}: {used / 1e12:.1f} TFLOP/s"
            + (f", model FLOP utilisation {100 * used / peak:.1f} % of its bfloat16 peak" if peak else "")
        )
    print(f"{arch.name} on {device}: median ratio {median:.3f} of {len(ratios)} pairs (target {TARGET})")
    return 0 if median >= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
