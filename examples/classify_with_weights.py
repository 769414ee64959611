"""Encoder weights for classification: a linear classifier on frozen features tells which dataset a patch is from.

    python examples/classify_with_weights.py NAME     (a name that `cem-assets weights` lists as committed)

Neighbouring patches are on both sides of the split, so this accuracy is too good. For benchmarks without that flaw use
`cem-assets benchmark`.
"""

import sys

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cem_assets import readers

SIDE_PX = 224
MAX_PATCHES = 512


def main() -> None:
    """Take features, fit, score."""
    name = sys.argv[1]
    encoder = readers.load_weights(name).eval()
    listed = readers.list_weights().set_index("name").loc[name]
    release = readers.read_release()
    mean, std = listed["norms"] or (release.pixel_mean, release.pixel_std)
    features = {}
    for patch, image in release.iter_images():
        if image.shape == (SIDE_PX, SIDE_PX) and len(features) < MAX_PATCHES:
            pixels = (torch.from_numpy(image.copy()).float() / 255 - mean) / std
            with torch.inference_mode():
                features[patch] = encoder(pixels[None, None]).numpy()[0]
    rows = release.patches(["dataset", "name"]).drop_duplicates("name").set_index("name")
    x, y = np.stack(list(features.values())), rows["dataset"].loc[list(features)].to_numpy()
    is_test = np.random.default_rng(0).permutation(len(y)) % 4 == 0
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(x[~is_test], y[~is_test])
    accuracy = model.score(x[is_test], y[is_test])
    print(f"{name}: {len(y)} patches of {len(set(y))} datasets, {x.shape[1]} features, accuracy {accuracy:.2f}")


if __name__ == "__main__":
    main()
