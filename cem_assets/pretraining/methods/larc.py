"""LARC: SGD whose step in every layer is proportional to the norm of the layer's weights.

Source: You, Gitman and Ginsburg, arXiv:1708.03888: the rate of a layer is eta |w| / (|g| + beta |w|). The Apache-licensed
timm has the rule in its `Lars`; it is too little code for a dependency, and this one steps through torch's fused SGD.
`cem_assets.pretraining.methods.schedules` gives the learning rate of each step.
"""

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import nn

_EPSILON = 1e-8


class LARC(torch.optim.SGD):
    """SGD with momentum on gradients that are scaled layer by layer.

    With weights w, gradient g (after weight decay: g + decay w) and trust t, a parameter's gradient becomes
    r (g + decay w) with r = t |w| / (|g| + decay |w|). With clipping, r is divided by the learning rate and is at most 1, so
    that the step never exceeds that of SGD. A parameter whose weights or gradient are all zero, such as a new bias, is
    stepped as by SGD without decay. Parameters without a gradient do not change.

    Args:
        momentum: Momentum of SGD as torch defines it: the learning rate is outside of the running sum.
        weight_decay: L2 penalty, which is applied inside the rule and not by SGD.
        trust: The paper calls it eta.
        is_clipped: True clips the rate (the C of LARC); False scales it, as LARS and SwAV do.
        fused: True runs the step as one kernel; None lets torch choose.

    It differs from the paper in the place of the learning rate in the momentum, as SwAV's code does.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
        is_clipped: bool = False,
        fused: bool | None = None,
    ) -> None:
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=0.0, fused=fused)
        for group in self.param_groups:
            group.update(larc_weight_decay=weight_decay, trust=trust, is_clipped=is_clipped)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Scale all gradients in place, then make the step.

        Args:
            closure: Computes the loss and the gradients again; None where the gradients are there already.

        Returns:
            The loss that `closure` returned, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            _scale_gradients(group)
        super().step()
        return loss


def _scale_gradients(group: dict[str, Any]) -> None:
    weights = [weight for weight in group["params"] if weight.grad is not None]
    if not weights:
        return
    gradients = [weight.grad for weight in weights]
    decay = group["larc_weight_decay"]
    # All tensors are handled at once: a ResNet50 has 161 of them, and one kernel launch for each would slow a GPU down.
    weight_norms = torch.stack(torch.foreach.norm(weights))
    gradient_norms = torch.stack(torch.foreach.norm(gradients))
    rate = group["trust"] * weight_norms / (gradient_norms + decay * weight_norms + _EPSILON)
    if group["is_clipped"]:
        rate = (rate / group["lr"]).clamp(max=1)
    is_scaled = (weight_norms > 0) & (gradient_norms > 0)
    # The choice is made on the device so that nothing waits for it: unscaled gradients are multiplied by 1, their decay by 0.
    torch.foreach.mul_(gradients, torch.where(is_scaled, rate, 1.0).unbind())
    torch.foreach.add_(gradients, torch.foreach.mul(weights, torch.where(is_scaled, rate * decay, 0.0).unbind()))
