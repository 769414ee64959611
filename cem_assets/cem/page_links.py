"""Links in asset metadata to the pages that people open beside Dagster. They hold no secret (see `cem_assets.web.door`)."""

from urllib.parse import quote

DOOR_PORT = 7787
"""The port on which the labelling page is served if the port is free. Links in metadata use it."""


def labelling_url(dataset: str) -> str:
    """Return the link to the labelling page of a dataset, on the computer of the person who follows the link."""
    return f"http://127.0.0.1:{DOOR_PORT}/door/label/{quote(dataset, safe='')}"
