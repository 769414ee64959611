"""MoCo v2: the network learns to find the key of a query among the keys of earlier batches.

Source: He et al., arXiv:1911.05722 (momentum encoder, queue, shuffled BatchNorm) and Chen et al.,
arXiv:2003.04297 (MLP head, temperature 0.2). The MIT-licensed lightly has the loss and the queue. Both are a few lines here;
ours gather over ranks, go into checkpoints and wrap around as a resumed run needs, without PyTorch Lightning.

**Why BatchNorm works in groups.** The query and the key of one image are in the same batch, and the negatives come from older
batches. If BatchNorm took its statistics over that batch, the query and its key would both carry its mark, and the network
could recognise the positive by the mark instead of the picture. The paper therefore takes statistics within each GPU and
shuffles the keys' images over GPUs first, so that a query and its key are normalised together with different images. On one
rank there is no other rank to shuffle with. Here the whole batch is cut into `num_batch_splits` groups, so that the same
holds for any number of ranks: queries are normalised within groups of successive rows, keys within groups of a permutation
drawn from seed and step. One rank with two groups computes the same losses, gradients and queue as two ranks with one group
each.
"""

import copy

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from cem_assets.encoders import build_encoder, num_features
from cem_assets.pretraining.distributed import gather_from_ranks, rank
from cem_assets.pretraining.methods.base import Method, built_with_seed, feature_std, unit_rows
from cem_assets.pretraining.methods.batchnorm import average_running_statistics, replace_batchnorm, split, splits_of_rank
from cem_assets.pretraining.methods.feature_queue import FeatureQueue
from cem_assets.pretraining.methods.params import MoCoParams, queue_length


class MoCo(Method):
    """MoCo v2 with one input channel.

    Attributes:
        encoder_q, head_q: Encoder and head of the queries, which the optimiser trains.
        encoder_k, head_k: Encoder and head of the keys, which follow those of the queries after every step, with
            `encoder_momentum`.
        queue: Keys of the latest batches of all ranks; it is the same on every rank.
    """

    params: MoCoParams

    def __init__(self, params: MoCoParams, arch: str, num_samples: int, num_classes: int = 0) -> None:
        super().__init__(params, arch, num_samples, num_classes)
        splits_of_rank(params.num_batch_splits)
        width = num_features(arch)
        self.encoder_q = built_with_seed(params.seed, build_encoder, arch, in_channels=1)
        self.head_q = built_with_seed(params.seed + 1, _head, width, params.dim)
        if params.num_batch_splits > 1:
            replace_batchnorm(self.encoder_q, split(params.num_batch_splits))
        self.encoder_k = copy.deepcopy(self.encoder_q).requires_grad_(False)
        self.head_k = copy.deepcopy(self.head_q).requires_grad_(False)
        self.queue = FeatureQueue(queue_length(params.queue, params.batch_size, num_samples), params.dim)
        # The queue starts with random directions, which are gone after as many steps as it holds batches.
        generator = torch.Generator().manual_seed(params.seed)
        self.queue.rows.copy_(unit_rows(torch.randn(self.queue.rows.shape, generator=generator)))
        self._pending: Tensor | None = None

    @property
    def encoder(self) -> nn.Module:
        """The query encoder, without its head."""
        return self.encoder_q

    def compute_loss(
        self, views: list[Tensor], labels: Tensor | None, step: int, epoch: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the contrastive loss; the first view is the query, the second one the key.

        Args:
            views: Two tensors (n, 1, s, s), where n is a multiple of the number of this rank's BatchNorm groups.
            step: It decides the permutation of the keys.

        Returns:
            The loss, and the indicators `feature_std` of the queries, `contrastive_accuracy` (the share of queries that are
            nearer to their own key than to any other), `positive_similarity` and `negative_similarity` (mean cosines).

        Raises:
            ValueError: There are not two views, or their shapes differ.
        """
        self.check_views(views)
        queries = unit_rows(self.head_q(self.encoder_q(views[0])))
        keys = self._keys_of_all(views[1], step)
        own = keys[rank() * len(queries) : (rank() + 1) * len(queries)]
        with torch.autocast(views[0].device.type, enabled=False):
            positive = (queries * own).sum(dim=1, keepdim=True)
            negative = queries @ self._negatives().T
            logits = torch.cat([positive, negative], dim=1) / self.params.temperature
            loss = functional.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device))
        self._pending = keys
        with torch.no_grad():
            indicators = {
                "feature_std": feature_std(queries),
                "contrastive_accuracy": (positive > negative).all(dim=1).float().mean(),
                "positive_similarity": positive.detach().mean(),
                "negative_similarity": negative.detach().mean() if negative.numel() else torch.zeros_like(loss),
            }
        return loss, indicators

    def _negatives(self) -> Tensor:
        return self.queue.rows if self.params.first_negatives == "random" else self.queue.rows[: self.queue.num_pushed]

    @torch.no_grad()
    def _keys_of_all(self, images: Tensor, step: int) -> Tensor:
        """Return the keys of all ranks' images, in the order of ranks; they are computed in shuffled order."""
        num, images_of_all = len(images), torch.cat(gather_from_ranks(images))
        order = shuffle(len(images_of_all), self.params.seed, step).to(images.device)
        mine = images_of_all[order[rank() * num : (rank() + 1) * num]]
        shuffled = torch.cat(gather_from_ranks(unit_rows(self.head_k(self.encoder_k(mine)))))
        keys = torch.empty_like(shuffled)
        keys[order] = shuffled
        return keys

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Move the key encoder towards the query encoder, and put the batch's keys into the queue."""
        share = 1 - self.params.encoder_momentum
        for slow, fast in ((self.encoder_k, self.encoder_q), (self.head_k, self.head_q)):
            torch.foreach.lerp_(list(slow.parameters()), list(fast.parameters()), share)
        average_running_statistics(self)
        if self._pending is not None:
            self.queue.push(self._pending)
            self._pending = None

    def build_optimizer(self, *, fused: bool | None = None) -> torch.optim.Optimizer:
        """Make SGD over the query encoder and its head; weight decay includes BatchNorm and biases, as in the paper's code."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        decay = self.params.weight_decay
        return torch.optim.SGD(trained, self.params.lr, momentum=self.params.momentum, weight_decay=decay, fused=fused)


def shuffle(num: int, seed: int, step: int) -> Tensor:
    """Draw the permutation of one step's keys: int64 (num,) on the CPU, equal on every rank and in a resumed run."""
    # torch's generator on the CPU takes 32 bits of a seed, too few for the seed of a run together with a step.
    return torch.from_numpy(np.random.default_rng((seed, step)).permutation(num))


def _head(width: int, dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, dim))
