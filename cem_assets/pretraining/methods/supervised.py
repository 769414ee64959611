"""Supervised training of an encoder with a linear layer that tells classes apart, as for the CytoImageNet weights.

Source: Hua et al., CytoImageNet, arXiv:2111.11646: EfficientNetB0 from scratch, Adam, cross-entropy. The Apache-licensed timm
has the same network; torchvision's is used because that needs one dependency less. The callers hold out validation images and
score them per category with `logits`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from cem_assets.encoders import build_encoder, num_features
from cem_assets.errors import DataError
from cem_assets.pretraining.methods.base import Method, built_with_seed, feature_std
from cem_assets.pretraining.methods.batchnorm import average_running_statistics
from cem_assets.pretraining.methods.params import SupervisedParams


class Supervised(Method):
    """A classifier with one input channel, made of `backbone`, `dropout` and `classifier`.

    BatchNorm takes its statistics within a rank, and dropout draws from torch's generator of the device. Several ranks
    therefore do not give the same numbers as one rank with the whole batch, but all of them hold the same state.
    """

    params: SupervisedParams

    def __init__(self, params: SupervisedParams, arch: str, num_samples: int, num_classes: int = 0) -> None:
        super().__init__(params, arch, num_samples, num_classes)
        if num_classes < 2:
            raise DataError(f"num_classes is {num_classes}; supervised training expects 2 or more.")
        self.backbone = built_with_seed(params.seed, build_encoder, arch, in_channels=1)
        self.dropout = nn.Dropout(params.dropout)
        self.classifier = built_with_seed(params.seed + 1, nn.Linear, num_features(arch), num_classes)

    @property
    def encoder(self) -> nn.Module:
        """The backbone, without the last layer."""
        return self.backbone

    def logits(self, images: Tensor) -> Tensor:
        """Compute the scores of the classes, float32 (n, num_classes), from normalised images (n, 1, s, s)."""
        scores: Tensor = self.classifier(self.dropout(self.backbone(images)))
        return scores.float()

    def compute_loss(
        self, views: list[Tensor], labels: Tensor | None, step: int, epoch: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the cross-entropy.

        Args:
            views: One tensor (n, 1, s, s).
            labels: int64 (n,), 0 to num_classes - 1.

        Returns:
            The loss, and the indicators `top1` and `top5` (shares of right answers in this batch) and `feature_std`.

        Raises:
            ValueError: There are no labels, or their number differs from that of the images.
        """
        self.check_views(views)
        if labels is None or labels.shape != (len(views[0]),):
            found = "none" if labels is None else f"shape {tuple(labels.shape)}"
            raise ValueError(f"labels are {found}; supervised training expects ({len(views[0])},), one for each image.")
        features = self.backbone(views[0])
        scores = self.classifier(self.dropout(features)).float()
        loss = functional.cross_entropy(scores, labels)
        with torch.no_grad():
            best = scores.topk(min(5, self.num_classes), dim=1).indices == labels[:, None]
            indicators = {
                "top1": best[:, 0].float().mean(),
                "top5": best.any(dim=1).float().mean(),
                "feature_std": feature_std(features),
            }
        return loss, indicators

    def after_step(self, step: int) -> None:
        """Average the running statistics of BatchNorm over ranks."""
        average_running_statistics(self)

    def build_optimizer(self, *, fused: bool | None = None) -> torch.optim.Optimizer:
        """Make Adam over all parameters."""
        return torch.optim.Adam(self.parameters(), self.params.lr, weight_decay=self.params.weight_decay, fused=fused)
