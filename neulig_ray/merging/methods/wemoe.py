"""WeMoE: MLPs merged anew for each image, the rest merged once."""

import copy
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import torch
from torch import nn

from neulig_ray.errors import InputError
from neulig_ray.merging import About, MergedModels, MergeInputs, Scaling, routed
from neulig_ray.merging.adaptation import (
    AdaptOn,
    BatchSize,
    LearningRate,
    Steps,
    backward_each,
    entropy,
    minimise,
    task_batches,
)
from neulig_ray.merging.coefficients import task_vectors
from neulig_ray.merging.prediction import head_logits
from neulig_ray.merging.weight_ensembling import Router, WeightEnsemblingMLP


def refuses(tower: nn.Module) -> str | None:
    """Why WeMoE is not defined for a tower; None where it is."""
    blocks = getattr(getattr(tower, "transformer", None), "resblocks", None)
    if not blocks:
        return (
            "WeMoE is not defined for CNNs: it routes the MLPs of transformer blocks, and a "
            f"{type(tower).__name__} has none"
        )
    for block in blocks:
        mlp = getattr(block, "mlp", None)
        if not isinstance(mlp, nn.Sequential) or not all(hasattr(mlp, name) for name in ("c_fc", "c_proj")):
            return (
                f"WeMoE needs MLPs of open_clip's form (c_fc, activation, c_proj), and a "
                f"{type(block).__name__} has none"
            )
    return None


@routed(
    "wemoe",
    paper="arXiv 2402.00433 (ICML 2024)",
    needs=("base", "unlabelled images"),
    refuses=refuses,
    untrained={"steps": 0},
    symmetric=False,  # a router starts from random numbers for each place among the experts
)
def wemoe(
    bench: MergeInputs,
    *,
    scaling: Scaling = 0.3,
    routing: Annotated[
        Literal["sample", "batch"], About("whether each image has weights of its own, or each batch")
    ] = "sample",
    router_layers: Annotated[int, About("number of linear layers of a router", at_least=0, at_most=2)] = 2,
    init: Annotated[float, About("weight of every task vector before the routers are trained")] = 0.3,
    steps: Steps = 1000,
    batch_size: BatchSize = 16,
    learning_rate: LearningRate = 1e-4,
    adapt_on: AdaptOn = "val",
) -> MergedModels:
    """Task arithmetic outside the MLPs; in each block a router weighs the MLP's task vectors for each image.

    The router of a block sees the MLP's input h: w = mean over the tokens of r(h), without softmax, and the
    MLP runs on W_0 + sum_t w_t tau_t. Only the routers are trained, by the entropy of the predictions on
    unlabelled images, with Adam and a learning rate that falls along a cosine.

    The authors adapt on the test images: `adapt_on="test"`. FusionBench averages the weights over the batch:
    `routing="batch"`. CNNs are refused with an InputError. arXiv 2503.01268 sets an ensemble beside WeMoE and
    does not say how it was had, so there is no prediction-level counterpart here.
    """
    if reason := refuses(bench.tower):
        raise InputError(f"{reason}; leave wemoe out for this arch")
    vectors = task_vectors(bench)
    model = copy.deepcopy(bench.tower).float().eval()
    model.load_state_dict(vectors.state(vectors.uniform(scaling)))
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(bench.seed)
    routers = []
    blocks: Any = model.get_submodule("transformer.resblocks")
    for index, block in enumerate(blocks):
        router = Router(
            block.mlp.c_fc.in_features, vectors.n, layers=router_layers, init=init, generator=generator
        )
        routers.append(router)
        block.mlp = WeightEnsemblingMLP.of(
            block.mlp, vectors, f"transformer.resblocks.{index}.mlp", router, routing
        )
    model.to(next(bench.tower.parameters()).device)
    batches = task_batches(bench, batch_size)

    def losses() -> Iterable[torch.Tensor]:
        for images, head in next(batches):
            yield entropy(head_logits(model(images), head))

    minimise(
        "wemoe",
        [parameter for router in routers for parameter in router.parameters()],
        lambda: backward_each(losses()),
        steps=steps,
        learning_rate=learning_rate,
        annealed=True,
    )
    granularity = "batch-mean" if routing == "batch" else "sample"
    return MergedModels.shared(model.requires_grad_(False), bench, granularity)
