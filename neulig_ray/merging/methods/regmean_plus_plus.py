"""RegMean++: RegMean whose inputs come from the layers that are merged already."""

import copy

import torch

from neulig_ray.errors import InputError
from neulig_ray.merging import trained
from neulig_ray.merging.blocks import blocks_in_order
from neulig_ray.merging.engine import merge_with
from neulig_ray.merging.grams import TRANSPOSED, gram_key, measure_grams
from neulig_ray.merging.inputs import MergeInputs, batches
from neulig_ray.merging.methods.average import average
from neulig_ray.merging.regression import BATCH, Examples, OffDiagonal, regress


@trained("regmean-plus-plus", paper="arXiv 2508.03121", needs=("train images",), split="train")
def regmean_plus_plus(
    bench: MergeInputs, *, examples: Examples = 256, offdiagonal: OffDiagonal = 0.9
) -> dict[str, torch.Tensor]:
    """RegMean block by block, each expert's block on what the merged blocks before it give for its images.

    The blocks are a transformer's layers or a ResNet's residual blocks, and what stands before and after them
    (`merging.blocks`), in the order in which the network computes. The linear maps of one block are regressed
    together, on the inputs that they have in expert t's own block behind the merged ones; as in RegMean, all
    that is no linear map is averaged.

    Cost: for each block, each expert sees its `examples` images once, as far as that block: with L blocks,
    about L / 2 times the passes of RegMean.
    """
    merged = merge_with(average, bench.experts)
    model = copy.deepcopy(bench.tower).float().eval()
    for label, images in bench.images.items():
        if not len(images):
            raise InputError(
                f"regmean-plus-plus: no train image of {label!r}: leave its expert out, or give some"
            )
    glance = bench.images[bench.labels[0]].pixels(torch.tensor([0]))
    known = measure_grams(model, [glance])
    done: set[str] = set()
    for block in blocks_in_order(model, glance):
        keys = {name: key for name in block if (key := gram_key(known, name)) is not None}
        grams = []
        for label, state in bench.experts.items() if keys else ():
            model.load_state_dict({name: (merged if name in done else state)[name] for name in merged})
            own = batches(bench.images[label], BATCH, count=examples, seed=bench.seed)
            grams.append(measure_grams(model, own, only=keys))
        for name, key in keys.items():
            tensors = [state[name] for state in bench.experts.values()]
            inputs = (found[key] for found in grams)
            merged[name] = regress(tensors, inputs, offdiagonal, transposed=key.endswith(TRANSPOSED))
        done.update(block)
    return merged
