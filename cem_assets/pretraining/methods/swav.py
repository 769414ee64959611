"""SwAV: the network learns to predict from one view the prototype that another view of the same image is assigned to.

Source: Caron et al., arXiv:2006.09882. The MIT-licensed lightly has the loss and a Sinkhorn, but would bring PyTorch
Lightning; both are as short here, and are tested against the definition, over ranks and with the queue. The optimiser is in
`cem_assets.pretraining.methods.larc`, the assignment in `cem_assets.pretraining.methods.sinkhorn`.

As in the paper's code, BatchNorm takes its statistics over all ranks, over views of one size in the encoder and over all
views in the head. The queue holds the features of all ranks and is the same on each of them, so that one checkpoint serves
all; each rank scores its own part of it. Unlike there, prototypes are frozen for one epoch at most, because on a small
dataset the published number of iterations would be the whole run.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from cem_assets.encoders import build_encoder, num_features
from cem_assets.errors import DataError
from cem_assets.pretraining.distributed import gather_from_ranks, rank, world_size
from cem_assets.pretraining.methods.base import Method, built_with_seed, feature_std, unit_rows
from cem_assets.pretraining.methods.batchnorm import replace_batchnorm, synchronized
from cem_assets.pretraining.methods.feature_queue import FeatureQueue
from cem_assets.pretraining.methods.larc import LARC
from cem_assets.pretraining.methods.params import SwAVParams, queue_length
from cem_assets.pretraining.methods.sinkhorn import assignments


class SwAV(Method):
    """SwAV with one input channel. Views of the first size get assignments, and all views predict them.

    Attributes:
        backbone, projection_head, prototypes: The network; the prototypes are rows of length 1.
        num_assigned: Number of views that get assignments.
        freeze_iterations: Number of steps at the start in which the prototypes do not change.
        queue: Features (rows, views with assignments, dim); None where the parameters ask for no queue.
    """

    params: SwAVParams

    def __init__(self, params: SwAVParams, arch: str, num_samples: int, num_classes: int = 0) -> None:
        super().__init__(params, arch, num_samples, num_classes)
        num_rows = queue_length(params.queue, params.batch_size, num_samples)
        if params.batch_size % world_size():
            raise DataError(
                f"a batch of {params.batch_size} cannot be divided evenly among {world_size()} ranks; "
                "set batch_size to a multiple of the number of ranks."
            )
        self.num_assigned = params.crops[0].num
        self.freeze_iterations = min(params.freeze_iterations, num_samples // params.batch_size)
        self.backbone = built_with_seed(params.seed, build_encoder, arch, in_channels=1)
        head = built_with_seed(params.seed + 1, _head, num_features(arch), params.hidden, params.dim)
        self.prototypes = built_with_seed(params.seed + 2, nn.Linear, params.dim, params.prototypes, bias=False)
        self.projection_head = head
        replace_batchnorm(self.backbone, synchronized)
        replace_batchnorm(self.projection_head, synchronized)
        self.queue = FeatureQueue(num_rows, self.num_assigned, params.dim) if num_rows else None
        self._pending: Tensor | None = None
        self._normalise_prototypes()

    @property
    def encoder(self) -> nn.Module:
        """The backbone, without the head and the prototypes."""
        return self.backbone

    def compute_loss(
        self, views: list[Tensor], labels: Tensor | None, step: int, epoch: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the swapped-prediction loss.

        Args:
            views: As many views as `params.crops` has, each (n, 1, s, s); those with assignments come first.
            step: The prototypes get no gradient while it is below `freeze_iterations`.
            epoch: The queue fills from `queue_start_epoch` on, and is used once it is full.

        Returns:
            The loss, and the indicators `feature_std` of the first views, `prototype_entropy` (of the mean prediction; 1 when
            all prototypes are used equally), `prediction_entropy` (mean over images; once it is as large as
            `prototype_entropy`, all images get the same prediction, which is a collapse) and `prototypes_used` (the share of
            prototypes that come first for some image of this rank's batch).

        Raises:
            ValueError: The number of views is wrong, or they do not belong to one batch.
        """
        self.check_views(views)
        num = len(views[0])
        features = unit_rows(self.projection_head(self._encode(views)))
        weight = self.prototypes.weight.detach() if step < self.freeze_iterations else self.prototypes.weight
        with torch.autocast(views[0].device.type, enabled=False):
            scores = (features @ weight.T).view(len(views), num, -1)
            targets = self._assign(scores, weight.detach())
            log_predictions = functional.log_softmax(scores / self.params.temperature, dim=2)
            loss = swapped_prediction(targets, log_predictions)
        if self.queue is not None and epoch >= self.params.queue_start_epoch:
            assigned = features.detach()[: self.num_assigned * num].view(self.num_assigned, num, -1)
            self._pending = torch.cat(gather_from_ranks(assigned.transpose(0, 1)))
        return loss, {"feature_std": feature_std(features[:num]), **_usage(log_predictions.detach()[0])}

    def _encode(self, views: list[Tensor]) -> Tensor:
        """Encode all views, with one forward pass for each size; the rows are in the order of the views."""
        by_size: dict[int, list[int]] = {}
        for number, view in enumerate(views):
            by_size.setdefault(view.shape[-1], []).append(number)
        encoded: dict[int, Tensor] = {}
        for numbers in by_size.values():
            outputs = self.backbone(torch.cat([views[number] for number in numbers]))
            encoded |= dict(zip(numbers, outputs.chunk(len(numbers)), strict=True))
        return torch.cat([encoded[number] for number in range(len(views))])

    @torch.no_grad()
    def _assign(self, scores: Tensor, weight: Tensor) -> Tensor:
        """Assign the first views to prototypes, over all ranks and the queue.

        Returns:
            float32 (views with assignments, n, prototypes).
        """
        num, queue = scores.shape[1], self.queue
        targets = []
        for view in range(self.num_assigned):
            rows = scores[view].detach()
            if queue is not None and queue.is_full:
                share = len(queue) // world_size()
                older = queue.rows[rank() * share : (rank() + 1) * share, view]
                rows = torch.cat([older @ weight.T, rows])
            targets.append(assignments(rows, self.params.epsilon, self.params.sinkhorn_iterations)[-num:])
        return torch.stack(targets)

    @torch.no_grad()
    def _normalise_prototypes(self) -> None:
        self.prototypes.weight.copy_(unit_rows(self.prototypes.weight))

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Scale the prototypes back to length 1, and put the batch's features into the queue."""
        if step >= self.freeze_iterations:
            self._normalise_prototypes()
        if self._pending is not None and self.queue is not None:
            self.queue.push(self._pending)
            self._pending = None

    def build_optimizer(self, *, fused: bool | None = None) -> torch.optim.Optimizer:
        """Make LARC over all parameters."""
        p = self.params
        return LARC(self.parameters(), p.lr, p.momentum, p.weight_decay, p.larc_trust, p.larc_clip, fused)


