"""Which addresses are allowed: no private hosts, no credentials, no change from https to http, no files outside named folders.

Catalogue rows and redirects are not trusted: they must not make this machine read its own services or files.
`cem_assets.sources.files.origins` checks an address here before it opens it. A host name is resolved here and once more by the
connection. A name server that answers differently the second time is not noticed, which is one reason to check contents by
their digest.
"""

import ipaddress
import os
import socket
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

import requests

from cem_assets import environment
from cem_assets.errors import DataError

_NETWORK_SCHEMES = ("https", "http", "ftp")


def split_address(url: str) -> tuple[SplitResult, int | None]:
    """Return the parts of an address, and its port where it names one.

    Raises:
        DataError: The address is malformed.
    """
    try:
        parts = urlsplit(url)
        return parts, parts.port
    except ValueError as error:
        raise DataError(f"address {url[:200]!r} is malformed: {error}; expected https://host/path.") from error


def check_address(url: str) -> str:
    """Return an https, http or ftp address unchanged, or refuse it.

    Raises:
        DataError: The address is of another kind, or has credentials or invisible characters.
        PermissionError: It leads to this machine or a private network, and CEM_ASSETS_ALLOW_PRIVATE_SOURCES is not "yes".
        ConnectionError: Its host has no address.
    """
    parts, port = split_address(url)
    host = parts.hostname
    if parts.scheme not in _NETWORK_SCHEMES or not host or not url.isprintable():
        raise DataError(f"address {url[:200]!r} is of no known kind; expected https://, http:// or ftp:// with a host.")
    if "@" in parts.netloc:
        raise DataError(f"address {parts.scheme}://{host}/... has credentials; expected a public address without them.")
    if environment.is_yes(environment.ALLOW_PRIVATE_SOURCES):
        return url
    proxies = requests.utils.get_environ_proxies(url)  # also has an entry for NO_PROXY, so it may be filled without any proxy
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
        if has_proxy:  # the proxy resolves the name, which may have no address here
            return None
        try:
            found = [str(entry[4][0]) for entry in socket.getaddrinfo(host, port or 443, type=socket.SOCK_STREAM)]
        except (OSError, UnicodeError) as error:  # UnicodeError: a part of the name is empty or too long
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
        DataError: The target is neither https nor http, is http after https, or breaks the rules of `check_address`.
        PermissionError, ConnectionError: As `check_address`.
    """
    before, after = split_address(url)[0].scheme, split_address(target)[0].scheme
    if after not in ("https", "http") or (before == "https" and after != "https"):
        raise DataError(f"{url} leads to {target[:200]!r}; expected https to stay https. Check the address.")
    return check_address(target)


def local_mirror_file(url: str) -> Path:
    """Return the file of a `file://` address, which must lie below a folder named in CEM_ASSETS_MIRROR_FOLDERS.

    Raises:
        DataError: The address names a host.
        PermissionError: The file lies elsewhere, or a link leads elsewhere.
        FileNotFoundError: The file is not there, or is no plain file.
    """
    parts, _ = split_address(url)
    if parts.netloc not in ("", "localhost"):
        raise DataError(f"{url} names a host; expected file:///folder/file.")
    folders = [Path(text).resolve() for text in environment.text(environment.MIRROR_FOLDERS).split(os.pathsep) if text]
    if not unquote(parts.path).isprintable():
        raise DataError(f"{url[:200]!r} has control or invisible characters; expected file:///folder/file.")
    path = Path(unquote(parts.path)).resolve()
    if not any(path.is_relative_to(folder) for folder in folders):
        raise PermissionError(
            f"{url} lies in no folder of mirrors; expected one of {[str(folder) for folder in folders]}. Name its folder in "
            f"{environment.MIRROR_FOLDERS} (several are separated by {os.pathsep!r})."
        )
    if not path.is_file():
        raise FileNotFoundError(f"{url} is not there, or no plain file; expected the mirrored file.")
    return path
