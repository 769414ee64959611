"""The images of a source: which files are the channels of one image, and to which rows of the tables they belong.

A field of view that was recorded in several channels is one row. Channels of another modality, such as brightfield beside
fluorescence, become a row of their own. Only paths are used here; no file is opened.
"""

import re
from collections.abc import Sequence
from typing import Any

import pandas as pd

from cem_assets.cytoimagenet.sources.recipe import ChannelSpec, ImagesSpec, Recipe
from cem_assets.cytoimagenet.sources.values import fill

Dropped = tuple[str, str]
"""A row or file, and the reason why it was dropped."""

_ROW = "\0row"


def key_of(frame: pd.DataFrame, columns: Sequence[str]) -> pd.Series:
    """Make the text by which rows are joined.

    Args:
        columns: Names of columns, or templates over them.

    Returns:
        The cells of every row, joined into one text without case and surrounding blanks; empty if all cells are empty.
    """
    parts = [fill(column if "{" in column else f"{{{column}}}", frame, "a join") for column in columns]
    keys = [" \0 ".join(cell.strip().casefold() for cell in cells) for cells in zip(*parts, strict=True)]
    empty = " \0 ".join([""] * len(parts))
    return pd.Series(["" if key == empty else key for key in keys], index=frame.index, dtype="str")


def group_images(recipe: Recipe, frame: pd.DataFrame | None, paths: Sequence[str], dropped: list[Dropped]) -> pd.DataFrame:
    r"""Find the images with the recipe's pattern, and join them to the rows.

    Args:
        recipe: A recipe with a pattern of images.
        frame: Rows of the tables; None if there are no tables.
        paths: Paths of the image files.
        dropped: Files and rows that are left out are added to this list.

    Returns:
        One row per image (and row of the tables): columns of the tables, groups of the pattern, "\\0files" and "\\0channels".
    """
    images = recipe.images
    assert images is not None
    found = _groups(recipe, images, paths, dropped)
    if frame is None:
        return found
    key = [f"{{{name}}}" if "{" not in name else name for name in images.on]
    rows = frame.assign(**{"\0key": key_of(frame, key)})
    found = found.assign(**{"\0key": key_of(found, list(images.on.values()))})
    clash = [name for name in found.columns if name in rows.columns and name != "\0key"]
    merged = rows.merge(found.drop(columns=clash), on="\0key", how="left" if not images.is_required else "inner")
    is_lonely = ~found["\0key"].isin(set(rows["\0key"]))
    dropped += [(files[0], "no row of the tables belongs to it") for files in found.loc[is_lonely, "\0files"]]
    if images.is_required:
        is_lonely = ~rows["\0key"].isin(set(found["\0key"]))
        dropped += [(row, "no image belongs to it") for row in rows.loc[is_lonely, _ROW]]
    else:
        for column in ("\0files", "\0channels"):
            merged[column] = [cell if isinstance(cell, tuple) else () for cell in merged[column]]
        added = [name for name in merged.columns if name not in rows.columns and name not in ("\0files", "\0channels")]
        merged[added] = merged[added].fillna("")
    return merged.drop(columns="\0key")


def _groups(recipe: Recipe, images: ImagesSpec, paths: Sequence[str], dropped: list[Dropped]) -> pd.DataFrame:
    pattern = re.compile(images.pattern)
    names = [name for name in pattern.groupindex if name != "channel"]
    by_key = {channel.key.casefold(): channel for channel in recipe.channels}
    groups: dict[tuple[str, ...], dict[str, str]] = {}
    for path in sorted(paths):
        match = pattern.search(path)
        if match is None:
            dropped.append((path, "its path does not match the recipe's pattern of images"))
            continue
        key = tuple(match.group(name) or "" for name in names)
        if "channel" not in pattern.groupindex:
            # If the pattern has no channels, every file is an image of its own.
            groups[(*key, path)] = {"": path}
            continue
        channel = (match.group("channel") or "").casefold()
        if recipe.channels and channel not in by_key:
            dropped.append((path, f"its channel {channel!r} is not in the recipe"))
        elif channel in groups.setdefault(key, {}):
            dropped.append((path, f"a second file of channel {channel!r} of the same image"))
        else:
            groups[key][channel] = path
    rows = []
    for key, members in groups.items():
        channels = _channels_of(recipe, images, members)
        if members and not channels:
            dropped += [(path, "the recipe leaves its channel out") for path in members.values()]
        if channels:
            files = tuple(path for _, path in channels)
            shown = "_".join(part for part in key[: len(names)] if part)
            rows.append((*key[: len(names)], files, tuple(channel for channel, _ in channels), shown))
    columns = [*names, "\0files", "\0channels", "\0group"]
    table = pd.DataFrame({name: [row[place] for row in rows] for place, name in enumerate(columns)})
    return table.astype(dict.fromkeys([*names, "\0group"], "str"))


