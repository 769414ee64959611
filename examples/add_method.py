"""Try a method of your own: here a filter by contrast, on the scored patches of a dataset.

    python examples/add_method.py DATASET

A method is a frozen model of its parameters and a pure function. Try it like this first. To make it part of the platform,
follow "An asset" in docs/adding.md.
"""

import sys

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from cem_assets import readers


class ContrastParams(BaseModel):
    """Which patches have enough contrast.

    Attributes:
        min_deviation: The least standard deviation of the gray levels.
    """

    model_config = ConfigDict(frozen=True)

    min_deviation: float = Field(default=12.0, ge=0, le=128)


def has_contrast(patch: np.ndarray, params: ContrastParams) -> bool:
    """Tell whether a patch, uint8 (height, width), has enough contrast."""
    return bool(patch.std(dtype=np.float64) >= params.min_deviation)


def main() -> None:
    """Compare the filter with the classifier's decision."""
    dataset, params = sys.argv[1], ContrastParams()
    informative = readers.read_patches(dataset, "scores").set_index("name")["informative"] > 0.5
    table = np.zeros((2, 2), int)
    for name, patch in readers.iter_images(dataset, "scores"):
        table[int(informative[name]), int(has_contrast(patch, params))] += 1
    print(f"{table.sum()} patches of {dataset}: both keep {table[1, 1]}, both drop {table[0, 0]},")
    print(f"the classifier alone keeps {table[1, 0]}, contrast alone {table[0, 1]}")


if __name__ == "__main__":
    main()
