"""The inbox: folders of files with a `dataset.toml`.

A dataset is complete when its `dataset.toml` is there, which is written last. This module lists and hashes the files, and
refuses names that could do harm, because uploaded names are not trusted. `cem_assets.inbox.intake` decides which files make
which volume.
"""

import hashlib
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import tomlkit

from cem_assets.catalog.description import EXAMPLE, MAX_TOML_BYTES, DatasetDescription, check_dataset_name, parse_description
from cem_assets.errors import DataError
from cem_assets.formats import expected_suffixes
from cem_assets.formats.arrays import shown
from cem_assets.store.manifests import canonical_json
from cem_assets.store.partition_listing import marked_folders
from cem_assets.store.store import Store, StoredObject

HashOf = Callable[[str, int], str]
"""Returns the sha256 of an object, given its key and its size in bytes."""

INBOX = "inbox"
DESCRIPTION = "dataset.toml"

_JUNK = re.compile(r"^\.|/\.(?!z(array|group|attrs|metadata)$)|(^|/)(__MACOSX/|Thumbs\.db$|desktop\.ini$)")
"""Files that operating systems leave behind. Hidden files that describe a Zarr v2 store in a folder are not among them."""
_MAX_PART_BYTES = 255
MAX_NAME = 160
"""Most characters of a volume's name, and of a path in a message."""


@dataclass(frozen=True)
class Rejection:
    """A file or volume that was refused, while the rest of the dataset was used.

    Attributes:
        what: The file or volume, relative to the dataset's folder.
        reason: What was expected, what was found, and the remedy.
    """

    what: str
    reason: str


@dataclass(frozen=True)
class InboxFile:
    """A file of a dataset.

    Attributes:
        path: Relative to the dataset's folder.
        sha256: Hex digest of its bytes.
    """

    path: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class InboxDataset:
    """A complete dataset of the inbox.

    Attributes:
        description: What its curator says.
        files: All files in order of path, with `dataset.toml`.
        rejections: Files whose names are not allowed.
    """

    description: DatasetDescription
    files: tuple[InboxFile, ...]
    rejections: tuple[Rejection, ...]

    @property
    def name(self) -> str:
        return self.description.name

    def under(self, folder: str) -> tuple[InboxFile, ...]:
        """Return the files in a folder of the dataset, at any depth."""
        first, behind = (bisect_left(self.files, f"{folder}{end}", key=lambda file: file.path) for end in ("/", "0"))
        return self.files[first:behind]  # "0" is the character after "/"

    @property
    def digest(self) -> str:
        """The sha256 over path, size and sha256 of every file, which changes when anything in the dataset does."""
        rows = [[item.path, item.num_bytes, item.sha256] for item in self.files]
        return hashlib.sha256(canonical_json(rows)).hexdigest()


def dataset_key(dataset: str, path: str) -> str:
    """Return the key of a dataset's file."""
    return f"{INBOX}/{dataset}/{path}"


def read_description(store: Store, dataset: str) -> DatasetDescription:
    """Read the `dataset.toml` of a dataset in the inbox.

    Args:
        dataset: Name of its folder, which is also its partition key.

    Raises:
        FileNotFoundError: The folder has no `dataset.toml`.
        DataError: The file breaks a rule, or names another dataset than its folder.
    """
    if problem := check_dataset_name(dataset):
        raise DataError(problem)
    key = dataset_key(dataset, DESCRIPTION)
    size = store.size(key)
    if size is None:
        raise FileNotFoundError(
            f"{key} is missing in {store.url}; a dataset is a folder of files with a {DESCRIPTION}, written last. An "
            f"example:\n{EXAMPLE}"
        )
    if size > MAX_TOML_BYTES:
        raise DataError(f"{key} has {size} bytes; expected at most {MAX_TOML_BYTES}. Shorten it.")
    description = parse_description(store.read(key), key)
    if description.name != dataset:
        raise DataError(
            f"{key} says name = {description.name!r}, but its folder is {dataset!r}; expected the same, so that no two "
            "folders can be one dataset. Rename the folder or the dataset."
        )
    return description


