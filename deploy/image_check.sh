#!/usr/bin/env bash
# Performs the Dockerfile's steps in a clean folder, without a container engine: the locked environment, the wheel,
# the layout, and the webserver with its health check. Needs `make wheel` first. Usage: image_check.sh UV
set -euo pipefail
uv=${1:-uv}
root=$(cd "$(dirname "$0")/.." && pwd)
image=$(mktemp -d)
trap 'kill "${server:-}" 2>/dev/null || true; rm -rf "$image"' EXIT
say() { printf '== %s\n' "$*"; }

say "locked environment"
"$uv" venv --quiet --python 3.11 "$image/venv"
"$uv" pip sync --quiet --python "$image/venv/bin/python" --require-hashes --compile-bytecode "$root/requirements.lock"
say "wheel"
"$uv" pip install --quiet --python "$image/venv/bin/python" --no-deps --compile-bytecode "$root"/dist/cem_assets-*.whl
say "layout"
mkdir -p "$image/dagster" "$image/cem_assets"
cp "$root/workspace.yaml" "$root/deploy/workspace.grpc.yaml" "$image/cem_assets/"
cd "$image/cem_assets"
export PATH="$image/venv/bin:$PATH" DAGSTER_HOME="$image/dagster" DAGSTER_DISABLE_TELEMETRY=1 MLFLOW_DISABLE_TELEMETRY=true
unset VIRTUAL_ENV PYTHONPATH
python -c "import cem_assets, sys; assert cem_assets.__file__.startswith(sys.prefix), cem_assets.__file__"
python -c "
import yaml
from dagster import DagsterInstance
from dagster._core.instance.config import dagster_instance_config_schema
from dagster._config import validate_config
for name in ('deploy/dagster.production.yaml', 'cem_assets/dagster.yaml'):
    with open('$root/' + name) as file:
        result = validate_config(dagster_instance_config_schema(), yaml.safe_load(file))
    assert result.success, result.errors
"
say "definitions load by the workspace file"
dagster definitions validate -w workspace.yaml
say "webserver and its health check"
port=$(python -c "import socket; s = socket.socket(); s.bind(('127.0.0.1', 0)); print(s.getsockname()[1])")
dagster-webserver --host 127.0.0.1 --port "$port" --workspace workspace.yaml >webserver.log 2>&1 &
server=$!
for _ in $(seq 60); do
  if python -c "import urllib.request; urllib.request.urlopen('http://127.0.0.1:$port/server_info', timeout=4)" 2>/dev/null; then
    say "healthy"
    exit 0
  fi
  sleep 1
done
cat webserver.log
exit 1
