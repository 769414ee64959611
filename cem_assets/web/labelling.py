"""The labelling page's application.

All paths begin with a secret; requests without it, and requests from pages of another origin, are refused.
`cem_assets.web.serving` opens the port; the page is `static/label.html`.

Trouble with the store, and files of the store that cannot be read, give a status of 503, after which the page tries again. An
error that is neither that nor a wrong request is a bug: it gets 500, and the server logs it with its traceback.
"""

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Annotated, Any

import pyarrow as pa
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from cem_assets.cem.classifier.answers import (
    LabelEvent,
    LabelLog,
    agreement,
    check_annotator,
    current_labels,
    write_label_table,
)
from cem_assets.cem.classifier.params import MIN_LABELLED
from cem_assets.errors import DataError
from cem_assets.store.store import Store
from cem_assets.web.door import door_routes, is_door
from cem_assets.web.doorkeeper import Doorkeeper
from cem_assets.web.next_patches import Order, next_patches
from cem_assets.web.patch_source import PatchPictures, find_candidates

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 1 << 18
MAX_ANSWERS = 100
MAX_AHEAD_MS = 24 * 3600 * 1000
"""An answer dated further in the future than this is refused, because no correction could replace it."""
SEED = 1227
STATIC = {"label.html": "text/html", "label.css": "text/css", "label.js": "text/javascript", "answers.js": "text/javascript"}


