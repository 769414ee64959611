"""The patch classifier: a ResNet34 with one logit, its weights and its inference.

Blank resin, padding, blur and artefacts are uninformative. Scores are kept, so another threshold needs
no second inference. Parameters are in `cem_assets.cem.filter.params`, training in
`cem_assets.cem.classifier.training`, the forward pass in `cem_assets.cem.classifier.scoring_network`.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cem_assets.cem.classifier.scoring_network import scoring_forward
from cem_assets.cem.filter.params import Precision, ScoreParams
from cem_assets.encoders import build_encoder, pick_device
from cem_assets.errors import DataError

CLASSIFIER_ARCH = "resnet34"


def build_classifier(state_dict: dict[str, torch.Tensor] | None = None) -> nn.Module:
    """Build the patch classifier.

    Args:
        state_dict: Weights, as the published `patch_quality_classifier_nn.pth` has them; None for random.

    Returns:
        ResNet34 with one output.

    Raises:
        DataError: The weights do not fit; missing and unexpected keys are named.
    """
    model = build_encoder(CLASSIFIER_ARCH, num_outputs=1)
    if state_dict is None:
        return model
    expected = model.state_dict()
    problems = [f"{key} is missing" for key in expected if key not in state_dict]
    problems += [f"{key} is unexpected" for key in state_dict if key not in expected]
    problems += [
        f"{key} has shape {tuple(state_dict[key].shape)}, expected {tuple(value.shape)}"
        for key, value in expected.items()
        if key in state_dict and state_dict[key].shape != value.shape
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise DataError(
            f"the weights are not a ResNet34 patch classifier with fc of shape (1, 512): {'; '.join(problems[:5])}{more}. "
            "Give the published patch_quality_classifier_nn.pth, or weights that cem/patch_classifier made."
        )
    model.load_state_dict(state_dict)
    return model


def score_batches(model: nn.Module, batches: Iterable[NDArray[np.uint8]], params: ScoreParams) -> Iterator[NDArray[np.float32]]:
    """Score patches.

    Args:
        model: From `build_classifier`.
        batches: uint8 (n, 224, 224); their sizes decide the batch composition, so keep them fixed.
        params: Device and precision; `batch_size` splits larger batches.

    Yields:
        float32 (n,) logits for each batch; `filter.probability` turns them into probabilities.

    Source: `classify_patches.py` of volume-em/cem-dataset (ResNet34, sigmoid above 0.5); there OpenCV resizes
    border patches, here Pillow's bilinear does, as for the hash.
    """
    device = pick_device(params.device)
    forward = scoring_forward(model.eval(), device, params.precision)
    for batch in batches:
        outputs = []
        # Entered anew for every batch: held across a yield, the mode would leak into the caller.
        with torch.inference_mode():
            for start in range(0, len(batch), params.batch_size):
                chunk = torch.from_numpy(batch[start : start + params.batch_size])
                outputs.append(forward(chunk.pin_memory() if device.type == "cuda" else chunk))
            logits = torch.cat(outputs).cpu().numpy() if outputs else np.empty(0, np.float32)
        yield logits


def environment(params: ScoreParams) -> dict[str, str]:
    """Describe what network outputs depend on beside weights and inputs: device, torch build, and how bfloat16 is rounded."""
    device = pick_device(params.device)
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    found = {"torch": torch.__version__, "device": f"{device.type}: {kind}"}
    if device.type == "cpu" and params.precision == Precision.bfloat16:
        found["rounding"] = "once for each convolution"  # tables made by separate kernels, with more roundings, are others
    return found
