"""Does a fused model make a better start for a new task? The claim of arXiv 2204.03044, on the toy suite.

- Command: `neulig run fusing`, and `neulig run fusing --name fusing_decay --finetune.weight_decay 0.1` for
  the other half of the claim; a table of both: `neulig report fusing fusing_decay`.
- Cost: 9 minutes on 2 CPU cores, and as long again with weight decay, which is also the sources'.
- Expected (2026-11-22, 2 x86-64 cores, no GPU; one seed; accuracy on test after fine-tuning, mean of the
  three target tasks; in brackets with weight decay 0.1):

| start | tiny-vit | tiny-rn |
|---|---|---|
| origin seed-0 | 78.8 (78.9) | 90.8 (91.2) |
| fused, of four experts | 80.9 (80.3) | 92.6 (92.4) |
| expert of letters | 82.4 (81.9) | 92.4 (92.6) |
| expert of signs | 77.5 (77.5) | 91.4 (91.6) |
| expert of textures | 76.4 (76.1) | 91.4 (91.1) |

Five starts for the same target tasks: the pre-trained origin, the mean of its experts of four other tasks
(fused), and single experts of these (intertraining). The text tower, and so the head, is the same everywhere.
The row `expert` is the target's accuracy after fine-tuning, `zeroshot` that of the start.

The claim holds here in its weaker form: the fused start is 1.2 to 2.1 points better than the origin, on both
archs, with weight decay or without, and better than a single expert taken at random; but the best single one
(letters, the nearest to digits) is as good or better. Without any fine-tuning the fused model is no better
than the origin. That weight decay takes a single expert's gain away but not the fused model's is not seen:
it moves no mean by more than 0.6.
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
