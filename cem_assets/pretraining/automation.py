"""What runs by itself for weights: rows of the catalogue become partitions, and tracking that waited is delivered.

Nothing is trained unasked: that takes days of a GPU, so a person materializes a partition.
"""

import os
from typing import Any

import dagster as dg

from cem_assets.platform.partitions import weights_rows
from cem_assets.platform.resources import StoreResource
from cem_assets.pretraining.jobs import pretraining_weights
from cem_assets.pretraining.weights.rows import known_weights
from cem_assets.tracking.outbox import drain_outbox

_DRAIN_SECONDS = 30.0


@dg.sensor(
    name="weights",
    job=pretraining_weights,
    minimum_interval_seconds=int(os.environ.get("CEM_ASSETS_RECONCILIATION_SECONDS", "60")),
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Offers every row of the catalogue of weights as a partition; training is started by people.",
)
def weights_sensor(context: dg.SensorEvaluationContext, store: StoreResource) -> dg.SensorResult:
    """Add the partitions that are missing."""
    known = set(context.instance.get_dynamic_partitions(str(weights_rows.name)))
    added = [name for name in known_weights(store.open()) if name not in known]
    return dg.SensorResult(
        skip_reason=f"offered {', '.join(added)}" if added else "every row of the catalogue is a partition",
        dynamic_partitions_requests=[weights_rows.build_add_request(added)] if added else [],
    )


@dg.sensor(
    name="tracking_outbox",
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Delivers to MLflow what could not be delivered while it was down.",
)
def tracking_sensor(context: dg.SensorEvaluationContext, store: StoreResource) -> dg.SkipReason:
    """Deliver what waits."""
    drained = drain_outbox(store.open(), _DRAIN_SECONDS)
    trouble = f"; {drained.trouble}" if drained.trouble else ""
    return dg.SkipReason(f"delivered {drained.num_delivered:,} entries to MLflow, {drained.num_left:,} wait{trouble}")


WEIGHTS_SENSORS: list[Any] = [weights_sensor, tracking_sensor]