def _channels_of(recipe: Recipe, images: ImagesSpec, members: dict[str, str]) -> list[tuple[ChannelSpec, str]]:
    """Put the files of an image into the recipe's order of channels."""
    if set(members) == {""}:
        path = members[""]
        # The file has one channel, or one page for each channel: it is repeated, so that every channel has a file.
        specs = [channel for channel in recipe.channels if channel.is_used or images.is_pages]
        return [(channel, path) for channel in specs or [_plain()]]
    if not recipe.channels:
        return [(_plain(), members[key]) for key in sorted(members)]
    return [(c, members[c.key.casefold()]) for c in recipe.channels if c.is_used and c.key.casefold() in members]


def _plain() -> ChannelSpec:
    return ChannelSpec(name="", microscopy="")


def attach_listed_files(recipe: Recipe, frame: pd.DataFrame, paths: Sequence[str], dropped: list[Dropped]) -> pd.DataFrame:
    r"""Find the files that the tables name, by the whole path or by the end of a path if only one file ends like that.

    Args:
        recipe: A recipe whose channels have `file` templates.
        frame: Rows of the tables.
        paths: Paths of the image files.
        dropped: Rows that are left out are added to this list.

    Returns:
        The rows with "\\0files" and "\\0channels".
    """
    images = recipe.images
    assert images is not None
    known = _by_ending(paths)
    columns = [(channel, fill(channel.file, frame, "a channel's file")) for channel in recipe.channels if channel.is_used]
    files: list[Any] = []
    channels: list[Any] = []
    keep: list[bool] = []
    for place, row in enumerate(frame[_ROW]):
        found = [(channel, known.get(cells[place].strip("/").casefold())) for channel, cells in columns]
        there = [(channel, path) for channel, path in found if path]
        files.append(tuple(path for _, path in there))
        channels.append(tuple(channel for channel, _ in there))
        keep.append(bool(there) or not images.is_required)
        if not keep[-1]:
            dropped.append((row, f"the files it names are not there ({columns[0][1][place]!r} and others)"[:300]))
    table = frame.copy()
    table["\0files"], table["\0channels"] = files, channels
    return table[keep]


def _by_ending(paths: Sequence[str]) -> dict[str, str]:
    """Index paths by each of their endings; endings that two files share are left out."""
    known: dict[str, str] = {}
    ambiguous: set[str] = set()
    for path in paths:
        parts = path.casefold().split("/")
        for start in range(1, len(parts)):
            ending = "/".join(parts[start:])
            if ending in known:
                ambiguous.add(ending)
            known[ending] = path
    for ending in ambiguous:
        del known[ending]
    return {**known, **{path.casefold(): path for path in paths}}


def separate_modalities(recipe: Recipe, frame: pd.DataFrame) -> pd.DataFrame:
    r"""Make one row for each modality among an image's channels; "\\0suffix" makes their names differ."""
    is_pages = recipe.images is not None and recipe.images.is_pages and any(frame["\0files"])
    kinds = list(dict.fromkeys(channel.microscopy for channel in recipe.channels if channel.is_used))
    if len(kinds) < 2:
        if is_pages:
            return _used_pages(frame.assign(**{"\0suffix": ""}))
        return frame.assign(**{"\0suffix": ""})
    parts = []
    for kind in kinds:
        channels, files = [], []
        for specs, paths in zip(frame["\0channels"], frame["\0files"], strict=True):
            named = paths or [""] * len(specs)  # rows of tables alone have channels without files
            mine = [(c, p) for c, p in zip(specs, named, strict=True) if c.microscopy == kind or (is_pages and not c.is_used)]
            mine = mine if any(c.is_used for c, _ in mine) else []
            channels.append(tuple(c for c, _ in mine))
            files.append(tuple(p for _, p in mine if p))
        part = frame.copy()
        part["\0channels"], part["\0files"], part["\0suffix"] = channels, files, f"#{kind}"
        parts.append(part[[bool(found) for found in channels]])
    without = frame[[not found for found in frame["\0channels"]]].assign(**{"\0suffix": ""})
    merged = pd.concat([*parts, without], ignore_index=True)
    return _used_pages(merged) if is_pages else merged


def _used_pages(frame: pd.DataFrame) -> pd.DataFrame:
    """Add the number of each channel's page to its file, as in "a.tif#2", and leave out pages that are not used."""
    channels, files = [], []
    for specs, paths in zip(frame["\0channels"], frame["\0files"], strict=True):
        used = [(c, f"{p}#{c.key}") for c, p in zip(specs, paths, strict=True) if c.is_used]
        channels.append(tuple(c for c, _ in used))
        files.append(tuple(p for _, p in used))
    table = frame.copy()
    table["\0channels"], table["\0files"] = channels, files
    return table
