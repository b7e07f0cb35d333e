"""Does a fused model make a better start for a new task? The claim of arXiv 2204.03044, on the toy suite.

- Command: `neulig run fusing`, and `neulig run fusing --name fusing_decay --finetune.weight_decay 0.1` for
  the other half of the claim; a table of both: `neulig report fusing fusing_decay`.
- Cost and numbers: being measured.

Five starts for the same target tasks: the pre-trained origin, the mean of its experts of four other tasks
(fused), and single experts of these (intertraining). The text tower, and so the head, is the same everywhere.
The row `expert` is the target's accuracy after fine-tuning, `zeroshot` that of the start.
"""

from neulig_ray.cli import launch
from neulig_ray.config import Experiment, Finetune

experiment = Experiment(
    name="fusing",
    archs=("tiny-vit", "tiny-rn"),
    origins=(
        "seed-0",
        "fused=fuse:seed-0:count+letters+signs+textures",
        "after-letters=fuse:seed-0:letters",
        "after-signs=fuse:seed-0:signs",
        "after-textures=fuse:seed-0:textures",
    ),
    tasks=("digits", "shapes", "mnist-5k"),
    n=(2,),
    methods=("zeroshot", "expert"),
    finetune=Finetune(epochs=4, weight_decay=0.0),
)

if __name__ == "__main__":
    launch(experiment)
