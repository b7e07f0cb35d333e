"""Diagonals of Fisher information matrices."""

from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.func import functional_call, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from neulig_ray.errors import InputError

Readout = Callable[[torch.Tensor], torch.Tensor]
Diagonal = dict[str, torch.Tensor]
_BUDGET = 1 << 28  # bytes of the gradients that are held at once; one gradient is, whatever its size


def exact_fisher(tower: nn.Module, batches: Iterable[torch.Tensor], readout: Readout) -> Diagonal:
    """Parameter name -> F = mean over x of E_{c ~ p(c|x)} (d log p(c|x) / d theta)^2, float32, on the CPU.

    `readout` gives logits (B, C) of what the tower, in eval mode, makes of a batch. The expectation is over
    all C labels, with a gradient for each image and label; the labels come from the model.
    Raises InputError where there is no image.
    """
    parameters = {name: p.detach() for name, p in tower.named_parameters()}
    buffers = dict(tower.named_buffers())
    device = next(iter(parameters.values())).device
    size = 4 * sum(p.numel() for p in parameters.values())
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    rows, seen = 1, 0

    def squares(pixels: torch.Tensor) -> Diagonal:
        """The sum over the labels, of one image."""

        def logits_of(given: dict[str, torch.Tensor]) -> torch.Tensor:
            return readout(functional_call(tower, (given, buffers), (pixels[None],)))[0]

        logits, pull, *_ = vjp(logits_of, parameters)
        p = logits.softmax(0)
        # sqrt(p_c) times the gradient of log p_c for the logits: a row for each label c.
        directions = p.sqrt()[:, None] * (torch.eye(len(p), device=device) - p)
        found = {name: torch.zeros_like(p) for name, p in parameters.items()}
        for some in torch.split(directions, rows):
            (gradients,) = vmap(pull)(some)
            found = {name: sums + gradients[name].square().sum(0) for name, sums in found.items()}
        return found

    for pixels in batches:
        if not seen:
            with torch.no_grad():
                classes = readout(tower(pixels[:1].to(device))).shape[-1]
            rows = min(classes, max(1, _BUDGET // size))
        for some_pixels in torch.split(pixels.to(device), max(1, _BUDGET // (size * rows))):
            with sdpa_kernel(SDPBackend.MATH):  # the others have no rule for vmap
                found = vmap(squares)(some_pixels)
            for name, sums in found.items():
                total[name] += sums.sum(0)
        seen += len(pixels)
    return _mean(total, seen)


def batch_fisher(tower: nn.Module, batches: Iterable[torch.Tensor], readout: Readout) -> Diagonal:
    """What MergeLM takes for it: squares of whole batches' gradients, over the number of images.

    Of each batch, the gradient of sum_x sum_c sqrt(p(c|x)) log p(c|x), the root held constant: products of
    different images and labels stay in the square, so that it depends on the batch size.
    """
    parameters = dict(tower.named_parameters())
    device = next(iter(parameters.values())).device
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    seen = 0
    for pixels in batches:
        with torch.enable_grad():
            log_p = readout(tower(pixels.to(device))).log_softmax(-1)
            objective = ((log_p / 2).exp().detach() * log_p).sum()
            gradients = torch.autograd.grad(objective, list(parameters.values()), allow_unused=True)
        for name, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                total[name] += gradient.square()
        seen += len(pixels)
    return _mean(total, seen)


def _mean(total: Diagonal, seen: int) -> Diagonal:
    if not seen:
        raise InputError("no image to measure the Fisher information on: give at least one")
    return {name: (sums / seen).detach().cpu() for name, sums in total.items()}
