"""What a whole quickstart leaves behind, drawn from a seed: reports and trackers are tested on it."""

import itertools
import random
from collections.abc import Iterator
from typing import Any

import pandas as pd

from neulig_ray.results import schema
from neulig_ray.tracking.records import CellRecord, ExpertCurve, TrialRecord

TASKS = ("digits", "letters", "shapes", "signs", "textures")
ARCHS = ("tiny-rn", "tiny-vit")
ENSEMBLES = ("ensemble-embedding", "ensemble-logit", "ensemble-probability", "ensemble-vote")
GRANULARITIES = {  # merging accuracy relative to the ensemble's; the order of magnitude of the toy study
    "task": 0.6,
    "sample": -0.4,
    "batch-first": -2.0,
    "batch-mean": 0.3,
    "batch-first-mixed": -44.0,
    "batch-mean-mixed": -33.0,
    "global": -34.0,
}
EXPERT = {"digits": 97.2, "letters": 88.0, "shapes": 79.5, "signs": 82.7, "textures": 96.0}
ZEROSHOT = {"digits": 61.0, "letters": 22.4, "shapes": 55.1, "signs": 48.9, "textures": 63.3}


def results(
    archs: tuple[str, ...] = ARCHS,
    tasks: tuple[str, ...] = TASKS,
    sizes: tuple[int, ...] = (2, 5),
    seed: int = 0,
    **change: Any,
) -> pd.DataFrame:
    """A results table; `change` overwrites columns of every row."""
    draw = random.Random(seed)
    rows = [row | change for arch in archs for row in _arch_rows(arch, tasks, sizes, draw)]
    return schema.frame(rows)


def _arch_rows(
    arch: str, tasks: tuple[str, ...], sizes: tuple[int, ...], draw: random.Random
) -> Iterator[dict[str, Any]]:
    base = {
        "arch": arch,
        "origin": "seed-0",
        "protocol": "standard",
        "split": "test",
        "num_samples": 500,
        "fingerprint": "c0ffee",
        "parameters": 900_000,
    }
    for task in tasks:
        single = base | {"task": task, "seconds": 0.4}
        yield single | {"n": 0, "method": "zeroshot", "merging_accuracy": ZEROSHOT[task]}
        yield single | {"n": 1, "method": "expert", "collaborators": task, "merging_accuracy": EXPERT[task]}
    for n in sizes:
        for combination in itertools.combinations(tasks, n):
            for task in combination:
                own = base | {"n": n, "collaborators": ",".join(combination), "task": task}
                for values in _combination_rows(arch, n, task, draw):
                    yield own | values


def _combination_rows(arch: str, n: int, task: str, draw: random.Random) -> Iterator[dict[str, Any]]:
    def near(value: float, spread: float = 1.0) -> float:
        return round(min(100.0, max(0.0, draw.gauss(value, spread))), 2)

    uniform = near(EXPERT[task] - 12 * n**0.5)
    for buffers, lift in (("average", 0), ("re-estimated", 5)) if arch == "tiny-rn" else (("", 0),):
        merged = near(EXPERT[task] - 24 * n**0.4 + lift)
        yield {"method": "average", "granularity": "global", "buffers": buffers, "merging_accuracy": merged,
               "ensembling_accuracy": uniform, "seconds": 0.3}  # fmt: skip
    for place, method in enumerate(ENSEMBLES):
        yield {"method": method, "ensembling_accuracy": near(uniform - place, 0.5), "granularity": "global"}
    for alignment, loss, routing in (("sup", 1.2, 94.0), ("semi", 16.0, 66.0)):
        ensemble = near(EXPERT[task] - loss)
        learned = {"alignment": alignment, "seed": 0, "learning_rate": 3e-3, "alignment_weight": 0.25,
                   "entropy": near(0.16, 0.02), "routing_accuracy": near(routing)}  # fmt: skip
        routed = {"method": "hard-routing", "granularity": "sample", "merging_accuracy": near(ensemble - 0.8)}
        yield learned | routed | {"seconds": 0.1}
        for granularity, offset in GRANULARITIES.items():
            batched = granularity.startswith("batch")
            for order in range(5) if granularity.endswith("mixed") else (None,):
                merged = near(ensemble + offset, 0.4)
                yield learned | {
                    "method": "ligand", "granularity": granularity, "seconds": 0.7,
                    "buffers": "average" if arch == "tiny-rn" else "", "order_seed": order,
                    "batch_size": 128 if batched else None, "merging_accuracy": merged,
                    "ensembling_accuracy": ensemble, "agreement": near(96.0), "kl": 0.02,
                    "matched_ensembling_accuracy": near(ensemble), "peak_memory_bytes": 4_000_000,
                }  # fmt: skip


def trials(frame: pd.DataFrame, count: int = 8) -> list[TrialRecord]:
    """`count` trials for each alignment of each cell of the frame."""
    draw = random.Random(1)
    made = []
    for cell in cells(frame):
        for alignment, number in itertools.product(("sup", "semi"), range(count)):
            made.append(
                TrialRecord(
                    arch=cell.arch,
                    origin=cell.origin,
                    n=cell.n,
                    seed=cell.seed,
                    alignment=alignment,
                    learning_rate=10 ** draw.uniform(-4, -1),
                    alignment_weight=10 ** draw.uniform(-4, 1),
                    val_merging=draw.uniform(60, 80),
                    val_ensembling=draw.uniform(60, 80),
                    seconds=1.5,
                    fingerprint=f"trial-{number}",
                    selected=number == 3,
                )
            )
    return made


def cells(frame: pd.DataFrame) -> list[CellRecord]:
    """The cells of the frame, each with two small ligand files."""
    keys = frame[frame["n"] > 1][["arch", "origin", "n"]].drop_duplicates().to_dict("records")
    return [
        CellRecord(arch=row["arch"], origin=row["origin"], n=int(row["n"]), seed=0,
                   fingerprint=f"cell-{row['n']}",
                   ligand_files={"sup.safetensors": b"s" * 4000, "semi.safetensors": b"t" * 4000})
        for row in keys
    ]  # fmt: skip


def curves(frame: pd.DataFrame, epochs: int = 8) -> list[ExpertCurve]:
    """A fine-tuning curve for each expert of the frame."""
    experts = frame[frame["method"] == "expert"].to_dict("records")
    return [
        ExpertCurve(
            arch=row["arch"], origin=row["origin"], task=row["task"], seed=0, fingerprint=f"e-{row['task']}",
            test_accuracy=row["merging_accuracy"],
            epochs=[
                {"epoch": e, "loss": 2 / (e + 1), "val_accuracy": 90 - 40 / (e + 1), "seconds": 1.1}
                for e in range(epochs)
            ],
        )
        for row in experts
    ]  # fmt: skip


VARIANTS = 3 + 2 * 5  # of few_results: averages and an ensemble; ligands sup and semi


def few_results() -> pd.DataFrame:
    """Three tasks, pairs, thirteen variants: each run costs its share of a second."""
    whole = results(("tiny-rn",), ("digits", "letters", "signs"), (2,))
    methods = whole["method"].isin(["zeroshot", "expert", "average", "ensemble-vote", "ligand"])
    return whole[methods & ~whole["granularity"].isin(["batch-mean", "batch-first-mixed"])]


def everything(frame: pd.DataFrame) -> dict[str, Any]:
    """The arguments of a recording of the frame."""
    return {"results": frame, "trials": trials(frame, 2), "experts": curves(frame, 3), "cells": cells(frame)}
