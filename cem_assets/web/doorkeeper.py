"""Guards our local pages: requests need the token, this host's own name, and the page's own origin.

The pages are `cem_assets.web.labelling` and `cem_assets.web.explorer`.
"""

import hmac
from collections.abc import Callable, Mapping

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOSTS = frozenset({"127.0.0.1", "localhost"})
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class Doorkeeper:
    """Refuses requests that lack the token, come from another origin, or use another host's name.

    The host is checked because a name that an attacker's server resolves to 127.0.0.1 makes this server look like
    the attacker's origin (DNS rebinding); any port will do, so that the page can be reached through a tunnel.

    Args:
        token: Secret first part of every path.
        command: The command that prints a valid address; it is named in the refusal.
        guests: Further tokens, each with an origin that may also request what lies under its token.
        is_public: Tells whether a path needs no token. Such a path can only be read, and only under our own host names.
    """

    def __init__(
        self,
        app: ASGIApp,
        token: str,
        command: str,
        guests: Mapping[str, str] | None = None,
        is_public: Callable[[str], bool] = lambda path: False,
    ) -> None:
        self._app, self._command, self._is_public = app, command, is_public
        self._guests: dict[bytes, str | None] = {key.encode(): origin for key, origin in (guests or {}).items()}
        self._tokens = [token.encode(), *self._guests]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        host, origin = headers.get("host", ""), headers.get("origin")
        first = scope["path"].removeprefix("/").split("/")[0].encode()
        known = [token for token in self._tokens if hmac.compare_digest(first, token)]
        guest = self._guests.get(known[0]) if known else None
        refusal = None
        if host.rsplit(":", 1)[0] not in HOSTS:
            refusal = "this page answers under 127.0.0.1 and localhost only"
        elif origin is not None and origin not in (f"http://{host}", guest):
            refusal = "this page takes no requests of other origins"
        elif not known and not (self._is_public(scope["path"]) and scope["method"] in ("GET", "HEAD")):
            refusal = f"the address lacks this session's token; open the one that {self._command} printed"
        if refusal:
            await PlainTextResponse(refusal, 403, HEADERS)(scope, receive, send)
            return
        more = dict(HEADERS)
        if guest:
            more |= {"access-control-allow-origin": guest, "vary": "origin"}

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] += [(name.encode(), value.encode()) for name, value in more.items()]
            await send(message)

        await self._app(scope, receive, send_guarded)
