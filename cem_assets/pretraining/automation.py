"""Sensors for weights: rows of the catalogue become partitions, and entries that wait for MLflow are delivered.

No sensor starts a training, because it takes days of a GPU; a person materializes the partition.
"""

from typing import Any

import dagster as dg

from cem_assets import environment
from cem_assets.platform.partitions import missing_partitions, weights_rows
from cem_assets.platform.resources import StoreResource
from cem_assets.pretraining.jobs import pretraining_weights
from cem_assets.pretraining.rows import known_weights
from cem_assets.tracking.outbox import drain_outbox

_DRAIN_SECONDS = 30.0


@dg.sensor(
    name="weights",
    job=pretraining_weights,
    minimum_interval_seconds=environment.whole_number(environment.RECONCILIATION_SECONDS, lowest=0),
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Offers every row of the catalogue of weights as a partition; training is started by people.",
)
def weights_sensor(context: dg.SensorEvaluationContext, store: StoreResource) -> dg.SensorResult:
    """Add the partitions that are missing."""
    missing = missing_partitions(context.instance, weights_rows, known_weights(store.open()))
    added = [key for request in missing for key in request.partition_keys]
    return dg.SensorResult(
        skip_reason=f"offered {', '.join(added)}" if added else "every row of the catalogue is a partition",
        dynamic_partitions_requests=missing,
    )


@dg.sensor(
    name="tracking_outbox",
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Delivers to MLflow what could not be delivered while it was down.",
)
def tracking_sensor(context: dg.SensorEvaluationContext, store: StoreResource) -> dg.SkipReason:
    """Deliver the entries that wait for MLflow."""
    drained = drain_outbox(store.open(), _DRAIN_SECONDS)
    trouble = f"; {drained.trouble}" if drained.trouble else ""
    return dg.SkipReason(f"delivered {drained.num_delivered:,} entries to MLflow, {drained.num_left:,} wait{trouble}")


WEIGHTS_SENSORS: list[Any] = [weights_sensor, tracking_sensor]
