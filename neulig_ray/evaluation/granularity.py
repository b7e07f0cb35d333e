"""The rules of granularities, one file each in `granularities`: which merged models predict which rows."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

import torch

from neulig_ray.errors import unknown
from neulig_ray.evaluation.context import EvaluationContext
from neulig_ray.evaluation.predictions import Betas, Predictions, per_task
from neulig_ray.registry import Registry
from neulig_ray.results.granularities import GRANULARITIES, Granularity, check_granularity

Function = Callable[..., Iterator[Predictions]]
Models = Callable[[Betas], Mapping[str, torch.Tensor]]


@dataclass(frozen=True)
class Settings:
    """What a rule may take, as keyword-only parameters of these names.

    `sample_images`, of each task; None: all. `order_seeds`: of the shuffles that the ligand is measured in.
    `seed`: the experiment's, of the images that are chosen.
    """

    sample_images: int | None = 200
    batch_size: int = 128
    order_seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    seed: int = 0


_SETTINGS: Final = tuple(field.name for field in fields(Settings))


@dataclass(frozen=True)
class Rule:
    """A granularity, and the function that predicts at it: (context, betas, **settings) -> predictions.

    Or `models(betas)`, task -> the beta (n,) of the model that serves it, where val alone decides it.
    """

    granularity: Granularity
    function: Function | None = None
    models: Models | None = None

    @property
    def settings(self) -> tuple[str, ...]:
        """The names of the settings that it takes."""
        if self.function is None:
            return ()
        parameters = inspect.signature(self.function).parameters.values()
        return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)

    @property
    def identity(self) -> dict[str, str]:
        """What fingerprints say of a plugin's rule: its module, whose name carries its content's hash."""
        module = (self.function or self.models).__module__
        return {} if module.startswith("neulig_ray.") else {"rule": module}


RULES: Final[Registry[Rule]] = Registry("granularity", "neulig_ray.evaluation.granularities")


def granularity(declared: Granularity) -> Callable[[Function], Function]:
    """Declare the rule of a granularity: a function of (context, betas) that yields `Predictions`.

    `context`: an `EvaluationContext`; `betas`: a `Betas`. Every image counts once for each order, and has the
    beta of the model that served it. Keyword-only parameters are the settings that it takes, by the names of
    the experiment's `evaluation`: they are part of the fingerprint of what is measured.

    Raises InputError for another parameter, and for a name that another file declares.
    """

    def declare(function: Function) -> Function:
        rule = Rule(declared, function)
        for name in rule.settings:
            if name not in _SETTINGS:
                raise unknown(f"setting of granularity {declared.name!r}:", name, _SETTINGS)
        RULES.register(declared.name, rule, module=function.__module__)
        GRANULARITIES[declared.name] = declared
        return function

    return declare


def model_granularity(declared: Granularity) -> Callable[[Models], Models]:
    """Declare a granularity whose models the images under test have no say in: a function of `Betas`.

    It gives task -> the beta (n,) of the model that serves it, tasks of one model the same tensor, of
    `betas.tasks` alone. Experiments make these models apart from measuring them.
    """

    def declare(function: Models) -> Models:
        RULES.register(declared.name, Rule(declared, models=function), module=function.__module__)
        GRANULARITIES[declared.name] = declared
        return function

    return declare


def predict(
    name: str,
    context: EvaluationContext,
    betas: Betas,
    made: Mapping[str, torch.Tensor] | None = None,
    **settings: Any,
) -> Iterator[Predictions]:
    """The merged models of one granularity on every task (and, in batches, every order) of the context.

    `made`: task -> the beta of its model, where these were made before. `settings`: fields of `Settings`, of
    which the rule gets those that it takes. Raises InputError for a granularity that there is none of.
    """
    check_granularity(name)
    given, rule = Settings(**settings), RULES[name]
    if rule.function is None:
        assert rule.models is not None
        return per_task(context, made or rule.models(betas))
    return rule.function(context, betas, **{setting: getattr(given, setting) for setting in rule.settings})
