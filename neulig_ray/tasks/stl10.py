"""STL-10: 96x96 photographs of ten things; its labelled images only."""

from neulig_ray.tasks.reading.torchvision import TRAIN_TEST, torchvision_task

stl10 = torchvision_task(
    "stl10",
    "STL10",
    TRAIN_TEST,
    templates=("a photo of a {}.", "a photo of the {}."),
    source="torchvision STL10, labelled images",
    place="stl10_binary/ (train_X.bin, train_y.bin, test_X.bin, test_y.bin, unlabeled_X.bin, "
    "class_names.txt, fold_indices.txt)",
    native=(96, 96),
    num_images={"train": 5000, "test": 8000},
    download_mb=2640,
    paper=True,
    held_out=1600,  # there are more test images than training images
)
