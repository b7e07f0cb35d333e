"""How accurate models are on tasks, from Python."""

import functools
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import torch
from torch import nn

from neulig_ray.api.heads import zero_shot
from neulig_ray.api.merge_inputs import Finder, Model
from neulig_ray.errors import InputError, unknown
from neulig_ray.evaluation.context import choose
from neulig_ray.evaluation.forward import embed_with
from neulig_ray.evaluation.metrics import accuracy
from neulig_ray.models.archs import ARCHS
from neulig_ray.models.clip import build_tower
from neulig_ray.models.logits import head_logits
from neulig_ray.models.tower_files import check_arch, check_state, tower_spec
from neulig_ray.pipeline.options import RunOptions
from neulig_ray.tasks import Split, find_task
from neulig_ray.weights.sources import State


def evaluate(
    models: Model | Mapping[str, Model],
    tasks: str | Sequence[str],
    *,
    arch: str | None = None,
    origin: str | None = None,
    split: str = "test",
    images: int | None = None,
    seed: int = 0,
    task_seed: int = 0,
    storage: str | Path = RunOptions.storage,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
) -> pd.DataFrame:
    """The accuracy of visual towers under the zero-shot heads of tasks.

    `models`: one model, or label -> model: a state dict of an arch, an nn.Module (pixels (B, 3, S, S) ->
    embeddings (B, d); it is evaluated where it lies), a path, an artifact's name, or one of `load_experts`.
    `arch` and `origin`, whose text tower writes the heads, are those that the model's file names, where it
    does, unless they are given. `split`: train, val or test, drawn by `task_seed`; `images`: at most so many
    of them, chosen by `seed` as experiments choose them, None: all. `device`: for everything but modules.

    Returns one row for each model and task: model, task, split, num_samples and accuracy in percent. Raises
    InputError for an unknown name, a model that does not fit the arch, or an origin that cannot be had, and
    TrainingDiverged for a model whose logits are NaN.

    Example:
        >>> import neulig_ray as nl
        >>> from neulig_ray.models.archs import ARCHS
        >>> from neulig_ray.models.clip import build_tower
        >>> untrained = build_tower(ARCHS["tiny-rn"])
        >>> found = nl.evaluate(untrained, "digits", arch="tiny-rn", origin="seed-0", images=100)
        >>> found[["task", "split", "num_samples"]].values.tolist()
        [['digits', 'test', 100]]
    """
    named = cast("Mapping[str, Model]", models if _several(models) else {"": models})
    if split not in ("train", "val", "test"):
        raise unknown("split", split, ("train", "val", "test"))
    entries = [tasks] if isinstance(tasks, str) else list(tasks)
    for entry in entries:
        find_task(entry)
    found = []
    for label, model in named.items():
        tower = _Tower.of(model, str(label), arch, origin, str(storage), device)
        for entry in entries:
            data = _split(entry, task_seed, split)
            rows = choose(len(data), images, seed, find_task(entry).name).numpy()
            head = zero_shot(entry, tower.arch, tower.origin, str(storage))
            logits = head_logits(tower.embed(data.images[rows], batch_size), head)
            percent = accuracy(logits, torch.from_numpy(data.labels[rows]), f"{tower.label} on {entry}")
            found.append((tower.label, find_task(entry).name, split, len(rows), percent))
    return pd.DataFrame(found, columns=["model", "task", "split", "num_samples", "accuracy"])


def _several(models: Model | Mapping[str, Model]) -> bool:
    """Whether a mapping holds models, and is not a state dict itself."""
    return isinstance(models, Mapping) and not all(isinstance(v, torch.Tensor) for v in models.values())


@functools.lru_cache(maxsize=4)
def _split(entry: str, seed: int, split: str) -> Split:
    return find_task(entry).splits(seed)[split]


@dataclass(frozen=True)
class _Tower:
    """A model that looks at images, with its names; `state` stands in for the module's own tensors."""

    label: str
    module: nn.Module
    state: State
    arch: str
    origin: str

    @classmethod
    def of(
        cls,
        model: Model,
        label: str,
        arch: str | None,
        origin: str | None,
        storage: str,
        device: torch.device | str,
    ) -> "_Tower":
        name = label or (
            str(model) if isinstance(model, str | Path) else getattr(model, "label", "the model")
        )
        if isinstance(model, nn.Module):
            found, origin = ARCHS[_said(arch, "arch", name)], _said(origin, "origin", name)
            return cls(name, model, {}, found.name, origin)
        with tempfile.TemporaryDirectory(prefix="neulig-evaluate-") as folder:
            opened = Finder(storage, Path(folder))(model, name, name)
            found = ARCHS[_said(arch or opened.about.get("arch"), "arch", name)]
            origin = _said(origin or opened.about.get("origin"), "origin", name)
            if "arch" in opened.about:
                check_arch(opened.about, found, name)
            source = opened.checkpoint.source
            state = {key: source.read(key).view(spec.shape) for key, spec in source.specs.items()}
            state = check_state(state, tower_spec(found), name)
        return cls(name, build_tower(found).to(device), state, found.name, origin)

    def embed(self, images: np.ndarray, batch_size: int) -> torch.Tensor:
        """Embeddings float32 (N, d), on the CPU."""
        training = self.module.training
        try:
            return embed_with(self.module, self.state, images, ARCHS[self.arch], batch_size)
        finally:
            self.module.train(training)


def _said(value: str | None, what: str, name: str) -> str:
    if not value:
        raise InputError(f"{name} does not say its {what}: give {what}=")
    return value
