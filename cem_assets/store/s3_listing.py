"""Listing a folder of an S3 bucket: through obstore, and through s3fs for the pages that obstore cannot list.

Keys in this module are those of the bucket. `cem_assets.store.store` makes them relative to its root, and lists local folders.
"""

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from cem_assets.store.s3 import QuickBucket

Listed = tuple[str, int, float, str]
"""Key, size in bytes, time of writing in seconds since 1970, entity tag without quotes."""


def behind_folder(base: str, name: str) -> str:
    """Return a key behind all keys of the folder `name` in the folder `base`, to begin a listing at; empty without a name."""
    return f"{base}/{name}/\U0010ffff".lstrip("/") if name else ""


def described(item: Mapping[str, Any]) -> tuple[int, float, str]:
    """Return size, time and tag of an object from its description by s3fs or S3."""
    modified = item.get("LastModified", 0.0)
    seconds = modified.timestamp() if isinstance(modified, datetime) else float(modified)
    return int(item["Size"]), seconds, str(item.get("ETag", "")).strip('"')


def pages(fs: Any, bucket: str, base: str, delimiter: str, behind: str) -> Iterator[Mapping[str, Any]]:
    """List a folder page by page through s3fs. Only the folder itself is requested, because access may be limited to it.

    Args:
        fs: The s3fs file system.
        base: The folder, without a slash at its end; empty for the whole bucket.
        delimiter: "/" lists nothing below the folder's own folders; empty lists everything.
        behind: The listing begins behind this key; empty begins at the first.

    Yields:
        The answers of S3.
    """
    call = {"Bucket": bucket, "Prefix": f"{base}/" if base else "", "Delimiter": delimiter}
    if behind:
        call["StartAfter"] = behind
    while True:
        page: Mapping[str, Any] = fs.call_s3("list_objects_v2", **call)
        yield page
        if not page.get("IsTruncated"):
            return
        call["ContinuationToken"] = page["NextContinuationToken"]


def objects(fs: Any, quick: QuickBucket | None, bucket: str, base: str, behind: str) -> Iterator[Listed]:
    """List all objects under a folder, in order of key, with the same result as s3fs alone.

    Args:
        fs: The s3fs file system.
        quick: The same bucket through obstore; None where obstore cannot be used.
        base: The folder, without a slash at its end; empty for the whole bucket.
        behind: The listing begins behind this key; empty begins at the first.
    """
    while True:
        for found in quick.pages(base, behind) if quick is not None else (None,):
            if found is None:
                break
            for item in found:
                yield item["path"], item["size"], item["last_modified"].timestamp(), (item["e_tag"] or "").strip('"')
            behind = found[-1]["path"]
        else:
            return
        # s3fs lists the one page that obstore could not, and obstore continues behind it.
        page: Mapping[str, Any] = {}
        for page in pages(fs, bucket, base, "", behind):
            for item in page.get("Contents", []):
                yield (item["Key"], *described(item))
                behind = item["Key"]
            if page.get("Contents"):
                break
        if not page.get("IsTruncated"):
            return
