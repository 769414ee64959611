"""The choice of the engine in the launchpad, for assets whose work can be distributed over machines."""

from typing import Any

import dagster as dg

from cem_assets.execution.local import EngineChoice


class EngineConfig(dg.Config):
    """Where the work is done. Results do not depend on it, so it is not recorded.

    Attributes:
        engine: `local`, `ray`, or `default` for the engine that CEM_ASSETS_ENGINE names.
    """

    engine: EngineChoice = EngineChoice.default

    def parameters(self) -> dict[str, Any]:
        """Return all other fields, which are the parameters of the results."""
        return self.model_dump(exclude={"engine"})