def read_inbox(store: Store, dataset: str, hash_of: HashOf | None = None) -> InboxDataset:
    """List and hash the files of a dataset.

    Args:
        dataset: Name of its folder.
        hash_of: Another way to hash objects, such as one that keeps copies; see `listed_files`.

    Raises:
        FileNotFoundError: There is no such dataset.
        DataError: Its description breaks a rule, or there is no file beside it.
    """
    description = read_description(store, dataset)
    files, rejections = listed_files(store, dataset, hash_of)
    if len(files) < 2:
        raise DataError(
            f"dataset {dataset!r} has no files beside its {DESCRIPTION}; expected images of type {expected_suffixes()}. "
            "Upload them, and dataset.toml last."
        )
    return InboxDataset(description, files, rejections)


def listed_files(
    store: Store, dataset: str, hash_of: HashOf | None = None
) -> tuple[tuple[InboxFile, ...], tuple[Rejection, ...]]:
    """List and hash the files of a folder of the inbox, in order of path; names that are not allowed are rejected.

    Args:
        dataset: Name of the folder.
        hash_of: Returns the sha256 of an object, and is called from several threads; None takes `Store.sha256`.
    """
    hashed = hash_of or (lambda key, _: store.sha256(key))
    base = f"{INBOX}/{dataset}/"
    allowed, rejections = [], []
    for item in store.walk(base.rstrip("/")):
        path = item.key[len(base) :]
        if _JUNK.search(path):
            continue
        if problem := path_problem(path):
            rejections.append(Rejection(shown_path(path), problem))
        else:
            allowed.append((path, item.num_bytes))
    with ThreadPoolExecutor(8) as pool:
        hashes = list(pool.map(lambda entry: hashed(base + entry[0], entry[1]), allowed))
    files = [InboxFile(path, size, digest) for (path, size), digest in zip(allowed, hashes, strict=True)]
    return tuple(files), tuple(rejections)


def path_problem(path: str) -> str | None:
    """Say why an uploaded file's path is not allowed; None where it is allowed.

    Blanks, commas, leading dashes and letters of any script are allowed in file names, because real archives have them. Paths
    that could leave the folder, look like others, or break a file system are not.
    """
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\\" in path:
        return "its path has an empty, '.' or '..' part or a backslash; expected plain folder and file names. Rename it."
    if any(not character.isprintable() for character in path):
        return "its path has control or invisible characters; expected printable ones. Rename it."
    longest = max(len(part.encode()) for part in parts)
    if longest > _MAX_PART_BYTES or len(path) > 800:
        return f"a part of its path has {longest} bytes; expected at most {_MAX_PART_BYTES}. Rename it."
    return None


def shown_path(path: str) -> str:
    """Return a path for a message or table, with printable characters only, 160 at most."""
    text = "".join(character if character.isprintable() else "?" for character in path)
    return text if len(text) <= MAX_NAME else f"{text[: MAX_NAME - 3]}..."


def register_folder(store: Store, folder: Path, name: str | None = None, replace: bool = False) -> str:
    """Copy a local folder into the inbox, with its `dataset.toml` last.

    Args:
        folder: A folder of files with a `dataset.toml`.
        name: The dataset's name, if it should be another than the one in `dataset.toml`.
        replace: Whether other files of a dataset of that name may be replaced.

    Returns:
        The dataset's name.

    Raises:
        FileNotFoundError: There is no such folder, or no `dataset.toml` in it.
        DataError: The description breaks a rule.
        FileExistsError: A dataset of that name with other files is in the inbox already.
    """
    toml = folder / DESCRIPTION
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; expected a folder of images with a {DESCRIPTION}.")
    if not toml.is_file():
        raise FileNotFoundError(f"{folder} has no {DESCRIPTION}; write one beside the images. An example:\n{EXAMPLE}")
    text = toml.read_bytes()
    if name is not None:
        if problem := check_dataset_name(name):
            raise DataError(problem)
        text = _renamed(text, name, str(toml))
    description = parse_description(text, str(toml))
    copy_to_inbox(store, folder, description.name, DESCRIPTION, text, replace)
    return description.name


