"""A fluorescence phantom: three small screens in the styles of real archives, drawn from a seed field by field.

It needs no network and no licence, and uses every step of the chain: there are tables to join, channels to merge, classes that
differ, and one field each that is black, saturated and uniform. It is not a simulation of optics, and the names of compounds
and genes only choose how a class is drawn. This module makes arrays and the bytes of tables; the demo writes the files. Equal
seeds give equal tables everywhere and equal pixels on one machine; on another machine pixels may differ by 1 after rounding.

  painting  4 channels, one 12-bit file each; `wells.csv` joined with `compounds.txt` (tabs, CR line ends) on Compound_ID
  knockdown 2 channels, one 12-bit file each; `library.txt` (tabs, BOM), genes by CRISPR on one plate, by siRNA on the other
  lineup    3 channels, pages of one 8-bit TIFF in the order of `channel_files`; `images.csv` without a header:
            path, plate, well, site, cell type, organism
"""

import csv
import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cem_assets.cytoimagenet.phantom.drawing import Canvas, Look, draw_cells

Fault = Literal["", "black", "saturated", "uniform"]

LICENCE = "CC0-1.0"
CITATION = "Fluorescence phantom made by cem_assets"
MAX_12_BIT = 4095
_ORGANISM = "Homo sapiens"
_WELLS = tuple(f"{row}{column:02d}" for row in "BCDE" for column in range(2, 9))
_ODD_SHARE = 0.0024
"""Share of hot pixels in a black field and of dark pixels in a saturated field. It is more than the 0.1 % that the percentiles
leave out, but still very little."""


@dataclass(frozen=True)
class PhantomField:
    """One field of view, drawn by `draw_field`.

    Attributes:
        channel_files: Relative path of each channel's file. Equal paths mean pages of one file, in this order.
        cell_type: What the tables say, like compound, gene and sirna; empty if they say nothing.
        seed: Seed of every draw.
        shape_px: (height, width).
        dtype: "uint16", of which 12 bits are used, or "uint8".
        fault: What is wrong with the field on purpose; empty if nothing is.
    """

    plate: str
    well: str
    site: int
    channel_files: dict[str, str]
    cell_type: str
    compound: str
    gene: str
    sirna: str
    seed: int
    shape_px: tuple[int, int]
    dtype: str
    fault: Fault = ""


@dataclass(frozen=True)
class PhantomSource:
    """A source in the form in which an archive would publish it.

    Attributes:
        name: Name of the source's folder.
        tables: The bytes of each table, by file name.
        fields: In order of plate, well and site.
    """

    name: str
    title: str
    licence: str
    citation: str
    tables: dict[str, bytes]
    fields: tuple[PhantomField, ...]


_CELL_TYPES = {
    "U2OS": Look(),
    "HeLa": Look(num_cells=22, nucleus_px=11.5, cell_px=23.0),
    "HepG2": Look(num_cells=34, nucleus_px=8.5, cell_px=13.5, elongation=1.05, er=1.5, actin=1.4),
    "HUVEC": Look(num_cells=9, nucleus_px=13.0, cell_px=42.0, elongation=1.9, actin=0.7),
}
_COMPOUNDS: dict[str, tuple[str, dict[str, Any]]] = {
    "DMSO": ("", {}),
    "cytochalasin B": ("actin disruptor", {"num_cells": 11, "cell_px": 24.0, "actin": 1.3, "is_spotted": True}),
    "staurosporine": ("kinase inhibitor", {"num_cells": 6, "nucleus_px": 8.0, "cell_px": 15.0, "glow": 1.9}),
    "etoposide": ("DNA damage", {"num_cells": 7, "nucleus_px": 20.0, "cell_px": 44.0, "grain": 0.55}),
    "FCCP": ("uncoupler", {"mito": 0.35, "is_fragmented": True, "er": 1.3}),
    "cycloheximide": ("protein synthesis inhibitor", {"er": 0.3, "grain": 0.08, "nucleus_px": 11.0}),
    "docetaxel": ("microtubule stabilizer", {"num_cells": 12, "lobes": 0.3, "elongation": 1.0, "nucleus_px": 15.0}),
}
_GENES: dict[str, dict[str, Any]] = {
    "": {},
    "KIF11": {"nucleus_px": 7.0, "elongation": 1.0, "glow": 2.0, "num_cells": 14, "cell_px": 16.0},
    "AURKB": {"nucleus_px": 18.0, "lobes": 0.22, "num_cells": 9, "cell_px": 33.0},
    "LMNA": {"elongation": 2.2, "grain": 0.6},
    "PLK1": {"num_cells": 7, "nucleus_px": 8.0, "glow": 1.6},
    "INCENP": {"lobes": 0.38, "nucleus_px": 13.0, "num_cells": 15},
    "TUBB": {"tubulin": 0.25, "nucleus_px": 9.5},
}
_SIRNA = {"": "", "KIF11": "s7903", "AURKB": "s17611", "LMNA": "s8221", "PLK1": "s448", "INCENP": "s7424", "TUBB": "s614"}


