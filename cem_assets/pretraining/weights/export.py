"""Reads and writes encoder weights in the forms that other programs use: the published checkpoint, safetensors, torchvision.

In memory, weights are an `EncoderWeights` with torchvision's names, one input channel and no head. Of other people's files
only tensors and plain values are read, and every name and shape is compared with the network before use. The state of a
running training is in `cem_assets.pretraining.training.checkpoints`.

Source of the published form: `train_mocov2.py`, `train_swav.py` and the loaders in `evaluation` of volume-em/cem-dataset. The
files of both are dicts with `state_dict`, `norms` ([mean, std], pixels on a scale of 0 to 1), `epoch` and `arch`; names start
with `module.encoder_q.` (MoCo) or `module.` (SwAV).
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from cem_assets.encoders import build_encoder, num_features
from cem_assets.errors import DataError
from cem_assets.pretraining.training.checkpoints import decode_state, encode_state

PREFIXES: dict[str, str] = {"moco": "module.encoder_q.", "swav": "module.", "supervised": "module."}
"""Prefix of the tensors' names in a published checkpoint of each method. Supervised weights were never published in this form
and have the same prefix as SwAV's."""
HEADS = ("fc", "classifier", "projection_head", "prototypes")
"""Names of the layers on top of an encoder in the published files, which are skipped."""
MAX_WEIGHTS_BYTES = 4 << 30
"""Largest weights file that is read; the published checkpoints, optimisers included, take under 1 GiB."""
_METADATA_KEY = "cem_assets"
_MAX_NAMED = 5


@dataclass(frozen=True)
class EncoderWeights:
    """The weights of an encoder with one input channel.

    Attributes:
        arch: A key of `encoders.ENCODERS`.
        state: Tensors by torchvision's names without the head, contiguous and on the CPU; float32, counters int64.
        norms: Mean and standard deviation of the pixels of the training, on a scale of 0 to 1; None where the file does not
            have them.
        epoch: Number of epochs of the training; None where it is not known.
        notes: Changes that were made when the file was read.
    """

    arch: str
    state: dict[str, torch.Tensor]
    norms: tuple[float, float] | None = None
    epoch: int | None = None
    notes: tuple[str, ...] = ()

    def digest(self) -> str:
        """Return the sha256 of names, types, shapes and values, which is equal for equal weights in any form of file."""
        sha = hashlib.sha256()
        for name in sorted(self.state):
            tensor = self.state[name]
            sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            sha.update(tensor.contiguous().numpy().tobytes())
        return sha.hexdigest()

    def build(self) -> nn.Module:
        """Build the encoder, which returns features, in evaluation mode."""
        encoder = build_encoder(self.arch, in_channels=1)
        encoder.load_state_dict(self.state)
        return encoder.eval()


def weights_of(
    encoder: nn.Module, arch: str, norms: tuple[float, float] | None = None, epoch: int | None = None
) -> EncoderWeights:
    """Copy the weights of an encoder in memory, such as the `encoder` of a method.

    Args:
        encoder: Network with one input channel.
        arch: A key of `encoders.ENCODERS`.
        norms: Mean and standard deviation of the pixels, on a scale of 0 to 1.
        epoch: Number of epochs of the training.

    Raises:
        DataError: The encoder is not such a network, or has values that are not finite.
    """
    state = {name: tensor.detach().cpu() for name, tensor in encoder.state_dict().items()}
    return EncoderWeights(arch, _fitted(state, arch, "the encoder")[0], norms, epoch)


def to_published(weights: EncoderWeights, method: str) -> bytes:
    """Write the published checkpoint form, which the loaders of volume-em/cem-dataset read.

    Args:
        method: A key of `PREFIXES`.

    Returns:
        A `.pth` file with `state_dict`, `norms` as [mean, std], `epoch` and `arch`; equal weights give equal bytes.

    Raises:
        ValueError: The method is not known, or the weights have no norms.
    """
    if method not in PREFIXES:
        raise ValueError(f"method {method!r} is not known; expected one of {', '.join(PREFIXES)}.")
    if weights.norms is None:
        raise ValueError(f"the {weights.arch} weights have no norms; expected (mean, std) of the pixels. Give them.")
    prefix = PREFIXES[method]
    return encode_state(
        {
            "epoch": weights.epoch or 0,
            "arch": weights.arch,
            "state_dict": {prefix + name: tensor for name, tensor in weights.state.items()},
            "norms": list(weights.norms),
        }
    )


