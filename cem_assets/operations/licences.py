"""Licences that somebody must accept before a source is fetched: `settings/licences.toml` in the store names those sources.

Some archives allow their files to be used only by people who agreed to their terms. A program cannot agree to them, so a person
does, by writing down the name of the source.
"""

import tomllib

from cem_assets.errors import DataError
from cem_assets.store.store import Store

SETTINGS = "settings/licences.toml"

_MAX_BYTES = 1 << 20
_EXAMPLE = 'accepted = ["name_of_a_source"]\n'


def accepted_licences(store: Store) -> frozenset[str]:
    """Return the sources whose licences were accepted; none where there is no settings file.

    Raises:
        DataError: The file is no TOML, or holds something else than a list of names.
    """
    size = store.size(SETTINGS)
    if size is None:
        return frozenset()
    if size > _MAX_BYTES:
        raise DataError(f"{SETTINGS} has {size} bytes; expected at most {_MAX_BYTES}. Shorten it.")
    try:
        data = tomllib.loads(store.read(SETTINGS).decode("utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{SETTINGS} is not valid TOML in UTF-8: {error}. An example:\n{_EXAMPLE}") from error
    names = data.get("accepted")
    if set(data) != {"accepted"} or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{SETTINGS} has {', '.join(sorted(data)) or 'nothing'}; expected a list of names:\n{_EXAMPLE}")
    return frozenset(names)


def check_licence_accepted(store: Store, name: str, licence: str, source_url: str) -> None:
    """Refuse to go on with a source whose licence nobody accepted.

    Args:
        name: The source.
        licence: Its licence in the archive's words.
        source_url: Where its terms can be read.

    Raises:
        PermissionError: The settings do not name the source; the message says how to accept its licence.
        DataError: The settings are malformed.
    """
    accepted = accepted_licences(store)
    if name not in accepted:
        line = ", ".join(f'"{item}"' for item in sorted({*accepted, name}))
        raise PermissionError(
            f"{name!r} may be fetched only by those who accept its licence ({licence}; see {source_url or 'its source'}). "
            f"If you do, write into {store.url_of(SETTINGS)}:\naccepted = [{line}]"
        )
