"""German road signs, 43 classes, 15 to 250 pixels large.

Their names are CLIP's, with its slips of the pen ("horizonal", "bicyle"): published heads are made of them.
"""

from pathlib import Path
from typing import Any

from neulig_ray.tasks._names import Names, read_names
from neulig_ray.tasks.reading.torchvision import TRAIN_TEST, torchvision_task


def _folders(dataset: Any) -> list[str] | None:
    """torchvision numbers the training folders that it finds: one that is missing would shift all labels."""
    folder = Path(dataset._target_folder)
    return sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.name == "Training" else None


gtsrb = torchvision_task(
    "gtsrb",
    "GTSRB",
    TRAIN_TEST,
    templates=tuple(
        f'a {kind} photo of a "{{}}" traffic sign.' for kind in ("zoomed in", "centered", "close up")
    ),
    source="torchvision GTSRB",
    place="gtsrb/GTSRB/Training/00000..00042/*.ppm, gtsrb/GTSRB/Final_Test/Images/*.ppm and "
    "gtsrb/GT-final_test.csv",
    class_names=Names(read_names("gtsrb").spoken, tuple(f"{label:05d}" for label in range(43))),
    num_images={"train": 26640, "test": 12630},
    download_mb=277,
    paper=True,
    carried=_folders,
)