def copy_to_inbox(store: Store, folder: Path, name: str, marker: str, text: bytes, replace: bool) -> None:
    """Copy a local folder's files into the inbox, and last the file that marks the folder as complete.

    Args:
        folder: The local folder.
        name: Name of the folder in the inbox.
        marker: Name of the file that marks it as complete, such as "dataset.toml".
        text: Contents of that file.
        replace: Whether other files of a folder of that name may be replaced.

    Raises:
        DataError: There is no file beside the marker, or a name is not allowed.
        FileExistsError: The inbox has other files under that name.
    """
    local = {path: folder / path for path in _local_files(folder, marker)}
    if len(local) < 1:
        raise DataError(f"{folder} has no files beside its {marker}; expected images of type {expected_suffixes()}, or tables.")
    base = f"{INBOX}/{name}"
    there = {item.key[len(base) + 1 :]: item.num_bytes for item in store.walk(base)}
    wanted = {path: file.stat().st_size for path, file in local.items()}
    if marker in there:
        if _same_files(store, base, there, local, marker, text):
            return
        if not replace:
            raise FileExistsError(
                f"the inbox of {store.url} has a dataset {name!r} already, with other files. Give another name "
                "(--name), or replace it as a new version (--replace)."
            )
        store.delete([f"{base}/{marker}"])  # the dataset is incomplete from here until the new marker is written, last
    stale = sorted(set(there) - set(wanted) - {marker})
    store.delete(f"{base}/{path}" for path in stale)
    for path, file in local.items():
        store.put(f"{base}/{path}", file)
    store.put(f"{base}/{marker}", text)


def _same_files(store: Store, base: str, there: dict[str, int], local: dict[str, Path], marker: str, text: bytes) -> bool:
    if set(there) - {marker} != set(local) or store.read(f"{base}/{marker}") != text:
        return False
    if any(there[path] != file.stat().st_size for path, file in local.items()):
        return False
    for path, file in local.items():
        with open(file, "rb") as handle:
            if hashlib.file_digest(handle, "sha256").hexdigest() != store.sha256(f"{base}/{path}"):
                return False
    return True


def _local_files(folder: Path, marker: str) -> list[str]:
    """List a folder's files, relative to it; links that lead out of the folder are refused."""
    root = folder.resolve()
    found = []
    for file in sorted(folder.rglob("*")):
        path = file.relative_to(folder).as_posix()
        if not file.is_file() or _JUNK.search(path) or path == marker:
            continue
        if problem := path_problem(path):
            raise DataError(f"{shown(file)}: {problem}")
        if not file.resolve().is_relative_to(root):
            raise DataError(f"{path} is a link that leads out of {folder}; expected files. Copy the file itself.")
        found.append(path)
    return found


def _renamed(text: bytes, name: str, where: str) -> bytes:
    try:
        document = tomlkit.parse(text.decode("utf-8-sig"))
    except (UnicodeDecodeError, tomlkit.exceptions.ParseError) as error:
        raise DataError(f"{where} is not valid TOML in UTF-8: {error}. An example:\n{EXAMPLE}") from error
    document["name"] = name
    return tomlkit.dumps(document).encode()


@dataclass(frozen=True)
class Arrival:
    """A complete dataset of the inbox, as a listing shows it.

    Attributes:
        dataset: Name of its folder.
        fingerprint: 16 hex digits over size, tag and time of its `dataset.toml`; every upload has its own.
        modified: When `dataset.toml` was written, in seconds since 1970.
    """

    dataset: str
    fingerprint: str
    modified: float


def arrival_of(store: Store, dataset: str, marker: str = DESCRIPTION) -> Arrival | None:
    """Look whether a dataset of the inbox, or a microscopy source by its marker, is complete. This takes one request."""
    found = store.stat(dataset_key(dataset, marker))
    return None if found is None else _arrival(dataset, found)


def _arrival(dataset: str, found: StoredObject) -> Arrival:
    facts = canonical_json([found.num_bytes, found.tag, f"{found.modified:.6f}"])
    return Arrival(dataset, hashlib.sha256(facts).hexdigest()[:16], found.modified)


def arrivals(store: Store, after: str = "", marker: str = DESCRIPTION) -> Iterator[Arrival]:
    """Look for complete datasets, or for microscopy sources by their marker, as long as the caller asks for more.

    Args:
        after: Begin after this name.
        marker: Name of the file that is written last.

    Yields:
        Datasets in the order of `cem_assets.store.partition_listing.place`.
    """
    for dataset, found in marked_folders(store, INBOX, marker, after):
        if found is not None:
            yield _arrival(dataset, found)
