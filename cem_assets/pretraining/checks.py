"""What must be true of committed weights; Dagster runs it as a blocking check before anybody scores them."""

import numpy as np

from cem_assets.execution.checks import Outcome
from cem_assets.pretraining.weights.stored import load_encoder_weights
from cem_assets.store.store import Store

_SIDE_PX = 64
_NUM_IMAGES = 8
_LEAST_SPREAD = 1e-6


def weights_give_features(store: Store, name: str) -> Outcome:
    """The weights load into their network, and its features are finite and differ between different pictures."""
    import torch

    weights, _ = load_encoder_weights(store, name)
    encoder = weights.build()
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:_SIDE_PX, :_SIDE_PX]
    waves = [
        np.sin(x / (2 + k)) * np.cos(y / (3 + k)) + 0.2 * generator.normal(size=(_SIDE_PX, _SIDE_PX))
        for k in range(_NUM_IMAGES)
    ]
    with torch.inference_mode():
        features = encoder(torch.from_numpy(np.stack(waves)[:, None]).float()).numpy()
    spread = float(features.std(axis=0).max()) if np.isfinite(features).all() else float("nan")
    facts = {"num_features": features.shape[1], "largest_std": spread}
    if not np.isfinite(features).all():
        return Outcome(
            False, f"weights {name!r} give features that are not finite. Train them anew with a lower learning rate.", facts
        )
    if spread < _LEAST_SPREAD:
        return Outcome(
            False,
            f"weights {name!r} give every picture the same features: they have collapsed. Look at the curves of "
            "feature_std, and train anew with other parameters.",
            facts,
        )
    return Outcome(True, f"{features.shape[1]} finite features, different for different pictures", facts)