def swapped_prediction(targets: Tensor, log_predictions: Tensor) -> Tensor:
    """Average the cross-entropies of every assignment with the predictions of all other views.

    Args:
        targets: float32 (a, n, k), the assignments of the first a views, without gradient.
        log_predictions: float32 (v, n, k), the logarithms of the predictions of all v views.

    Returns:
        float32 (): the mean over assignments of the mean over the v - 1 other views.
    """
    num_views, loss = len(log_predictions), log_predictions.new_zeros(())
    for number, target in enumerate(targets):
        crossed = -(target * log_predictions).sum(dim=2).mean(dim=1)
        loss = loss + (crossed.sum() - crossed[number]) / (num_views - 1)
    return loss / len(targets)


def _usage(log_predictions: Tensor) -> dict[str, Tensor]:
    predictions = log_predictions.exp()
    num = predictions.shape[1]
    largest = torch.log(torch.tensor(float(num), device=predictions.device))
    mean = predictions.mean(dim=0)
    counts = torch.zeros(num, device=predictions.device).scatter_(0, predictions.argmax(dim=1), 1.0)
    return {
        "prototype_entropy": torch.special.entr(mean).sum() / largest,
        "prediction_entropy": torch.special.entr(predictions).sum(dim=1).mean() / largest,
        "prototypes_used": counts.mean(),
    }


def _head(width: int, hidden: int, dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, dim))
