"""What an architecture is: an open_clip configuration with the recipes that suit it."""

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, TypeVar

from neulig_ray.registry import Registry


@dataclass(frozen=True, kw_only=True)
class FinetuneRecipe:
    """How an expert is made: AdamW, linear warm-up then cosine to zero, gradient clipping, frozen head."""

    epochs: int = 8
    batch_size: int = 64  # global: images per optimiser step over all workers
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    warmup: float = 0.05  # below 1: a fraction of all steps; from 1 on: steps
    gradient_clip: float = 1.0
    augment: Literal["shift", "crop", "none"] = "shift"  # crop: open_clip's training transform
    shift: int = 2  # augment `shift`: random translation by up to this many pixels
    micro_batch: int = 0  # images of one forward pass of a worker, gradients added up; 0: its whole share
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 autocast on GPUs
    batchnorm: Literal["train", "frozen", "synchronised"] = "train"  # whose statistics; the last: on GPUs
    channels_last: bool = False
    gradient_checkpointing: bool = False  # activations of transformer blocks computed again going back
    compile: bool = False  # torch.compile
    keep_last: bool = False  # the last, smaller batch of an epoch; else its images wait for the next epoch

    def identity(self) -> dict[str, Any]:
        """What an expert is told apart by, as far as its recipe goes: every field that has an effect.

        `augment` is named where it is no shift, `keep_last` where it is set: fingerprints from before there
        were others stay valid.
        """
        fields = asdict(self)
        del fields["augment" if self.augment == "shift" else "shift"]
        if not self.keep_last:
            del fields["keep_last"]
        return fields


@dataclass(frozen=True, kw_only=True)
class PretrainRecipe:
    """How a tiny origin is made: contrastive training on the tasks' captioned pre-training streams."""

    steps: int = 1000
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    warmup: float = 0.05
    gradient_clip: float = 1.0
    candidates: int = 128  # captions that each image is compared with
    images: int = 24000  # captioned images rendered once, then sampled
    embedding_norm: float = 10.0  # mean norm of the image embeddings afterwards, by rescaling the projection


R = TypeVar("R", FinetuneRecipe, PretrainRecipe)


def override(recipe: R, changes: Any) -> R:
    """`recipe` with every field of the same name that is not None in `changes`."""
    names = {field.name for field in fields(recipe)}
    return replace(recipe, **{n: v for n in names if (v := getattr(changes, n, None)) is not None})


@dataclass(frozen=True, kw_only=True)
class Arch:
    """An open_clip model configuration under a name of its own (`config` as in open_clip's JSON files).

    `token_seed`: the text tower's token table is never trained nor stored, but drawn from this seed; None
    where it is a weight like any other (pretrained models). `task_epochs`: epochs of fine-tuning where a task
    needs others than the recipe's, by the task's name in lower case, letters and digits alone.
    """

    name: str
    config: Mapping[str, Any]
    description: str
    version: int = 1
    token_seed: int | None = 0
    finetune: FinetuneRecipe = field(default_factory=FinetuneRecipe)
    pretrain: PretrainRecipe = field(default_factory=PretrainRecipe)
    task_epochs: Mapping[str, int] = field(default_factory=dict)

    @property
    def activation(self) -> str:
        return "quick_gelu" if self.config.get("quick_gelu") else "gelu"

    def recipe(self, task: str) -> FinetuneRecipe:
        """How an expert of `task` is made."""
        plain = "".join(letter for letter in task.lower() if letter.isalnum())
        return replace(self.finetune, epochs=self.task_epochs.get(plain, self.finetune.epochs))


def plain(name: str) -> str:
    """An arch's name without its activation."""
    return name.removesuffix("-quickgelu")


# Any open_clip model with a tower that we know is an arch by its open_clip name.
ARCHS: Registry[Arch] = Registry("arch", "neulig_ray.models.archs", "neulig_ray.models.archs._open_clip")


def register_arch(arch: Arch) -> Arch:
    """Declare `arch`: the last line of an architecture's file."""
    return ARCHS.register(arch.name, arch, module=sys._getframe(1).f_globals["__name__"])
