"""Scoring patches on other machines: the job that the processes of a cluster run, and what its results depend on."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cem_assets.cem.classifier.params import ScoreParams, to_hash_side
from cem_assets.cem.patches.pixels import DatasetPixels
from cem_assets.errors import MachineError
from cem_assets.execution.local import Engine
from cem_assets.store.store import Store

if TYPE_CHECKING:
    from torch import nn


def scoring_environment(params: ScoreParams, engine: Engine | None) -> dict[str, str]:
    """Describe the device that will score the patches: that of this process, or that of a process of the engine."""
    if engine is None or not engine.spans_machines:
        return _environment(params)
    return next(iter(engine.map(_environment, [params])))


def _environment(params: ScoreParams) -> dict[str, str]:
    from cem_assets.cem.classifier.network import environment

    return environment(params)


@dataclass(frozen=True)
class ScoreJob:
    """Cuts batches of patches out of a dataset and scores them. It can be pickled; each process makes the network once.

    Attributes:
        weights: Key of the classifier's weights in the store.
        environment: The result of `scoring_environment`; all scores of a table are made on one kind of device.
    """

    store: Store
    pixels: DatasetPixels
    weights: str
    params: ScoreParams
    environment: Mapping[str, str]

    def __call__(self, table: pa.Table) -> NDArray[np.float32]:
        """Return the logits of the patches of some rows, float32 (n,). Forward passes have the same sizes as on one machine."""
        from cem_assets.cem.classifier.network import score_batches

        (logits,) = score_batches(self._model, [to_hash_side(self.pixels.patches(table))], self.params)
        return logits

    @cached_property
    def _model(self) -> "nn.Module":
        import safetensors.torch

        from cem_assets.cem.classifier.network import build_classifier

        found = _environment(self.params)
        if found != dict(self.environment):
            raise MachineError(
                f"this node would score on {found}, and other nodes on {dict(self.environment)}; expected one kind of device, "
                "because scores differ slightly between devices. Set `device` (cpu, cuda), or use nodes of the same kind."
            )
        return build_classifier(safetensors.torch.load(self.store.read(self.weights)))
