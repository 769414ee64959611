"""Sinkhorn-Knopp: assigns the features of all ranks evenly to prototypes.

Source: Caron et al., SwAV, arXiv:2006.09882, section 3.1 and algorithm 1. `cem_assets.pretraining.methods.swav` uses the
assignments.
"""

import torch
from torch import Tensor

from cem_assets.pretraining.distributed import max_over_ranks, sum_over_ranks, world_size


@torch.no_grad()
def assignments(scores: Tensor, epsilon: float, num_iterations: int) -> Tensor:
    """Assign every sample to prototypes so that all prototypes get about the same share of all samples.

    Args:
        scores: float32 (n, k), similarities of this rank's samples and the prototypes, between -1 and 1. Every rank calls
            this with the same n and k.
        epsilon: Smoothness of the assignments; the smaller it is, the closer each sample is to one prototype. Below 0.025
            the range of float32 is too small.
        num_iterations: Number of rounds, each of which normalises the prototypes and then the samples.

    Returns:
        float32 (n, k), without a gradient. Rows sum to 1; columns, summed over all ranks, tend to n_all / k.

    The samples of all ranks are one problem: the result of a row does not depend on the rank that holds it. The only
    difference from the paper's code is that the largest score is subtracted first, a factor that cancels out.
    """
    num_all, num_prototypes = len(scores) * world_size(), scores.shape[1]
    shares = torch.exp((scores.detach().float() - max_over_ranks(scores.detach().float().amax())) / epsilon)
    for _ in range(num_iterations):
        shares = shares / (sum_over_ranks(shares.sum(dim=0)) * num_prototypes)
        shares = shares / (shares.sum(dim=1, keepdim=True) * num_all)
    return shares * num_all
