"""House numbers (SVHN): the digit in the middle of a 32x32 photograph; without the split `extra`."""

from neulig_ray.tasks.reading.torchvision import TRAIN_TEST, torchvision_task

svhn = torchvision_task(
    "svhn",
    "SVHN",
    TRAIN_TEST,
    templates=('a photo of the number: "{}".',),
    source="torchvision SVHN, without the extra images",
    place="train_32x32.mat and test_32x32.mat",
    class_names=tuple("0123456789"),
    native=(32, 32),
    num_images={"train": 73257, "test": 26032},
    download_mb=246,
    paper=True,
)
