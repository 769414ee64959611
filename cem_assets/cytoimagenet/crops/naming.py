"""The names of folders and images, and the split into training and validation images, in the form of the published data set."""

import hashlib
import re
from collections.abc import Sequence

from cem_assets.cytoimagenet.labels.rule import keyed_hashes

VALIDATION_SHARE = 0.1
_MAX_FOLDER_BYTES = 200
"""File systems allow names of 255 bytes; the name of an image is that of its folder and a number."""
_TAKEN = ("metadata.csv", "splits.csv", "release.json", "readme.md")
"""Names of files beside the folders of labels, which no label can use."""
_UNSAFE = re.compile(r"[\x00-\x1f\x7f/\\:*?\"<>|]+")


def label_folder(label: str, category: str) -> str:
    """Return the folder of a label, which is the label itself, as published, if that can be the name of a folder.

    Otherwise characters that file systems refuse become "_", long names are cut, and 8 hexadecimal digits are appended so that
    such labels have different folders.
    """
    clean = _UNSAFE.sub("_", label).strip(" .").encode()[:_MAX_FOLDER_BYTES].decode(errors="ignore").strip(" .")
    if clean == label and label not in _TAKEN:
        return label
    return f"{clean or 'label'}-{hashlib.sha256(chr(0).join((category, label)).encode()).hexdigest()[:8]}"


def image_name(folder: str, number: int) -> str:
    """Return the published name of the n-th image of a label, with n in binary digits: "human-00001011.png" for 11."""
    return f"{folder}-{number:08b}.png"


def splits(identities: Sequence[str], seed: int = 0, share: float = VALIDATION_SHARE) -> list[str]:
    """Split source images into training and validation images by a keyed hash of each one's identity.

    About `share` of each label's source images are for validation. The split of an image depends only on its own identity, so
    adding data never moves an image, and all crops of an image are on the same side.

    Args:
        identities: Identities of source images, such as "bbbc013/images/a.tif".
        seed: Key of the hash.
        share: Share of validation images.

    Returns:
        "train" or "validation" for each image.
    """
    limit = int(share * 2**64)
    return ["validation" if int(value) < limit else "train" for value in keyed_hashes(identities, seed)]
