"""The patch classifier: a ResNet34 with one logit, which is low for blank resin, padding, blur and artefacts.

Parameters are in `cem_assets.cem.classifier.params`, training in `cem_assets.cem.classifier.training`, and the fast forward
pass in `cem_assets.cem.classifier.scoring_network`.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cem_assets.cem.classifier.params import Precision, ScoreParams
from cem_assets.cem.classifier.scoring_network import scoring_forward
from cem_assets.encoders import build_encoder, pick_device
from cem_assets.errors import DataError

CLASSIFIER_ARCH = "resnet34"


def build_classifier(state_dict: dict[str, torch.Tensor] | None = None) -> nn.Module:
    """Build the patch classifier, a ResNet34 with one output.

    Args:
        state_dict: Weights with the keys of the published `patch_quality_classifier_nn.pth`; None leaves them random.

    Raises:
        DataError: The weights do not fit; the error names missing and unexpected keys.
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
        model: A network from `build_classifier`.
        batches: uint8 (n, 224, 224). The last bits of the logits depend on which patches share a forward pass, so the sizes
            of batches should not vary.
        params: Device and precision. Batches larger than `batch_size` are split.

    Yields:
        float32 (n,) logits for each batch; `params.probability` turns them into probabilities.

    Source: `classify_patches.py` of volume-em/cem-dataset (ResNet34, sigmoid above 0.5). There OpenCV resizes patches at the
    border; here Pillow's bilinear method does, as for the hash.
    """
    device = pick_device(params.device)
    forward = scoring_forward(model.eval(), device, params.precision)
    for batch in batches:
        outputs = []
        # Inference mode is entered again for every batch, because it would also apply to the caller during a yield.
        with torch.inference_mode():
            for start in range(0, len(batch), params.batch_size):
                chunk = torch.from_numpy(batch[start : start + params.batch_size])
                outputs.append(forward(chunk.pin_memory() if device.type == "cuda" else chunk))
            logits = torch.cat(outputs).cpu().numpy() if outputs else np.empty(0, np.float32)
        yield logits


def environment(params: ScoreParams) -> dict[str, str]:
    """Return what a network's outputs depend on besides weights and inputs: device, torch version, and rounding of bfloat16."""
    device = pick_device(params.device)
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    found = {"torch": torch.__version__, "device": f"{device.type}: {kind}"}
    if device.type == "cpu" and params.precision == Precision.bfloat16:
        # Separate kernels round more often, so their tables differ.
        found["rounding"] = "once for each convolution"
    return found
