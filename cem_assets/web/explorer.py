"""The explorer's application, which shows a store and only reads it.

All paths begin with a secret (`cem_assets.web.doorkeeper`). Paths of volumes begin with another secret, which may be given to
a neuroglancer, whose origin may then read volumes and nothing else. The page is `static/explore.html`; `docs/explorer.md`
explains how it works.

A request that cannot be answered because of what it asks for gets a status of 400 or 404, and trouble with the store 503. Any
other error is a bug: it gets 500, and the server logs it with its traceback.
"""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import duckdb
import pyarrow as pa
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from cem_assets.errors import DataError, UnknownNameError
from cem_assets.store.store import Store, check_key
from cem_assets.web.column_cache import DEFAULT_BYTES, ColumnCache
from cem_assets.web.doorkeeper import Doorkeeper
from cem_assets.web.explorer_details import Details
from cem_assets.web.explorer_pictures import Pictures, jpeg
from cem_assets.web.explorer_queries import HAS_COLUMN, HAS_FATE, Questions, Selection
from cem_assets.web.explorer_tables import CYTO_STAGES, STAGES, StoreTables
from cem_assets.web.volume_links import VolumeLinks

logger = logging.getLogger(__name__)

STATIC = {
    "explore.html": "text/html",
    "explore.css": "text/css",
    "explore.js": "text/javascript",
    "details.js": "text/javascript",
    "filters.js": "text/javascript",
    "page.js": "text/javascript",
}
_FOR_GOOD = {"cache-control": "private, max-age=604800, immutable"}
_FOR_A_WHILE = {"cache-control": "private, max-age=600"}


class PictureWish(BaseModel):
    """A request for the picture of a row of a stage; `v` is the version of the table that the page saw."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    version: Annotated[str, Field(max_length=40)] = ""
    partition: Annotated[str, Field(min_length=1, max_length=200)]
    name: Annotated[str, Field(min_length=1, max_length=2048)]
    v: Annotated[str, Field(max_length=64)] = ""
    part: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    row_group: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    exact: bool = False


class ItemWish(BaseModel):
    """A request for the facts of one patch or crop."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    version: Annotated[str, Field(max_length=40)] = ""
    partition: Annotated[str, Field(min_length=1, max_length=200)]
    name: Annotated[str, Field(min_length=1, max_length=2048)]