class NextRequest(BaseModel):
    """A page's request for patches: the annotator, how many, and the names of those that it holds already."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    annotator: Annotated[str, AfterValidator(check_annotator)]
    num: Annotated[int, Field(ge=1, le=200)] = 50
    held: Annotated[tuple[Annotated[str, Field(max_length=1024)], ...], Field(max_length=1000)] = ()


class LabellingSession:
    """The labelling session of one dataset: its patches, their pictures and the answers of all annotators.

    Args:
        order: Whether the patches of which the classifier is least sure come first, or random ones.
        seed: Seed of the random order.

    Raises:
        FileNotFoundError: The dataset has no patches to label.
        DataError: Label events in the store cannot be read.
    """

    def __init__(self, store: Store, dataset: str, order: Order = Order.uncertainty, seed: int = SEED) -> None:
        self.store, self.dataset = store, dataset
        self.candidates = find_candidates(store, dataset, order, seed)
        self.names: list[str] = self.candidates.rows["name"].to_pylist()
        self.pictures = PatchPictures(store, dataset, self.candidates)
        self.log = LabelLog(store, dataset)
        self.log.refresh()

    def describe(self, annotator: str) -> dict[str, Any]:
        """Return what a page needs to know when it starts; `annotator` is the proposed name."""
        return {
            "dataset": self.dataset,
            "store": hashlib.sha256(self.store.url.encode()).hexdigest()[:12],
            "annotator": annotator,
            "order": str(self.candidates.order),
            "asset": self.candidates.manifest.inputs.asset,
            "classifier": self.candidates.classifier,
            "version": self.candidates.manifest.digest[:12],
            "num_patches": self.candidates.num_patches,
            "num_needed": MIN_LABELLED,
        }

    def next(self, request: NextRequest) -> dict[str, Any]:
        """Choose patches for a page, none of which its annotator has answered in this or another session."""
        self.log.refresh()
        answered = {name for annotator, name in current_labels(self.log.events()) if annotator == request.annotator}
        names = next_patches(self.names, answered, set(request.held), request.num)
        return {"patches": names, "classifier": self.candidates.classifier}

    def take(self, answers: list[Any]) -> dict[str, Any]:
        """Store answers one by one; those listed as accepted are in the store.

        Args:
            answers: JSON of `LabelEvent`s without their dataset.

        Returns:
            "accepted" lists event ids; "refused" lists event ids with the reason. Sending refused answers again does not help.

        Raises:
            OSError: The store cannot be written; sending again may help.
        """
        accepted, refused = [], []
        for answer in answers:
            event_id = str(answer.get("event_id", ""))[:80] if isinstance(answer, dict) else ""
            try:
                if not isinstance(answer, dict):
                    raise DataError(f"an answer is a JSON object; found {type(answer).__name__}")
                event = LabelEvent.model_validate({**answer, "dataset": self.dataset})
                if event.name not in self.pictures:
                    raise DataError(f"patch {event.name!r} is not among the patches of {self.dataset} that are labelled here")
                if event.answered_ms > time.time() * 1000 + MAX_AHEAD_MS:
                    raise DataError("the answer is dated more than a day ahead; set the clock of the browser's machine")
                self.log.append(event)
            except (DataError, ValidationError) as error:
                refused.append({"event_id": event_id, "reason": str(error)[:500]})
            else:
                accepted.append(event.event_id)
        return {"accepted": accepted, "refused": refused}

    def progress(self) -> dict[str, Any]:
        """Count the answers of each annotator, and measure how far they agree."""
        self.log.refresh()
        labels = {place: str(event.label) for place, event in current_labels(self.log.events()).items()}
        counts: dict[str, dict[str, int]] = {}
        for (annotator, _), label in labels.items():
            counts.setdefault(annotator, {"good": 0, "bad": 0, "skip": 0})[label] += 1
        agreed = agreement(labels)
        return {
            "num_patches": self.candidates.num_patches,
            "num_labelled": len({name for (_, name), label in labels.items() if label != "skip"}),
            "annotators": [{"annotator": name, **counts[name]} for name in sorted(counts)],
            "num_shared": agreed.num_shared,
            "observed": agreed.observed,
            "kappa": agreed.kappa,
            "num_conflicts": len(agreed.conflicts),
        }


async def _body(request: Request) -> Any:
    if request.headers.get("content-type", "").split(";")[0] != "application/json":
        raise HTTPException(415, "expected application/json")
    data = b""
    async for piece in request.stream():
        data += piece
        if len(data) > MAX_BODY_BYTES:
            raise HTTPException(413, f"expected at most {MAX_BODY_BYTES} bytes")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "expected JSON") from error


def labelling_app(
    session: LabellingSession, token: str, annotator: str, on_end: Callable[[list[str]], None] = lambda lines: None
) -> Starlette:
    """Make the application of one session.

    Args:
        token: Secret first part of every path.
        annotator: Name that is proposed to whoever opens the page.
        on_end: Takes the closing message when the session has ended and its label table is written.

    Returns:
        The application; when it shuts down it writes the label table.
    """
    static = {name: files("cem_assets.web").joinpath("static", name).read_bytes() for name in STATIC}
    check_annotator(annotator)

    def page(request: Request) -> Response:
        name = request.path_params.get("name", "label.html")
        if name not in static:
            raise HTTPException(404)
        return Response(static[name], media_type=STATIC[name], headers={"cache-control": "no-cache"})

    def describe(request: Request) -> Response:
        del request
        return JSONResponse(session.describe(annotator))

    def image(request: Request) -> Response:
        name = request.query_params.get("name", "")
        if name not in session.pictures:
            raise HTTPException(404, "no such patch")
        # The address holds the version of the table, so equal addresses always have equal pixels.
        headers = {"cache-control": "private, max-age=604800, immutable"}
        return Response(session.pictures.png(name), media_type="image/png", headers=headers)

    def progress(request: Request) -> Response:
        del request
        return JSONResponse(session.progress())

    async def choose(request: Request) -> Response:
        wish = NextRequest.model_validate(await _body(request))
        return JSONResponse(await run_in_threadpool(session.next, wish))

    async def take(request: Request) -> Response:
        body = await _body(request)
        answers = body.get("answers") if isinstance(body, dict) else None
        if not isinstance(answers, list) or len(answers) > MAX_ANSWERS:
            raise HTTPException(400, f"expected answers, a list of at most {MAX_ANSWERS}")
        # Answers that arrived are written even if the page goes away meanwhile.
        return JSONResponse(await asyncio.shield(run_in_threadpool(session.take, answers)))

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        del app
        yield
        try:
            written = await run_in_threadpool(write_label_table, session.store, session.dataset)
        except (DataError, OSError) as error:
            on_end([f"the label table was not written: {error} The answers themselves are kept."])
        else:
            on_end(written.lines() if written else ["nothing was labelled"])

    async def unreadable(request: Request, error: Exception) -> Response:
        del request
        assert isinstance(error, ValidationError)
        return PlainTextResponse(str(error)[:500], 400)

    async def failed(request: Request, error: Exception) -> Response:
        logger.warning("%s: %s", request.url.path.rsplit("/", 1)[-1], error)
        return PlainTextResponse(str(error)[:500], 503)

    routes = [
        Route(f"/{token}/", page),
        Route(f"/{token}/static/{{name}}", page),
        Route(f"/{token}/session", describe),
        Route(f"/{token}/image", image),
        Route(f"/{token}/progress", progress),
        Route(f"/{token}/next", choose, methods=["POST"]),
        Route(f"/{token}/answers", take, methods=["POST"]),
        *door_routes(),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(Doorkeeper, token=token, command="cem-assets label", is_public=is_door)],
        exception_handlers={ValidationError: unreadable, OSError: failed, DataError: failed, pa.ArrowException: failed},
        lifespan=lifespan,
    )
