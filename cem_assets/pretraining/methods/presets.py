"""Presets of the pretraining methods: the numbers of the papers, and other presets as differences from them.

- `paper`: the published numbers of MoCo v2 on CEM500K, SwAV on CEM1.5M (volume-em/cem-dataset) and EfficientNetB0 on
  CytoImageNet. The batch size is that of the whole node.
- `single_gpu`: the same recipe on one large GPU, in bfloat16 and with larger batches. MoCo's learning rate grows with the
  batch; SwAV's stays, because its authors use 0.6 with a batch of 256; Adam's grows with the square root of the batch.
  Prototypes are frozen for as many images as in `paper`, the queue starts at the same share of the epochs, and MoCo's
  BatchNorm groups keep 32 images.
- `smoke`: learns something from a few hundred images on a CPU within seconds, for tests and trials. Views are small, and
  queue, momentum and learning rates suit tens of steps instead of thousands: MoCo has neither SGD's momentum nor random
  first negatives, because both push all features together in the first steps.
"""

from typing import Any

_MOCO: dict[str, Any] = {
    "epochs": 200,
    "batch_size": 128,
    "lr": 0.015,
    "weight_decay": 0.0001,
    "dtype": "float32",
    "seed": 1447,
    "weight_gamma": 0.5,
    "mean": 0.57287,
    "std": 0.12741,
    "crops": ({"num": 2, "size_px": 224, "scale": (0.2, 1.0)},),
    "momentum": 0.9,
    "milestones": (120, 160),
    "lr_decay": 0.1,
    "dim": 128,
    "queue": 65536,
    "encoder_momentum": 0.999,
    "temperature": 0.2,
    "first_negatives": "random",
    "num_batch_splits": 4,
}
_SWAV: dict[str, Any] = {
    "epochs": 200,
    "batch_size": 64,
    "lr": 0.6,
    "weight_decay": 1e-06,
    "dtype": "float32",
    "seed": 1447,
    "weight_gamma": 0.5,
    "mean": 0.57571,
    "std": 0.12765,
    "crops": ({"num": 2, "size_px": 224, "scale": (0.14, 1.0)}, {"num": 6, "size_px": 96, "scale": (0.05, 0.14)}),
    "final_lr": 0.0006,
    "momentum": 0.9,
    "larc_trust": 0.001,
    "larc_clip": False,
    "dim": 128,
    "hidden": 2048,
    "prototypes": 3000,
    "freeze_iterations": 5005,
    "temperature": 0.1,
    "epsilon": 0.05,
    "sinkhorn_iterations": 3,
    "queue": 3840,
    "queue_start_epoch": 15,
}
_SUPERVISED: dict[str, Any] = {
    "epochs": 24,
    "batch_size": 64,
    "lr": 0.001,
    "weight_decay": 0.0,
    "dtype": "float32",
    "seed": 1447,
    "weight_gamma": 0.0,
    "mean": 0.0,
    "std": 1.0,
    "crops": ({"num": 1, "size_px": 224, "scale": (1.0, 1.0)},),
    "dropout": 0.2,
    "validation_share": 0.1,
}

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "moco": {
        "paper": _MOCO,
        "single_gpu": _MOCO
        | {
            "epochs": 100,
            "batch_size": 256,
            "lr": 0.03,
            "dtype": "bfloat16",
            "milestones": (60, 80),
            "num_batch_splits": 8,
        },
        "smoke": _MOCO
        | {
            "epochs": 24,
            "batch_size": 32,
            "lr": 0.2,
            "crops": ({"num": 2, "size_px": 32, "scale": (0.6, 1.0)},),
            "momentum": 0.0,
            "milestones": (20, 22),
            "dim": 32,
            "queue": 64,
            "encoder_momentum": 0.99,
            "temperature": 0.1,
            "first_negatives": "none",
            "num_batch_splits": 2,
        },
    },
    "swav": {
        "paper": _SWAV,
        "single_gpu": _SWAV
        | {
            "epochs": 100,
            "batch_size": 256,
            "dtype": "bfloat16",
            "freeze_iterations": 1251,
            "queue_start_epoch": 8,
        },
        "smoke": _SWAV
        | {
            "epochs": 10,
            "batch_size": 32,
            "lr": 1.0,
            "crops": ({"num": 2, "size_px": 32, "scale": (0.14, 1.0)}, {"num": 2, "size_px": 16, "scale": (0.05, 0.14)}),
            "dim": 32,
            "hidden": 128,
            "prototypes": 30,
            "freeze_iterations": 8,
            "queue": 96,
            "queue_start_epoch": 1,
        },
    },
    "supervised": {
        "paper": _SUPERVISED,
        "single_gpu": _SUPERVISED
        | {
            "batch_size": 256,
            "lr": 0.002,
            "dtype": "bfloat16",
        },
        "smoke": _SUPERVISED
        | {
            "epochs": 5,
            "batch_size": 32,
            "crops": ({"num": 1, "size_px": 32, "scale": (1.0, 1.0)},),
        },
    },
}