def _seed_of(seed: int, *parts: object) -> int:
    text = "/".join(map(str, (seed, *parts)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")


def _text(rows: Iterable[Sequence[object]], separator: str, line_end: str) -> bytes:
    sink = io.StringIO()
    csv.writer(sink, delimiter=separator, lineterminator=line_end).writerows(rows)
    return sink.getvalue().encode()


def _layout(seed: int, plate: str, classes: Sequence[str], wells: Sequence[str] = _WELLS) -> dict[str, str]:
    """Distribute classes over the wells of a plate in equal numbers, in an order that the seed decides."""
    order = np.random.default_rng(_seed_of(seed, plate)).permutation(len(wells)).tolist()
    placed = {wells[place]: classes[number % len(classes)] for number, place in enumerate(order)}
    return {well: placed[well] for well in wells}


def _with_fault(fields: list[PhantomField], fault: Fault, seed: int) -> tuple[PhantomField, ...]:
    chosen = _seed_of(seed, fault) % len(fields)
    return tuple(replace(field, fault=fault) if n == chosen else field for n, field in enumerate(fields))


def _painting(seed: int) -> PhantomSource:
    ids = {name: f"CPD{_seed_of(seed, 'id', name) % 9000 + 1000}-{number}" for number, name in enumerate(_COMPOUNDS)}
    wells: list[Sequence[object]] = [
        ("Plate", "Well", "Compound_ID", "Concentration_uM", "Cell_Line", "Organism", "Microscopy")
    ]
    fields = []
    for plate in ("PH101", "PH102"):
        for well, compound in _layout(seed, plate, tuple(_COMPOUNDS)).items():
            wells.append((plate, well, ids[compound], "" if compound == "DMSO" else 3.0, "U2OS", _ORGANISM, "fluorescence"))
            for site in (1, 2):
                start = f"images/{plate}/{plate}_{well}_s{site}"
                paths = {channel: f"{start}_w{n}.tif" for n, channel in enumerate(("dna", "er", "actin", "mito"), 1)}
                drawn = _seed_of(seed, plate, well, site)
                fields.append(PhantomField(plate, well, site, paths, "U2OS", compound, "", "", drawn, (288, 320), "uint16"))
    compounds: list[Sequence[object]] = [("Compound_ID", "Compound_Name", "Mechanism")]
    # Empty cells at the end of a row are missing, as in some exports.
    compounds += [tuple(cell for cell in (ids[name], name, _COMPOUNDS[name][0]) if cell) for name in _COMPOUNDS]
    return PhantomSource(
        "phantom_painting",
        "Phantom: cells painted in four channels under seven treatments",
        LICENCE,
        CITATION,
        {"wells.csv": _text(wells, ",", "\n"), "compounds.txt": _text(compounds, "\t", "\r")},
        _with_fault(fields, "black", seed),
    )


def _knockdown(seed: int) -> PhantomSource:
    rows: list[Sequence[object]] = [
        ("Plate", "Well", "Characteristics [Organism]", "Characteristics [Cell Line]", "Reagent Type", "siRNA Identifier",
         "Gene Symbol", "Control Type", "Channels"),
    ]  # fmt: skip
    fields = []
    for plate, reagent in (("CR201", "CRISPR"), ("SI202", "siRNA")):
        for well, gene in _layout(seed, plate, tuple(_GENES)).items():
            sirna = _SIRNA[gene] if reagent == "siRNA" else ""
            control = "" if gene else "negative control"
            stains = "Hoechst:nucleus;anti-tubulin:microtubules"
            rows.append((plate, well, _ORGANISM, "HeLa", reagent, sirna, gene, control, stains))
            for site in (1, 2):
                start = f"{plate}/{well}/{well}_f{site:02d}"
                paths = {"dna": f"{start}_ch1.tiff", "tubulin": f"{start}_ch2.tiff"}
                drawn = _seed_of(seed, plate, well, site)
                fields.append(PhantomField(plate, well, site, paths, "HeLa", "", gene, sirna, drawn, (256, 256), "uint16"))
    return PhantomSource(
        "phantom_knockdown",
        "Phantom: nuclei and microtubules after CRISPR and siRNA",
        LICENCE,
        CITATION,
        {"library.txt": b"\xef\xbb\xbf" + _text(rows, "\t", "\r\n")},
        _with_fault(fields, "saturated", seed),
    )


def _lineup(seed: int) -> PhantomSource:
    plate, rows, fields = "ST301", [], []
    for well, cell_type in _layout(seed, plate, tuple(_CELL_TYPES), _WELLS[:20]).items():
        for site in range(1, 5):
            path = f"stacks/{plate}_{well}_f{site:02d}.tif"
            rows.append((path, plate, well, site, cell_type, _ORGANISM))
            paths = dict.fromkeys(("dna", "actin", "er"), path)
            drawn = _seed_of(seed, plate, well, site)
            fields.append(PhantomField(plate, well, site, paths, cell_type, "", "", "", drawn, (300, 300), "uint8"))
    return PhantomSource(
        "phantom_lineup",
        "Phantom: four cell types side by side",
        LICENCE,
        CITATION,
        {"images.csv": _text(rows, ",", "\n")},
        _with_fault(fields, "uniform", seed),
    )


def phantom_sources(seed: int = 0) -> tuple[PhantomSource, ...]:
    """Make the three sources with their tables; `draw_field` draws their fields.

    Args:
        seed: Seed of layouts, identifiers, faults and fields.

    Returns:
        painting (112 fields, 7 compounds), knockdown (112, 6 genes and a control), lineup (80, 4 cell types).
    """
    return _painting(seed), _knockdown(seed), _lineup(seed)


def draw_field(field: PhantomField) -> dict[str, NDArray[np.uint16] | NDArray[np.uint8]]:
    """Draw a field of one of the `phantom_sources`.

    Returns:
        An image (height, width) of each channel, in the order of `channel_files`; uint16 with values up to 4095, or uint8.
    """
    generator = np.random.default_rng(field.seed)
    if field.fault:
        counts = {channel: _faulty(generator, field) for channel in field.channel_files}
    else:
        counts = draw_cells(generator, _look(field), field.shape_px, tuple(field.channel_files))
    is_small = field.dtype == "uint8"
    return {
        channel: np.clip(np.rint(image / 16 if is_small else image), 0, 255 if is_small else MAX_12_BIT).astype(field.dtype)
        for channel, image in counts.items()
    }


def _look(field: PhantomField) -> Look:
    changes: dict[str, Any] = {}
    if field.compound:
        changes |= _COMPOUNDS[field.compound][1]
    return replace(_CELL_TYPES[field.cell_type], **{**changes, **_GENES[field.gene]})


def _faulty(generator: np.random.Generator, field: PhantomField) -> Canvas:
    if field.fault == "uniform":
        return np.full(field.shape_px, 592.0, np.float32)
    base, odd = (0.0, 900.0) if field.fault == "black" else (float(MAX_12_BIT), 1200.0)
    image = np.full(field.shape_px, base, np.float32)
    places = generator.choice(image.size, round(_ODD_SHARE * image.size), replace=False)
    image.reshape(-1)[places] = odd
    return image
