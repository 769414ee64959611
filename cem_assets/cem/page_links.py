"""Links in asset metadata to the pages that people open beside Dagster; they hold no secret (see `cem_assets.web.door`)."""

from urllib.parse import quote

DOOR_PORT = 7787
"""The port that labelling takes where it is free; links in metadata lead here."""


def labelling_url(dataset: str) -> str:
    """Return the link to the labelling page of a dataset, on the computer of whoever follows it."""
    return f"http://127.0.0.1:{DOOR_PORT}/door/label/{quote(dataset, safe='')}"
