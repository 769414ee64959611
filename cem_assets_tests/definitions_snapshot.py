"""A snapshot of the definitions that Dagster loads, without their descriptions, so that every change of them is a decision.

The snapshot is `definitions_snapshot.json` beside this module. After a change that is meant, write it again:
`python -m cem_assets_tests.definitions_snapshot > cem_assets_tests/definitions_snapshot.json`.
"""

import json
from typing import Any

import dagster as dg


def snapshot(definitions: dg.Definitions) -> dict[str, Any]:
    """Describe assets, checks, jobs, sensors, schedules and resources by name."""
    graph = definitions.resolve_asset_graph()
    keys = {key.to_user_string(): key for key in graph.get_all_asset_keys()}
    return {
        "assets": {name: _asset(definitions, graph.get(keys[name]), keys[name]) for name in sorted(keys)},
        "checks": {
            f"{key.asset_key.to_user_string()}:{key.name}": _check(graph.get_check_spec(key))
            for key in sorted(graph.asset_check_keys, key=lambda key: (key.asset_key.to_user_string(), key.name))
        },
        "jobs": {
            job.name: _job(job)
            for job in sorted(definitions.resolve_all_job_defs(), key=lambda job: job.name)
            if not job.name.startswith("__")
        },
        "sensors": {
            sensor.name: {
                "jobs": sorted(target.job_name for target in sensor.targets if hasattr(target, "job_name")),
                "minimum_interval_seconds": sensor.minimum_interval_seconds,
                "default_status": str(sensor.default_status),
                "type": str(sensor.sensor_type),
            }
            for sensor in sorted(definitions.sensors, key=lambda sensor: sensor.name)
        },
        "schedules": {
            schedule.name: {
                "job": schedule.job_name,
                "cron": schedule.cron_schedule,
                "timezone": schedule.execution_timezone,
                "default_status": str(schedule.default_status),
            }
            for schedule in sorted(definitions.schedules, key=lambda schedule: schedule.name)
        },
        "resources": {
            name: _config(value.config_schema.config_type) for name, value in sorted(_resources(definitions).items())
        },
        "executor": {"name": definitions.executor.name},
    }


def _resources(definitions: dg.Definitions) -> dict[str, dg.ResourceDefinition]:
    return {name: value.get_resource_definition() for name, value in definitions.resources.items()}


def _asset(definitions: dg.Definitions, node: Any, key: dg.AssetKey) -> dict[str, Any]:
    op = definitions.resolve_assets_def(key).op
    return {
        "deps": sorted(parent.to_user_string() for parent in node.parent_keys),
        "group": node.group_name,
        "code_version": node.code_version,
        "kinds": sorted(node.kinds),
        "partitions": _partitions(node.partitions_def),
        "pool": op.pool,
        "op": op.name,
        "tags": {name: value for name, value in sorted(node.tags.items()) if not name.startswith("dagster/kind/")},
        "resources": sorted(op.required_resource_keys),
        "config": _config(op.config_schema.config_type),
    }


def _check(spec: dg.AssetCheckSpec) -> dict[str, Any]:
    return {"blocking": spec.blocking, "partitions": _partitions(spec.partitions_def)}


def _job(job: dg.JobDefinition) -> dict[str, Any]:
    selected = job.asset_layer.selected_asset_keys
    return {
        "assets": sorted(key.to_user_string() for key in selected),
        "ops": sorted(node.name for node in job.nodes),
        "partitions": _partitions(job.partitions_def),
        "tags": dict(sorted(job.tags.items())),
        "config": {
            node.name: _config(node.definition.config_schema.config_type)
            for node in job.nodes
            if not selected and node.definition
        },
    }


def _partitions(partitions: dg.PartitionsDefinition | None) -> Any:
    if isinstance(partitions, dg.MultiPartitionsDefinition):
        return {dimension.name: _partitions(dimension.partitions_def) for dimension in partitions.partitions_defs}
    return None if partitions is None else str(partitions.name)


def _config(kind: Any) -> Any:
    """Describe a configuration: by field its type, and the default where it has one."""
    fields = getattr(kind, "fields", None)
    if fields is None:
        values = getattr(kind, "enum_values", None)
        inner = getattr(kind, "inner_type", None)
        name = str(kind.given_name or kind.key)
        if values is not None:
            return {"one of": sorted(value.config_value for value in values)}
        return {kind.kind.name.lower(): _config(inner)} if inner is not None else name
    return {
        name: {"type": _config(field.config_type)}
        | ({"default": field.default_value_as_json_str} if field.default_provided else {"required": field.is_required})
        for name, field in sorted(fields.items())
    }


def as_text(found: dict[str, Any]) -> str:
    """Write a snapshot as JSON with one line for each definition, so that a difference between two is easy to read."""
    sections = []
    for title, section in found.items():
        lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in section.items()]
        sections.append(f" {json.dumps(title)}: {{\n" + ",\n".join(lines) + "\n }")
    return "{\n" + ",\n".join(sections) + "\n}"


if __name__ == "__main__":
    from cem_assets.definitions import defs

    print(as_text(snapshot(defs)))