def to_safetensors(weights: EncoderWeights) -> bytes:
    """Write safetensors with torchvision's names; equal weights give equal bytes.

    Architecture, norms and epoch are one JSON text in the metadata, because the library writes several entries in an order
    that changes from process to process.
    """
    about = {"arch": weights.arch, "epoch": weights.epoch, "norms": None if weights.norms is None else list(weights.norms)}
    return bytes(safetensors.torch.save(weights.state, {_METADATA_KEY: json.dumps(about, sort_keys=True)}))


def sidecar(weights: EncoderWeights, method: str, files: Mapping[str, bytes], **provenance: Any) -> dict[str, Any]:
    """Describe weights for the JSON file beside them.

    Args:
        method: "moco", "swav", "supervised", "imported" or "random".
        files: Content of the files that are written, by name.
        provenance: Further facts, such as parameters, release digest, licences and tracking run.

    Returns:
        A dict of JSON values.
    """
    encoder = build_encoder(weights.arch, in_channels=1)
    return {
        "arch": weights.arch,
        "method": method,
        "in_channels": 1,
        "num_features": num_features(weights.arch),
        "num_parameters": sum(parameter.numel() for parameter in encoder.parameters()),
        "norms": None if weights.norms is None else {"mean": weights.norms[0], "std": weights.norms[1]},
        "epoch": weights.epoch,
        "notes": list(weights.notes),
        "state_sha256": weights.digest(),
        "files": {
            name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in sorted(files.items())
        },
        **provenance,
    }


def read_weights(data: bytes, what: str, arch: str | None = None, max_bytes: int = MAX_WEIGHTS_BYTES) -> EncoderWeights:
    """Read encoder weights from any of the known forms.

    Published MoCo and SwAV checkpoints (CEM500K, CEM1.5M, ImageNet MoCoV2), our own checkpoints, plain torchvision
    state_dicts and safetensors are told apart by their content. Heads, key encoders, queues and optimisers are skipped. A
    first convolution of three channels becomes one channel by summing its weights: the features are those of the
    three-channel network on three equal normalised channels. Where the channels have different norms, the norms are averaged,
    which is an approximation; the notes then say so.

    Args:
        what: Name of the file for messages.
        arch: Name of the network; None takes it from the file.
        max_bytes: Largest accepted size.

    Raises:
        DataError: The file is too large, damaged or holds Python objects, or its tensors do not fit the network. The text
            names missing and unexpected tensors and wrong shapes.
    """
    content = _content(data, what, max_bytes)
    about: dict[str, Any] = {}
    state: Any = content
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        about, state = content, content["state_dict"]
    problems = []
    if not isinstance(state, dict) or not state or not all(isinstance(name, str) for name in state):
        raise DataError(f"{what} holds no state_dict; expected tensors by name, alone or under `state_dict`.")
    said = about.get("arch")
    if said is not None and not isinstance(said, str):
        problems.append(f"`arch` is a {type(said).__name__}, expected a name")
    elif said is not None and arch is not None and said != arch:
        problems.append(f"`arch` is {said!r}, expected {arch!r}")
    elif said is None and arch is None:
        problems.append("it does not say which network it is for; name the architecture")
    epoch = about.get("epoch")
    if epoch is not None and (isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 0):
        problems.append(f"`epoch` is {_short(epoch)}, expected a whole number")
    norms, norms_note = None, ""
    if about.get("norms") is not None:
        try:
            norms, norms_note = _norms(about["norms"])
        except (TypeError, ValueError) as error:
            problems.append(str(error))
    if problems:
        raise DataError(f"{what} cannot be imported: {'; '.join(problems)}.")
    chosen = arch or said
    assert isinstance(chosen, str)
    fitted, notes = _fitted(_without_prefix(state), chosen, what)
    weights = EncoderWeights(chosen, fitted, norms, epoch)
    return replace(weights, notes=(*notes, *([norms_note] if norms_note else [])))


