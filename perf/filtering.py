"""Scores of patches from end to end, beside a plain torch loop with PIL; on a GPU also beside a batch that is already there.

Both sides start from decoded patches in memory, some of them smaller because they lie at a border, and end with probabilities.
The plain loop does what the published script does: PIL resizes each patch and converts it to RGB, patches are normalized, and
batches of 64 go through the network as torchvision builds it, in float32. Weights are random with settled statistics. Their
probabilities are closer together than those of trained weights, so more decisions than usual are near the threshold.
"""

import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from cem_assets.cem.classifier.network import build_classifier, score_batches
from cem_assets.cem.classifier.params import ClassifierParams, Precision, ScoreParams, probability, to_hash_side
from cem_assets.cem.classifier.scoring_network import IMAGENET_MEAN, IMAGENET_STD, FusedNetwork, scoring_forward
from cem_assets.cem.classifier.training import settle_statistics
from cem_assets.encoders import pick_device
from cem_assets.execution.local import ahead
from perf.timing import Measured, best_seconds

BATCH = 64
MAX_SHIFT = 1e-3
"""The most by which probabilities of the default setting may differ from those of the plain loop."""


def patches_of(num: int, seed: int) -> list[np.ndarray]:
    """Smooth noise of many scales; every eighth is a border patch of 128 x 224."""
    generator = np.random.default_rng(seed)
    listed = []
    for number in range(num):
        scale = generator.uniform(1, 8)
        shape = (128, 224) if number % 8 == 7 else (224, 224)
        field = gaussian_filter(generator.standard_normal(shape, np.float32), scale) * scale * 120 + generator.normal(128, 30)
        listed.append(np.clip(field, 0, 255).astype(np.uint8))
    return listed


def plain_loop(model: torch.nn.Module, patches: list[np.ndarray], device: torch.device) -> np.ndarray:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    out = []
    with torch.no_grad():
        for start in range(0, len(patches), BATCH):
            inputs = []
            for patch in patches[start : start + BATCH]:
                image = Image.fromarray(patch).resize((224, 224), Image.Resampling.BILINEAR).convert("RGB")
                inputs.append((torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255 - mean) / std)
            out.append(torch.sigmoid(model(torch.stack(inputs).to(device))).flatten().cpu().numpy())
    return np.concatenate(out)


def ours(model: torch.nn.Module, patches: list[np.ndarray], precision: Precision) -> np.ndarray:
    params = ScoreParams(batch_size=BATCH, precision=precision)
    groups = (patches[start : start + 8 * BATCH] for start in range(0, len(patches), 8 * BATCH))  # as the stage reads them
    batches = ahead(to_hash_side(group) for group in groups)
    return probability(np.concatenate(list(score_batches(model, batches, params))))


def resident_rate(model: torch.nn.Module, device: torch.device, precision: Precision, num_batches: int) -> float:
    """Return patches/s of the network alone, on one batch that is already on the device."""
    forward = scoring_forward(model, device, precision)
    images = torch.randint(0, 256, (BATCH, 224, 224), dtype=torch.uint8, device=device)

    def run(num: int) -> None:
        with torch.inference_mode():
            for _ in range(num):
                forward(images)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    run(1)
    started = time.perf_counter()
    run(num_batches)
    return num_batches * BATCH / (time.perf_counter() - started)


def is_supported(model: torch.nn.Module, device: torch.device, precision: Precision) -> bool:
    """Tell whether this device has kernels for a number type. Without them it would take minutes and say nothing."""
    return (
        device.type != "cpu"
        or precision == Precision.float32
        or isinstance(scoring_forward(model, device, precision), FusedNetwork)
    )


def processor_rate() -> float:
    """Return GFLOP/s of a float32 matrix product on the CPU: about the most that a plain network can reach."""
    matrix = torch.ones(2048, 2048)
    (seconds,) = best_seconds(lambda: matrix @ matrix)
    return 2 * 2048**3 / seconds / 1e9


def measure(is_quick: bool = False) -> list[Measured]:
    device = pick_device()
    is_gpu = device.type == "cuda"
    num = (4096 if is_gpu else 32) if is_quick else (16_384 if is_gpu else 256)
    patches = patches_of(min(num, 256), 0)
    torch.manual_seed(0)
    model = build_classifier()
    settle_statistics(model, to_hash_side(patches[:32]), ClassifierParams(batch_size=16, device="cpu"))
    plain = model.eval().to(device)
    patches = patches * (num // len(patches))
    supported = [precision for precision in Precision if is_supported(plain, device, precision)]
    ways: list[Callable[[], np.ndarray]] = [
        lambda: plain_loop(plain, patches, device),
        *(lambda precision=precision: ours(plain, patches, precision) for precision in supported),
    ]
    outputs: list[list[np.ndarray]] = [[] for _ in ways]
    calls = [lambda way=way, kept=kept: kept.append(way()) for way, kept in zip(ways, outputs, strict=True)]
    seconds = best_seconds(*calls, repeats=1 if is_quick else 3)
    expected = outputs[0][0]
    rows, where = [], "GPU" if is_gpu else f"CPU, {torch.get_num_threads()} threads"
    for precision, mine, found in zip(supported, seconds[1:], outputs[1:], strict=True):
        assert all(np.array_equal(found[0], again) for again in found[1:])  # the same again, bit for bit
        shift = float(np.abs(found[0] - expected).max())
        assert shift <= (MAX_SHIFT if precision == Precision.float32 else 0.05)
        flipped = int(((found[0] > 0.5) != (expected > 0.5)).sum())
        note = f"probabilities differ by up to {shift:.1g}, {flipped} of {num} decisions flipped"
        if not is_gpu and precision == Precision.float32:
            done = 7.3 * num / mine  # ResNet34 at 224 x 224: 3.66 billion multiplications and additions
            note += f"; {done:.0f} GFLOP/s, a matrix product reaches {processor_rate():.0f}"
        work = f"scores, {precision}{' (default)' if precision == Precision.float32 else ' (a choice)'}, {where}"
        rows.append(Measured(work, "patches/s", num / mine, num / seconds[0], "plain torch loop with PIL, float32", 2, note))
        if not is_quick or is_gpu:
            resident = resident_rate(plain, device, precision, 100 if is_gpu else 3)
            goal = 0.8 if is_gpu else 0
            rows.append(Measured(work, "patches/s", num / mine, resident, f"a batch of {BATCH} that lies on the device", goal))
    for precision in set(Precision) - set(supported):
        note = "not measured: no kernels for it here, without which it takes minutes"
        rows.append(Measured(f"scores, {precision} (a choice), {where}", "patches/s", 0, 0, "-", 0, note))
    if not is_gpu:
        rows.append(Measured("scores on a GPU", "patches/s", 0, 0, "-", 0.8, "not measured: torch sees no GPU here"))
    return rows
