"""Writes the model card of encoder weights: their origin, their data with its licences, their figures and how to load them.

This module does not import torch. `cem_assets.pretraining.weights.importing` and `cem_assets.pretraining.weights.results`
collect the facts.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cem_assets.catalog.weights import ARCHS

NOT_STATED = "not stated"
_NON_COMMERCIAL = re.compile(r"(?<![a-z])nc(?![a-z])|non[\s_-]*commercial|research[\s_-]+(use[\s_-]+)?only", re.IGNORECASE)
_METHODS = {
    "moco": "MoCo v2 (arXiv:2003.04297), without labels",
    "swav": "SwAV (arXiv:2006.09882), without labels",
    "supervised": "classification of labelled images",
    "random": "none: random weights",
}
_FIRST_LAYER = {
    "resnet": "model.conv1 = torch.nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)\nmodel.fc = torch.nn.Identity()",
    "efficientnet": "model.features[0][0] = torch.nn.Conv2d(1, 32, 3, stride=2, padding=1, bias=False)\n"
    "model.classifier = torch.nn.Identity()",
}


@dataclass(frozen=True)
class DataSource:
    """A data set that weights were trained on.

    Attributes:
        licence: Licence of the data; empty where none is stated.
        num_images: Number of its images in the training; None where it is not known.
    """

    name: str
    licence: str
    citation: str = ""
    source_url: str = ""
    num_images: int | None = None


@dataclass(frozen=True)
class WeightsFacts:
    """The facts about weights that their card states.

    Attributes:
        name: Partition of `pretraining/weights`.
        title: Title for readers.
        arch: Architecture of the encoder.
        method: "moco", "swav", "supervised" or "random".
        origin: One or two sentences of Markdown on how the weights were made.
        norms: Mean and standard deviation of the pixels, on a scale of 0 to 1; None where they are not known.
        epoch: Number of epochs of the training; None where it is not known.
        notes: Changes that were made when the weights were read.
        licence: Licence of the weights; empty where it follows from the data alone.
        state_sha256: Digest of the tensors.
    """

    name: str
    title: str
    arch: str
    method: str
    origin: str
    norms: tuple[float, float] | None = None
    epoch: int | None = None
    notes: tuple[str, ...] = ()
    licence: str = ""
    state_sha256: str = ""


def is_non_commercial(licence: str) -> bool:
    """Tell whether the text of a licence excludes commercial use, as CC-BY-NC does."""
    return _NON_COMMERCIAL.search(licence) is not None


def weights_card(
    facts: WeightsFacts,
    data: Sequence[DataSource],
    parameters: Mapping[str, Any] | None = None,
    figures: Mapping[str, Any] | None = None,
    release: str = "",
    release_digest: str = "",
) -> str:
    """Write the model card.

    Args:
        data: The data sets that the weights were trained on; empty for random weights.
        parameters: All hyperparameters of weights trained here, as JSON values.
        figures: Final figures by name.
        release: The release of the data, such as "cem/releases/v3".
        release_digest: Digest of the manifest of the release.

    Returns:
        Markdown with a YAML head in the form that model hubs read.

    Raises:
        ValueError: The architecture is not known.
    """
    if facts.arch not in ARCHS:
        raise ValueError(f"encoder {facts.arch!r} is not known; expected one of {', '.join(ARCHS)}.")
    lines = [
        "---",
        "license: other",
        "license_name: see-licences-below",
        "library_name: torchvision",
        "pipeline_tag: image-feature-extraction",
        f"tags: [microscopy, {facts.arch}, {facts.method}]",
        f"model_name: {json.dumps(facts.name)}",
        "---",
        "",
        f"# {_cell(facts.name)}",
        "",
        f"{_cell(facts.title)}. An encoder for microscopy images of one channel, without a head.",
        "",
        f"- Network: {facts.arch}, one input channel; a feature vector for each image",
        f"- Method: {_METHODS.get(facts.method, _cell(facts.method))}",
        f"- Origin: {' '.join(facts.origin.split())}",
        f"- Epochs: {'not known' if facts.epoch is None else facts.epoch}",
        f"- Pixel norms: {_norms_text(facts.norms)}",
    ]
    lines += [f"- Note: {_cell(note)}" for note in facts.notes]
    if facts.state_sha256:
        lines.append(f"- sha256 of the tensors: `{facts.state_sha256}`")
    if parameters:
        lines += ["", "## Training", "", "| parameter | value |", "|---|---|"]
        lines += [f"| {_cell(key)} | {_cell(_value(value))} |" for key, value in parameters.items()]
    if figures:
        lines += ["", "## Figures at the end", "", "| figure | value |", "|---|---:|"]
        lines += [f"| {_cell(key)} | {_cell(_value(value))} |" for key, value in figures.items()]
    lines += _data_lines(data, release, release_digest)
    lines += _licence_lines(facts, data)
    lines += _loading_lines(facts)
    lines += _limits_lines(facts, data)
    return "\n".join(lines) + "\n"


def _data_lines(data: Sequence[DataSource], release: str, release_digest: str) -> list[str]:
    lines = ["", "## Data", ""]
    if not data:
        return [*lines, "None."]
    if release:
        digest = f", digest `{release_digest}`" if release_digest else ""
        lines += [f"Release {_cell(release)}{digest}.", ""]
    lines += ["| data set | images | licence | citation | source |", "|---|---:|---|---|---|"]
    for item in sorted(data, key=lambda item: item.name):
        images = "-" if item.num_images is None else f"{item.num_images:,}"
        texts = (item.licence or NOT_STATED, item.citation, item.source_url)
        lines.append(f"| {_cell(item.name)} | {images} | {' | '.join(_cell(text) for text in texts)} |")
    return lines


def _licence_lines(facts: WeightsFacts, data: Sequence[DataSource]) -> list[str]:
    groups: dict[str, list[str]] = {}
    for item in sorted(data, key=lambda item: (item.licence, item.name)):
        groups.setdefault(item.licence.strip() or NOT_STATED, []).append(item.name)
    lines = ["", "## Licences", ""]
    if facts.licence:
        lines.append(f"- The weights: {_cell(facts.licence)}")
    lines += [f"- Data under {_cell(licence)}: {', '.join(_cell(name) for name in names)}" for licence, names in groups.items()]
    if not data and not facts.licence:
        lines.append("- No data is in these weights.")
    restricted = [f"the weights ({_cell(facts.licence)})"] if is_non_commercial(facts.licence) else []
    restricted += [_cell(name) for licence, names in groups.items() if is_non_commercial(licence) for name in names]
    if restricted:
        lines += ["", f"**Commercial use is excluded** by the terms of {', '.join(restricted)}."]
    if NOT_STATED in groups:
        lines += ["", f"**No licence is stated** for {', '.join(_cell(name) for name in groups[NOT_STATED])}: ask its owners."]
    return lines


def _loading_lines(facts: WeightsFacts) -> list[str]:
    first = next(lines for family, lines in _FIRST_LAYER.items() if facts.arch.startswith(family))
    scaled = "images / 255" if facts.norms is None else f"(images / 255 - {facts.norms[0]:g}) / {facts.norms[1]:g}"
    return [
        "",
        "## Loading",
        "",
        "```python",
        "from cem_assets import readers",
        "",
        f"encoder = readers.load_weights({json.dumps(facts.name)})",
        f"features = encoder({scaled})  # float32 (n, 1, height, width) to (n, features)",
        "```",
        "",
        "Without this package:",
        "",
        "```python",
        "import safetensors.torch, torch, torchvision",
        "",
        f"model = torchvision.models.{facts.arch}()",
        *first.splitlines(),
        'model.load_state_dict(safetensors.torch.load_file("weights.safetensors"))',
        "model.eval()",
        "```",
    ]


def _limits_lines(facts: WeightsFacts, data: Sequence[DataSource]) -> list[str]:
    lines = [
        "",
        "## Limits",
        "",
        "- Features of other modalities, magnifications or preparations than those of the data are not tried.",
    ]
    if facts.norms is None:
        lines.append("- Pixel norms are not known: choose them from your own images.")
    if data:
        lines.append("- Scores on benchmarks whose test images resemble the data above say little; check for overlap first.")
    lines.append("- Not for diagnosis.")
    return lines


def _norms_text(norms: tuple[float, float] | None) -> str:
    return "not known" if norms is None else f"mean {norms[0]:g}, standard deviation {norms[1]:g} (values scaled to 0..1)"


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _cell(text: str) -> str:
    """Make other people's text safe inside a Markdown table: one line, no pipes, no HTML."""
    flat = " ".join(text.split())
    return flat.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace(">", "&gt;") or "-"