class SliceWish(BaseModel):
    """A request for a window of a slice of a volume around (y, x) of its plane."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: Annotated[str, Field(min_length=1, max_length=200)]
    volume: Annotated[str, Field(min_length=1, max_length=1024)]
    axis: Annotated[int, Field(ge=-1, le=2)]
    index: Annotated[int, Field(ge=0, lt=2**31)]
    y: Annotated[int, Field(ge=0, lt=2**31)]
    x: Annotated[int, Field(ge=0, lt=2**31)]


class Explorer:
    """Answers the questions of the pages of one store.

    Args:
        cache: Folder for the columns of tables that cannot be queried in place.
        cache_bytes: Size of that folder.
        links: Makes links that open volumes elsewhere; None makes those that need no server.
    """

    def __init__(self, store: Store, cache: Path, cache_bytes: int = DEFAULT_BYTES, links: VolumeLinks | None = None) -> None:
        self.store = store
        self.catalogue = StoreTables(store, ColumnCache(store, cache, cache_bytes))
        self.questions = Questions(self.catalogue)
        self.pictures = Pictures(self.catalogue)
        self.details = Details(self.catalogue, self.questions, self.pictures, links or VolumeLinks(store.url))

    def overview(self) -> dict[str, Any]:
        """Describe the store and which filters apply to which stage."""
        told = self.catalogue.overview()
        return told | {"stages": STAGES, "has_column": HAS_COLUMN, "has_fate": HAS_FATE}

    def picture(self, wish: PictureWish) -> tuple[bytes, bool]:
        """Return a picture, and whether its address always means this picture.

        Raises:
            FileNotFoundError: The stage holds nothing of that partition.
            DataError: There is no such patch or crop.
        """
        (table,) = self.catalogue.tables(wish.stage, wish.version, wish.partition)
        encode = self.pictures.exact if wish.exact else self.pictures.thumbnail
        is_for_good = wish.v == table.key[:16]
        if not table.has_pixels:
            digest = self.details.volumes_digest(wish.stage, wish.partition, table)
            pixels = self.pictures.data_of(wish.partition, digest)
            place = (pixels.manifest_digest, wish.name)
            return encode(place, lambda: self.pictures.of_volume(pixels, wish.name)), is_for_good
        if wish.part is None or wish.row_group is None:
            raise DataError("pictures of this stage are found by part and row_group; give both.")
        part, group = wish.part, wish.row_group
        column = "filename" if wish.stage in CYTO_STAGES else "name"
        shown = encode(
            (table.key, part, group, wish.name), lambda: self.pictures.of_shard(table, part, group, wish.name, column)
        )
        return shown, is_for_good

    def slice(self, wish: SliceWish) -> bytes:
        """Return a window of a slice as JPEG."""
        pixels = self.pictures.data_of(wish.dataset)
        view = self.pictures.slice_of(pixels, wish.volume, wish.axis, wish.index, (wish.y, wish.x))
        return jpeg(Image.fromarray(view.pixels))

    def volume_object(self, dataset: str, path: str) -> bytes:
        """Read an object of a standardized volume, as neuroglancer asks for it.

        Raises:
            FileNotFoundError: It is none of the objects that the manifest of the dataset's volumes lists.
        """
        manifest = self.catalogue.volumes_manifest(check_key(dataset))
        known = {item.name for item in manifest.objects} if manifest else set()
        if manifest is None or path not in known or ".zarr/" not in path:
            raise FileNotFoundError(f"dataset {dataset!r} has no such object.")
        return self.store.read(f"{manifest.folder}/{path}")


def _range(header: str, size: int) -> tuple[int, int] | None:
    """Read a header `Range: bytes=...` of one span; None where the header has no span that can be satisfied."""
    unit, _, span = header.partition("=")
    first, dash, last = span.partition("-")
    if unit.strip() != "bytes" or not dash or "," in span or not (first or last).isascii() or not (first or last).isdigit():
        return None
    if not first:
        return max(size - int(last), 0), size
    stop = int(last) + 1 if last.isascii() and last.isdigit() else size
    return (int(first), min(stop, size)) if int(first) < min(stop, size) else None


def explorer_app(explorer: Explorer, token: str, volume_token: str = "", origin: str = "") -> Starlette:
    """Make the application of one session.

    Args:
        token: Secret first part of every path of the page.
        volume_token: Secret first part of the paths of volumes; empty serves none.
        origin: The other origin that may read volumes.

    Returns:
        The application.
    """
    static = {name: files("cem_assets.web").joinpath("static", name).read_bytes() for name in STATIC}

    def page(request: Request) -> Response:
        name = request.path_params.get("name", "explore.html")
        if name not in static:
            raise HTTPException(404)
        return Response(static[name], media_type=STATIC[name], headers={"cache-control": "no-cache"})

    def selected(request: Request) -> Selection:
        return Selection.model_validate(dict(request.query_params))

    def overview(request: Request) -> Response:
        del request
        return JSONResponse(explorer.overview())

    def rows(request: Request) -> Response:
        return JSONResponse({"rows": explorer.questions.rows(selected(request))})

    def count(request: Request) -> Response:
        return JSONResponse({"num": explorer.questions.count(selected(request))})

    def facets(request: Request) -> Response:
        return JSONResponse(explorer.questions.facets(selected(request)))

    def labels(request: Request) -> Response:
        selection = selected(request)
        if not selection.is_cyto:
            raise DataError(f"labels belong to crops; the stage {selection.stage} has none.")
        return JSONResponse({"labels": explorer.questions.labels(selection)})

    def patch(request: Request) -> Response:
        wish = ItemWish.model_validate(dict(request.query_params))
        if wish.stage not in STAGES:
            raise DataError(f"expected one of the stages {', '.join(STAGES)}")
        tell = explorer.details.crop if wish.stage in CYTO_STAGES else explorer.details.patch
        return JSONResponse(tell(wish.stage, wish.version, wish.partition, wish.name))

    def image(request: Request) -> Response:
        wish = PictureWish.model_validate(dict(request.query_params))
        if wish.stage not in STAGES:
            raise DataError(f"expected one of the stages {', '.join(STAGES)}")
        data, is_for_good = explorer.picture(wish)
        kind = "image/png" if wish.exact else "image/jpeg"
        return Response(data, media_type=kind, headers=_FOR_GOOD if is_for_good else _FOR_A_WHILE)

    def slice_(request: Request) -> Response:
        data = explorer.slice(SliceWish.model_validate(dict(request.query_params)))
        return Response(data, media_type="image/jpeg", headers=_FOR_A_WHILE)

    def progress(request: Request) -> Response:
        del request
        return JSONResponse({"num_rows_copied": explorer.catalogue.cache.num_rows_copied})

    def volume(request: Request) -> Response:
        data = explorer.volume_object(request.path_params["dataset"], request.path_params["path"])
        headers = {"accept-ranges": "bytes", **_FOR_A_WHILE}
        if span := _range(request.headers.get("range", ""), len(data)):
            headers["content-range"] = f"bytes {span[0]}-{span[1] - 1}/{len(data)}"
            return Response(data[span[0] : span[1]], 206, headers, "application/octet-stream")
        return Response(data, media_type="application/octet-stream", headers=headers)

    def allow(request: Request) -> Response:
        del request  # the doorkeeper has checked the origin, and tells the browser which origin may send requests
        more = {"access-control-allow-methods": "GET, HEAD", "access-control-allow-headers": "range"}
        return Response(status_code=204, headers=more | {"access-control-allow-private-network": "true"})

    async def wrong(request: Request, error: Exception) -> Response:
        del request
        return PlainTextResponse(str(error)[:500], 400)

    async def absent(request: Request, error: Exception) -> Response:
        del request
        return PlainTextResponse(str(error)[:500], 404)

    async def failed(request: Request, error: Exception) -> Response:
        logger.warning("%s: %s", request.url.path.rsplit("/", 1)[-1], error)
        return PlainTextResponse(str(error)[:500], 503)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        del app
        yield
        explorer.catalogue.close()

    answers = {
        "": page, "static/{name}": page, "overview": overview, "rows": rows, "count": count, "facets": facets, "labels": labels,
        "patch": patch, "image": image, "slice": slice_, "progress": progress,
    }  # fmt: skip
    routes = [Route(f"/{token}/{path}", answer) for path, answer in answers.items()]
    if volume_token:
        routes.append(Route(f"/{volume_token}/{{dataset}}/{{path:path}}", allow, methods=["OPTIONS"]))
        routes.append(Route(f"/{volume_token}/{{dataset}}/{{path:path}}", volume))
    guests = {volume_token: origin} if volume_token else {}
    return Starlette(
        routes=routes,
        middleware=[Middleware(Doorkeeper, token=token, command="cem-assets explore", guests=guests)],
        exception_handlers={
            ValidationError: wrong, DataError: wrong, UnknownNameError: absent, FileNotFoundError: absent,
            OSError: failed, duckdb.Error: failed, pa.ArrowException: failed,
        },
        lifespan=lifespan,
    )  # fmt: skip