def _content(data: bytes, what: str, max_bytes: int) -> Any:
    """Decode a file of safetensors or of `torch.save`.

    A safetensors file begins with the length of its header, whose eight bytes may look like a zip or a pickle. The brace
    behind them identifies the form.
    """
    if len(data) > max_bytes or data[8:9] != b"{":
        return decode_state(data, what, max_bytes)
    try:
        state = safetensors.torch.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        about = json.loads(header.get("__metadata__", {}).get(_METADATA_KEY, "{}"))
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RecursionError, MemoryError) as error:
        text = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise DataError(f"{what} cannot be read as safetensors: {text}. Copy it again from its source.") from error
    return {**about, "state_dict": state} if isinstance(about, dict) else state


def _without_prefix(state: Mapping[str, Any]) -> dict[str, Any]:
    for prefix in sorted(set(PREFIXES.values()), key=len, reverse=True):
        if any(name.startswith(prefix) for name in state):
            return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return dict(state)


def _fitted(state: Mapping[str, Any], arch: str, what: str) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """Compare tensors with a network; return them in the form that it needs, with notes on what was changed.

    Nothing is computed with a tensor before its shape is checked, because the shape in a file may be wrong.
    """
    encoder = build_encoder(arch, in_channels=1)
    first = next(name for name, module in encoder.named_modules() if isinstance(module, nn.Conv2d)) + ".weight"
    expected = encoder.state_dict()
    problems = [f"{name} is unexpected" for name in state if name not in expected and name.partition(".")[0] not in HEADS]
    fitted: dict[str, torch.Tensor] = {}
    notes: tuple[str, ...] = ()
    for name, wanted in expected.items():
        found = state.get(name)
        if found is None:
            if name.endswith(".num_batches_tracked"):  # files of torch before 0.4.1 have no such counters
                fitted[name] = wanted.clone()
            else:
                problems.append(f"{name} is missing")
            continue
        if not isinstance(found, torch.Tensor) or found.layout != torch.strided or found.is_quantized or found.is_meta:
            problems.append(f"{name} is no plain tensor")
            continue
        shape = tuple(wanted.shape)
        is_colour = name == first and tuple(found.shape) == (shape[0], 3, *shape[2:])
        if tuple(found.shape) != shape and not is_colour:
            problems.append(f"{name} has shape {_short(tuple(found.shape))}, expected {shape}")
            continue
        if found.is_complex() or found.is_floating_point() != wanted.is_floating_point():
            problems.append(f"{name} has type {found.dtype}, expected {wanted.dtype}")
            continue
        values = found.detach().to(wanted.dtype)
        if is_colour:
            values = values.sum(dim=1, keepdim=True)
            notes = ("the first convolution had three channels; their weights were summed to one",)
        if not bool(torch.isfinite(values).all()):
            problems.append(f"{name} has values that are not finite")
        fitted[name] = values.clone(memory_format=torch.contiguous_format)
    if problems:
        more = f" and {len(problems) - _MAX_NAMED} more" if len(problems) > _MAX_NAMED else ""
        raise DataError(
            f"{what} does not fit an encoder {arch}: {'; '.join(_short(problem) for problem in problems[:_MAX_NAMED])}{more}. "
            "Name the right architecture, or give the state_dict of such a network."
        )
    return fitted, notes


def _norms(value: Any) -> tuple[tuple[float, float], str]:
    """Read norms as the published files have them: [mean, std] or a dict of both, each a number or one for each channel."""
    if isinstance(value, Mapping):
        value = (value.get("mean"), value.get("std"))
    problem = f"`norms` is {_short(value)}, expected mean and deviation of pixels on a scale of 0 to 1"
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise DataError(problem)
    pair, note = [], ""
    for item in value:
        channels = list(item) if isinstance(item, list | tuple) else [item]
        if len(channels) not in (1, 3) or not all(type(channel) in (int, float) for channel in channels):
            raise DataError(problem)
        if len(set(channels)) > 1:
            note = "norms of three channels were averaged, which is an approximation"
        pair.append(math.fsum(channels) / len(channels))
    mean, std = pair
    if not (0 <= mean <= 1 and 0 < std <= 1):  # false for NaN too
        raise DataError(problem)
    return (mean, std), note


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
