"""CIFAR-10 and CIFAR-100: 32x32 photographs of things."""

from neulig_ray.tasks.reading.torchvision import TRAIN_FLAG, torchvision_task

_KINDS = ("", "blurry ", "black and white ", "low contrast ", "high contrast ", "bad ", "good ")
_TEMPLATES = tuple(
    template
    for article in ("a", "the")
    for template in (
        *(f"a {kind}photo of {article} {{}}." for kind in _KINDS),
        f"a photo of {article} small {{}}.",
        f"a photo of {article} big {{}}.",
    )
)

cifar10 = torchvision_task(
    "cifar10",
    "CIFAR10",
    TRAIN_FLAG,
    templates=_TEMPLATES,
    source="torchvision CIFAR10",
    place="cifar-10-batches-py/ (data_batch_1..5, test_batch, batches.meta)",
    native=(32, 32),
    num_images={"train": 50000, "test": 10000},
    download_mb=170,
    paper=True,
)
cifar100 = torchvision_task(
    "cifar100",
    "CIFAR100",
    TRAIN_FLAG,
    templates=_TEMPLATES,
    source="torchvision CIFAR100, fine labels",
    place="cifar-100-python/ (train, test, meta)",
    native=(32, 32),
    num_images={"train": 50000, "test": 10000},
    download_mb=169,
    paper=True,
)
