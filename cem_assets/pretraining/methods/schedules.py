"""Learning rates over a run, as pure functions of the step, so that a resumed run needs no state for them.

Source: MoCo v2 lowers its rate at milestones, SwAV follows half a cosine step by step, and CytoImageNet keeps its rate.
"""

import math

from cem_assets.pretraining.methods.params import MethodParams, MoCoParams, SwAVParams


def step_decay(lr: float, epoch: int, milestones: tuple[int, ...], decay: float) -> float:
    """Multiply a rate by `decay` for each milestone that is at most `epoch`, which counts from 0."""
    return float(lr * decay ** sum(epoch >= milestone for milestone in milestones))


def cosine(lr: float, final_lr: float, step: int, num_steps: int) -> float:
    """Return a rate that falls from `lr` at step 0 to `final_lr` at step `num_steps` and stays there."""
    share = min(step, num_steps) / num_steps
    return final_lr + 0.5 * (lr - final_lr) * (1 + math.cos(math.pi * share))


def learning_rate(params: MethodParams, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of one step, which all parameter groups share.

    Args:
        step: Number of optimiser steps made before, since the start of the whole run.
        steps_per_epoch: Number of optimiser steps of an epoch.

    Raises:
        ValueError: `step` is negative, or `steps_per_epoch` is not positive.
    """
    if step < 0 or steps_per_epoch < 1:
        raise ValueError(f"step is {step} and steps_per_epoch {steps_per_epoch}; expected at least 0 and 1.")
    if isinstance(params, MoCoParams):
        return step_decay(params.lr, step // steps_per_epoch, params.milestones, params.lr_decay)
    if isinstance(params, SwAVParams):
        return cosine(params.lr, params.final_lr, step, params.epochs * steps_per_epoch)
    return params.lr
