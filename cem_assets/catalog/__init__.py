"""What exists: rows, not code.

`em_datasets.csv` lists electron-microscopy datasets by name, with voxel size, licence and citation, and
where their files can be had. `registries/` holds, for datasets made of single files, their names and
sha256. Fetching them is `cem_assets.sources`.
"""

import csv
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files


@dataclass(frozen=True)
class EmDataset:
    """A row of `em_datasets.csv`.

    Attributes:
        name: Name of the dataset.
        is_enabled: Whether the catalogue schedule fetches it.
        kind: "volume", "images" or "video".
        voxel_size_nm: (z, y, x) in nm.
        licence, citation, organism, tissue, technique, source_url: As in `dataset.toml`.
        base_url: Address its files lie under.
        files: sha256 by file name.
    """

    name: str
    is_enabled: bool
    kind: str
    voxel_size_nm: tuple[float, float, float]
    licence: str
    citation: str
    organism: str
    tissue: str
    technique: str
    source_url: str
    base_url: str
    files: dict[str, str]

    def description_toml(self) -> str:
        """Write the row as a `dataset.toml`."""
        texts = ("licence", "citation", "organism", "tissue", "technique", "source_url")
        lines = [f'name = "{self.name}"', f'kind = "{self.kind}"', f"voxel_size_nm = {list(self.voxel_size_nm)}"]
        for key in texts:
            value = str(getattr(self, key)).replace("\\", "\\\\").replace('"', '\\"')
            if value:
                lines.append(f'{key} = "{value}"')
        return "\n".join(lines) + "\n"


@lru_cache(maxsize=1)
def em_datasets() -> dict[str, EmDataset]:
    """Read the catalogue of EM datasets, by name."""
    folder = files("cem_assets.catalog")
    found = {}
    for row in csv.DictReader(folder.joinpath("em_datasets.csv").read_text(encoding="utf-8").splitlines()):
        registry = folder.joinpath("registries", row["registry"]).read_text(encoding="utf-8")
        pairs = (line.split(maxsplit=1) for line in registry.splitlines() if line and not line.startswith("#"))
        found[row["name"]] = EmDataset(
            name=row["name"],
            is_enabled=row["enabled"] == "yes",
            kind=row["kind"],
            voxel_size_nm=(float(row["z_nm"]), float(row["y_nm"]), float(row["x_nm"])),
            licence=row["licence"],
            citation=row["citation"],
            organism=row["organism"],
            tissue=row["tissue"],
            technique=row["technique"],
            source_url=row["source_url"],
            base_url=row["base_url"],
            files=dict(pairs),
        )
    return found
