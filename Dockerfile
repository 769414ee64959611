# One image for the webserver, the daemon, the code server and MLflow. `make image` builds the wheel first, then this image.
# `make image-check` performs the same steps in a clean folder, without a container engine.
# For a Ray cluster: docker build --build-arg LOCK=requirements-ray.lock --tag cem-assets-ray:latest .
FROM python:3.11-slim-bookworm AS build
RUN pip install --no-cache-dir uv==0.13.8
ARG LOCK=requirements.lock
COPY requirements.lock requirements-ray.lock /build/
RUN uv venv /opt/venv && \
    uv pip sync --python /opt/venv/bin/python --require-hashes --compile-bytecode --no-cache /build/${LOCK}
COPY dist/cem_assets-*.whl /build/
RUN uv pip install --python /opt/venv/bin/python --no-deps --compile-bytecode --no-cache /build/cem_assets-*.whl

FROM python:3.11-slim-bookworm
RUN useradd --create-home --uid 10001 cem && \
    mkdir -p /opt/dagster /opt/cem_assets /scratch && \
    chown cem /opt/dagster /opt/cem_assets /scratch
COPY --from=build /opt/venv /opt/venv
COPY workspace.yaml deploy/workspace.grpc.yaml /opt/cem_assets/
COPY --chown=cem deploy/dagster.production.yaml /opt/dagster/dagster.yaml
ENV PATH=/opt/venv/bin:$PATH \
    DAGSTER_HOME=/opt/dagster \
    DAGSTER_DISABLE_TELEMETRY=1 \
    MLFLOW_DISABLE_TELEMETRY=true \
    PYTHONUNBUFFERED=1
USER 10001
WORKDIR /opt/cem_assets
EXPOSE 3000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:3000/server_info', timeout=4)"]
CMD ["dagster-webserver", "--host", "0.0.0.0", "--port", "3000", "--workspace", "/opt/cem_assets/workspace.yaml"]
