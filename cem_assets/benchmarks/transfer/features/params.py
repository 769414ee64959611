"""How the images of a transfer benchmark become features."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

FALLBACK_NORMS = (0.449, 0.226)
"""Mean and standard deviation for weights that have none: those of ImageNet as gray, for pixels on a scale of 0 to 1."""


class FeatureSettings(BaseModel):
    """How the images of a benchmark become features.

    Attributes:
        preprocessing: "concat" puts each channel through the encoder alone and the features side by side; "merge" averages the
            channels to one gray image.
        is_normalised: Whether every channel is stretched to its 0.1 and 99.9 percentiles.
        side_px: Images are resized to squares of this side.
        mean, std: Mean and standard deviation of pixels on a scale of 0 to 1. None takes those of the weights, or
            `FALLBACK_NORMS` for weights that have none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    preprocessing: Literal["concat", "merge"] = "concat"
    is_normalised: bool = True
    side_px: Annotated[int, Field(ge=32, le=4096)] = 224
    mean: Annotated[float, Field(ge=0, le=1)] | None = None
    std: Annotated[float, Field(gt=0, le=1)] | None = None

    def norms(self, of_weights: tuple[float, float] | None) -> tuple[float, float]:
        """Return the mean and standard deviation to use for weights that have these norms, or None."""
        mean, std = of_weights or FALLBACK_NORMS
        return (mean if self.mean is None else self.mean), (std if self.std is None else self.std)
