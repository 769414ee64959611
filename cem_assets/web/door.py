"""A public address that leads to the labelling page whoever has opened the page before.

Asset metadata must hold no secret, but the address of the page does. Metadata therefore link to this door, which has a fixed
port and knows no token. A browser that has opened the page with its token remembers the address (`static/label.js` stores it)
and is sent there; any other browser is shown the command to type. The links are made by `cem_assets.cem.page_links`.
"""

import html
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Label patches of {name}</title>
<link rel="stylesheet" href="/door/label.css">
<script type="module" src="/door/door.js"></script>
</head>
<body data-dataset="{name}">
<main><section>
<h1>Patches of {name}</h1>
<p id="said">This browser has not opened the labelling page of <b>{name}</b> on this computer yet, or another dataset is being
labelled at the moment. In a terminal, run</p>
<pre>cem-assets label {name}</pre>
<p>and open the address it prints. From then on this link leads there.</p>
</section></main>
</body>
</html>
"""
_FILES = {"door.js": "text/javascript", "label.css": "text/css"}


def is_door(path: str) -> bool:
    """Tell whether a path belongs to the door, which needs no token and reveals nothing."""
    return path.startswith("/door/")


def door_routes() -> list[Route]:
    """Make the routes of the door."""
    static = {name: files("cem_assets.web").joinpath("static", name).read_bytes() for name in _FILES}

    def page(request: Request) -> Response:
        return HTMLResponse(_PAGE.format(name=html.escape(request.path_params["dataset"][:100])))

    def file(request: Request) -> Response:
        name = request.url.path.rsplit("/", 1)[-1]
        return Response(static[name], media_type=_FILES[name], headers={"cache-control": "no-cache"})

    return [Route("/door/label/{dataset}", page), *(Route(f"/door/{name}", file) for name in _FILES)]
