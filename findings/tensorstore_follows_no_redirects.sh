#!/usr/bin/env bash
# tensorstore 0.1.86: its http store follows no redirects, and the error does not say so.
#
# A Zarr v2 array is served under two addresses: /real/ answers, /moved/ answers every request with 302 to /real/.
# zarr 3.1.6 with fsspec 2026.2.0 and aiohttp reads both. tensorstore reads /real/ and fails on /moved/ with
# FAILED_PRECONDITION and the status of the redirect, which reads like a refused condition, not like a moved volume.
# Archives that hand out addresses through a resolver (DOI, handle, signed links) therefore open in one tool and not in
# the other. Who fetches with tensorstore has to resolve the address first.
#
# Seen: "zarr /real: 120", "zarr /moved: 120", "tensorstore /real: 120", "tensorstore /moved: FAILED_PRECONDITION".
# This script fails when any of these changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'tensorstore==0.1.86' 'zarr==3.1.6' 'fsspec==2026.2.0' 'aiohttp>=3.10,<4' 'requests>=2.32,<3'
cat >"$folder/look.py" <<'PYTHON'
import http.server
import os
import sys
import threading

import numpy as np
import tensorstore as ts
import zarr

folder = sys.argv[1]
written = zarr.create_array(f"{folder}/real", shape=(4, 5), chunks=(2, 5), dtype="u1", zarr_format=2, compressors=None)
written[:] = np.full((4, 5), 6, np.uint8)


class Handler(http.server.SimpleHTTPRequestHandler):
    def __init__(self, *args):
        super().__init__(*args, directory=folder)

    def redirected(self):
        if not self.path.startswith("/moved"):
            return False
        self.send_response(302)
        self.send_header("Location", self.path.replace("/moved", "/real", 1))
        self.send_header("Content-Length", "0")
        self.end_headers()
        return True

    def do_GET(self):
        if not self.redirected():
            super().do_GET()

    def do_HEAD(self):
        if not self.redirected():
            super().do_HEAD()

    def log_message(self, *args):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
base = f"http://127.0.0.1:{server.server_port}"
seen = []
for name in ("real", "moved"):
    seen.append(f"zarr /{name}: {int(np.sum(zarr.open_array(f'{base}/{name}', mode='r')[:]))}")
for name in ("real", "moved"):
    try:
        opened = ts.open({"driver": "zarr", "kvstore": f"{base}/{name}/"}, read=True).result()
        answer = str(int(opened.read().result().sum()))
    except Exception as error:
        answer = next((word for word in ("FAILED_PRECONDITION", "NOT_FOUND", "ABORTED") if word in str(error)), str(error))
    seen.append(f"tensorstore /{name}: {answer}")
print("\n".join(seen))
expected = ["zarr /real: 120", "zarr /moved: 120", "tensorstore /real: 120", "tensorstore /moved: FAILED_PRECONDITION"]
os._exit(0 if seen == expected else 1)
PYTHON
"$folder/venv/bin/python" "$folder/look.py" "$folder"
