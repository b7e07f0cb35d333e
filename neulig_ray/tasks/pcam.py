"""PatchCamelyon: does a 96x96 patch of lymph node tissue hold a tumour in its middle? Needs h5py."""

from typing import Any

from neulig_ray.tasks.reading.torchvision import TRAIN_VAL_TEST, torchvision_task


def _labels(dataset: Any) -> Any:
    with dataset.h5py.File(dataset._base_folder / dataset._FILES[dataset._split]["targets"][0]) as file:
        return file["y"][:, 0, 0, 0]


pcam = torchvision_task(
    "pcam",
    "PCAM",
    TRAIN_VAL_TEST,
    templates=("this is a photo of {}",),
    source="torchvision PCAM (needs h5py; gdown to download)",
    place="pcam/camelyonpatch_level_2_split_{train,valid,test}_{x,y}.h5",
    class_names=("lymph node", "lymph node containing metastatic tumor tissue"),
    native=(96, 96),
    num_images={"train": 262144, "val": 32768, "test": 32768},
    download_mb=7700,
    # Overlapping patches were left in the training part: the same pixels do occur more than once.
    most_shared=1.0,
    labels=_labels,
)
