"""Which addresses may be asked for: no private hosts, no credentials, no downgrade, no local files outside named folders.

Catalogue rows and redirects are untrusted: they must not make this machine read its own services or files. What is then
read is `cem_assets.sources.files.origins`. A name is resolved here and once more by the connection; a name server that lies
between the two is not caught, which is why contents are checked by digest.
"""

import ipaddress
import os
import socket
from pathlib import Path
from urllib.parse import unquote, urlsplit

import requests

from cem_assets import environment
from cem_assets.errors import DataError

_NETWORK_SCHEMES = ("https", "http", "ftp")


def check_address(url: str) -> str:
    """Return an https, http or ftp address unchanged, or refuse it.

    Raises:
        DataError: It is of another kind, or has credentials or invisible characters.
        PermissionError: It leads to this machine or a private network, and CEM_ASSETS_ALLOW_PRIVATE_SOURCES is not "yes".
        ConnectionError: Its host has no address.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise DataError(f"address {url[:200]!r} is malformed: {error}; expected https://host/path.") from error
    if parts.scheme not in _NETWORK_SCHEMES or not host or not url.isprintable():
        raise DataError(f"address {url[:200]!r} is of no known kind; expected https://, http:// or ftp:// with a host.")
    if "@" in parts.netloc:
        raise DataError(f"address {parts.scheme}://{host}/... has credentials; expected a public address without them.")
    if environment.is_yes(environment.ALLOW_PRIVATE_SOURCES):
        return url
    proxies = requests.utils.get_environ_proxies(url)  # names hosts without a proxy as well, so its truth says nothing
    has_proxy = parts.scheme != "ftp" and requests.utils.select_proxy(url, proxies) is not None
    private = _private_address(host, port, has_proxy)
    if private:
        raise PermissionError(
            f"{url} leads to {private}, which is this machine or a private network; expected a public host. Set "
            f"{environment.ALLOW_PRIVATE_SOURCES}=yes where the catalogue is your own and names internal mirrors on purpose."
        )
    return url


def _private_address(host: str, port: int | None, has_proxy: bool) -> str | None:
    """Return the first address of a host that is not public, or None."""
    try:
        found = [str(ipaddress.ip_address(host))]
    except ValueError:
        if host == "localhost" or host.endswith((".localhost", ".local", ".internal")):
            return host
        if has_proxy:  # the proxy resolves the name; here it may have no address
            return None
        try:
            found = [str(entry[4][0]) for entry in socket.getaddrinfo(host, port or 443, type=socket.SOCK_STREAM)]
        except OSError as error:
            raise ConnectionError(f"host {host!r} has no address: {error}. Check the spelling and the network.") from error
    for text in found:
        address = ipaddress.ip_address(text.split("%")[0])
        mapped = getattr(address, "ipv4_mapped", None) or address
        if not mapped.is_global or mapped.is_multicast:
            return text
    return None


def check_redirect(url: str, target: str) -> str:
    """Return the target of a redirect unchanged, or refuse it.

    Raises:
        DataError: It leads from https to anything else, from http to another kind, or breaks the rules of `check_address`.
        PermissionError: As `check_address`.
    """
    before, after = urlsplit(url).scheme, urlsplit(target).scheme
    if after not in ("https", "http") or (before == "https" and after != "https"):
        raise DataError(f"{url} leads to {target[:200]!r}; expected https to stay https. Check the address.")
    return check_address(target)


def local_mirror_file(url: str) -> Path:
    """Return the file of a `file://` address, which must lie below a folder named in CEM_ASSETS_MIRROR_FOLDERS.

    Raises:
        PermissionError: It lies elsewhere, also by a link.
        FileNotFoundError: It is not there, or no plain file.
    """
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise DataError(f"{url} names a host; expected file:///folder/file.")
    folders = [Path(text).resolve() for text in environment.text(environment.MIRROR_FOLDERS).split(os.pathsep) if text]
    path = Path(unquote(parts.path)).resolve()
    if not any(path.is_relative_to(folder) for folder in folders):
        raise PermissionError(
            f"{url} lies in no folder of mirrors; expected one of {[str(folder) for folder in folders]}. Name its folder in "
            f"{environment.MIRROR_FOLDERS} (several are separated by {os.pathsep!r})."
        )
    if not path.is_file():
        raise FileNotFoundError(f"{url} is not there, or no plain file; expected the mirrored file.")
    return path
