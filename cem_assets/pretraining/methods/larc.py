"""LARC: SGD whose step in every layer is in proportion to the layer's weights.

Source: You, Gitman and Ginsburg, arXiv:1708.03888: the rate of a layer is eta |w| / (|g| + beta |w|). timm
(Apache-2.0) has the rule in its `Lars`; it is too little code for a dependency, and this one steps through
torch's fused SGD. Scheduling the rate is `cem_assets.pretraining.methods.schedules`.
"""

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import nn

_EPSILON = 1e-8


class LARC(torch.optim.SGD):
    """SGD with momentum on gradients that are scaled layer by layer.

    With weights w, gradient g (after weight decay: g + decay w) and trust t, a parameter's gradient becomes
    r (g + decay w) with r = t |w| / (|g| + decay |w|); with clipping r is at most 1 after division by the
    learning rate, so that the step never exceeds that of SGD. A parameter whose weights or gradient are all
    zero (a fresh bias) is stepped as SGD without decay would. Parameters without a gradient do not move.

    Args:
        params: Parameters or groups of them.
        lr: Learning rate.
        momentum: Of SGD, as torch defines it: the rate is outside of the running sum.
        weight_decay: L2 penalty, taken inside the rule and not by SGD.
        trust: Called eta in the paper.
        is_clipped: Clip (the C of LARC) or scale (LARS, and SwAV's choice).
        fused: One kernel for the step; None for torch's choice.

    Differs from the paper in the place of the learning rate in the momentum, as SwAV does.
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
            closure: Computes the loss and the gradients anew; most callers need none.

        Returns:
            What `closure` returned.
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
    # Lists of tensors at once: a ResNet50 has 161 of them, and one launch each would show on a GPU.
    weight_norms = torch.stack(torch._foreach_norm(weights))
    gradient_norms = torch.stack(torch._foreach_norm(gradients))
    rate = group["trust"] * weight_norms / (gradient_norms + decay * weight_norms + _EPSILON)
    if group["is_clipped"]:
        rate = (rate / group["lr"]).clamp(max=1)
    is_scaled = (weight_norms > 0) & (gradient_norms > 0)
    # Decided on the device, without waiting for it: unscaled ones are multiplied by 1 and decay by 0.
    rates = torch.where(is_scaled, rate, 1.0).unbind()
    decays = torch.where(is_scaled, rate * decay, 0.0).unbind()
    torch._foreach_mul_(gradients, rates)
    torch._foreach_add_(gradients, torch._foreach_mul(weights, decays))
