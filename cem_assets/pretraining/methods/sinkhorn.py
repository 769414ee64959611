"""Sinkhorn-Knopp: features shared out evenly among prototypes, over all ranks.

Source: Caron et al., SwAV, arXiv:2006.09882, section 3.1 and algorithm 1. What is done with the assignments is
`cem_assets.pretraining.methods.swav`.
"""

import torch
from torch import Tensor

from cem_assets.pretraining.training.distributed import max_over_ranks, sum_over_ranks, world_size


@torch.no_grad()
def assignments(scores: Tensor, epsilon: float, num_iterations: int) -> Tensor:
    """Assign every sample to prototypes so that all prototypes get about the same share of all samples.

    Args:
        scores: float32 (n, k), similarities of this rank's samples and the prototypes, in -1..1; every rank calls
            with the same n and k.
        epsilon: Smoothness; the smaller, the closer to one prototype each. Below 0.025, float32 is too narrow.
        num_iterations: Rounds of normalising prototypes, then samples.

    Returns:
        float32 (n, k), without a gradient. Rows sum to 1; columns, over all ranks, tend to n_all / k.

    The samples of all ranks are one problem: the result of a row does not depend on which rank holds it. Differs
    from the paper's code only by subtracting the largest score first, a factor that cancels out.
    """
    num_all, num_prototypes = len(scores) * world_size(), scores.shape[1]
    shares = torch.exp((scores.detach().float() - max_over_ranks(scores.detach().float().amax())) / epsilon)
    for _ in range(num_iterations):
        shares = shares / (sum_over_ranks(shares.sum(dim=0)) * num_prototypes)
        shares = shares / (shares.sum(dim=1, keepdim=True) * num_all)
    return shares * num_all
