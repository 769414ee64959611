"""Learning rates over a run, as pure functions of the step: a resumed run needs no state for them.

Source: MoCo v2 steps down at milestones, SwAV falls with a half cosine in every step, CytoImageNet stays.
"""

import math

from cem_assets.errors import DataError
from cem_assets.pretraining.methods.params import MethodParams, MoCoParams, SwAVParams


def step_decay(lr: float, epoch: int, milestones: tuple[int, ...], decay: float) -> float:
    """Multiply a rate by `decay` at each milestone reached; an epoch counted from 0 reaches its own number."""
    return float(lr * decay ** sum(epoch >= milestone for milestone in milestones))


def cosine(lr: float, final_lr: float, step: int, num_steps: int) -> float:
    """Fall from `lr` at step 0 towards `final_lr`, which step `num_steps` would have; later steps stay there."""
    share = min(step, num_steps) / num_steps
    return final_lr + 0.5 * (lr - final_lr) * (1 + math.cos(math.pi * share))


def learning_rate(params: MethodParams, step: int, steps_per_epoch: int) -> float:
    """Give the learning rate of one step.

    Args:
        params: Of the method.
        step: Optimiser steps made before, since the start of the whole run.
        steps_per_epoch: Optimiser steps of an epoch.

    Returns:
        The rate of every parameter group.

    Raises:
        DataError: A count makes no sense.
    """
    if step < 0 or steps_per_epoch < 1:
        raise DataError(f"step is {step} and steps_per_epoch {steps_per_epoch}; expected at least 0 and 1.")
    if isinstance(params, MoCoParams):
        return step_decay(params.lr, step // steps_per_epoch, params.milestones, params.lr_decay)
    if isinstance(params, SwAVParams):
        return cosine(params.lr, params.final_lr, step, params.epochs * steps_per_epoch)
    return params.lr
