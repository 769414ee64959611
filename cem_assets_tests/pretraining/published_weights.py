"""Published checkpoints built from their documented keys, and torchvision models loaded by hand to compare with."""

import io
from collections import OrderedDict
from functools import lru_cache

import torch
import torchvision
from torch import nn

from cem_assets.catalog.weights import ImportedWeights

NORMS = [0.57287, 0.12741]


def network(in_channels: int = 1, seed: int = 0, arch: str = "resnet18") -> nn.Module:
    """Build a torchvision model with BatchNorm statistics that are not the initial ones, without the code under test."""
    torch.manual_seed(seed)
    model = getattr(torchvision.models, arch)()
    if in_channels != 3 and arch.startswith("resnet"):
        model.conv1 = nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
    elif in_channels != 3:
        model.features[0][0] = nn.Conv2d(in_channels, 32, kernel_size=3, stride=2, padding=1, bias=False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            module.num_batches_tracked.fill_(7)
    return model.eval()


def features(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Compute the features of a torchvision model below its head."""
    name = "fc" if hasattr(model, "fc") else "classifier"
    head = getattr(model, name)
    setattr(model, name, nn.Identity())
    with torch.no_grad():
        found = model.eval()(images)
    setattr(model, name, head)
    return found


def images() -> torch.Tensor:
    return torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(1))


def saved(content: object) -> bytes:
    sink = io.BytesIO()
    torch.save(content, sink)
    return sink.getvalue()


def _encoder(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value for name, value in model.state_dict().items() if not name.startswith("fc.")}


def moco(model: nn.Module, norms: list[float] | None = NORMS) -> bytes:
    """Make CEM500K MoCoV2 (with norms) or ImageNet MoCoV2 (without): both encoders, MLP heads, the queue, the optimiser."""
    state = OrderedDict()
    for part in ("encoder_q", "encoder_k"):
        for name, value in _encoder(model).items():
            state[f"module.{part}.{name}"] = value if part == "encoder_q" else torch.zeros_like(value)
        for layer, shape in {"fc.0": (512, 512), "fc.2": (128, 512)}.items():
            state[f"module.{part}.{layer}.weight"] = torch.randn(shape)
            state[f"module.{part}.{layer}.bias"] = torch.randn(shape[0])
    state |= {"module.queue": torch.randn(128, 256), "module.queue_ptr": torch.zeros(1, dtype=torch.long)}
    optimizer = {"state": {0: {"momentum_buffer": torch.zeros(64, 1, 7, 7)}}, "param_groups": [{"lr": 0.015, "params": [0]}]}
    content = {"epoch": 200, "arch": "resnet18", "state_dict": state, "optimizer": optimizer}
    return saved(content if norms is None else {**content, "norms": norms})


def swav(model: nn.Module) -> bytes:
    """Make CEM1.5M SwAV, with encoder, projection head and prototypes at one level."""
    state = OrderedDict((f"module.{name}", value) for name, value in _encoder(model).items())
    state |= {"module.projection_head.0.weight": torch.randn(64, 512), "module.projection_head.0.bias": torch.randn(64)}
    for name in ("weight", "bias", "running_mean", "running_var"):
        state[f"module.projection_head.1.{name}"] = torch.randn(64)
    state["module.projection_head.1.num_batches_tracked"] = torch.tensor(3)
    state |= {"module.projection_head.3.weight": torch.randn(16, 64), "module.projection_head.3.bias": torch.randn(16)}
    state["module.prototypes.weight"] = torch.randn(30, 16)
    return saved({"epoch": 200, "arch": "resnet18", "state_dict": state, "norms": [0.57571, 0.12765]})


@lru_cache(maxsize=2)
def small(seed: int = 0) -> bytes:
    """Make the smallest network in the published form, for tests that are not about layouts."""
    state = network(seed=seed, arch="efficientnet_b0").state_dict()
    named = {f"module.{name}": value for name, value in state.items() if not name.startswith("classifier.")}
    return saved({"epoch": 200, "arch": "efficientnet_b0", "state_dict": named, "norms": NORMS})


def row(**changes) -> ImportedWeights:
    """Make the row of the file that `small` makes."""
    values = {
        "name": "published",
        "title": "Published weights",
        "source": "file",
        "arch": "efficientnet_b0",
        "method": "supervised",
        "file": "published.pth.tar",
        "licence": "CC-BY-4.0",
        "data_licence": "CC-BY-NC-4.0",
        "trained_on": "CEM500K",
        "citation": "Conrad and Narayan (2021).",
    }
    return ImportedWeights(**{**values, **changes})
