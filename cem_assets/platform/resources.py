"""The resource of all assets: the store. There are no IO managers, because readers outside of Dagster use the same layout."""

import dagster as dg

from cem_assets.store.store import Store, open_store


class StoreResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The object store of the platform.

    Attributes:
        url: Root, such as s3://bucket/prefix; empty takes CEM_ASSETS_ROOT, else ./.cem_assets/store. The keys of S3 come from
            the AWS_* variables, never from the configuration.
    """

    url: str = ""

    def open(self) -> Store:
        """Open the store."""
        return open_store(self.url or None)
