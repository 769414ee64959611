"""The launchpad's choice of engine, for assets whose work can be shared out over machines."""

from typing import Any

import dagster as dg

from cem_assets.execution.local import EngineChoice


class EngineConfig(dg.Config):
    """Where the work is done. Results do not depend on it, so it is no part of what is recorded.

    Attributes:
        engine: `local`, `ray`, or `default`: what CEM_ASSETS_ENGINE says.
    """

    engine: EngineChoice = EngineChoice.default

    def parameters(self) -> dict[str, Any]:
        """Return everything else: what a subclass says about the results."""
        return self.model_dump(exclude={"engine"})
