"""Stage `analyses/organelles`: which feature maps of an encoder correlate with masks of organelles.

Single channels are measured in `cem_assets.analyses.organelles.correlation`, the mean of the best few in
`cem_assets.analyses.organelles.consensus`. Pictures and masks come from `cem_assets.analyses.organelles.masks`.
"""

import logging
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cem_assets.analyses.organelles.masks import Masked, MaskedParams, MaskedPlan, plan_masked
from cem_assets.analyses.params import MaskParams
from cem_assets.analyses.results import AnalysisPlan, Findings, analysed_weights, build_weights, commit_analysis
from cem_assets.errors import DataError
from cem_assets.execution.stage import Progress, StageResult, no_progress
from cem_assets.store.assets import ORGANELLES
from cem_assets.store.store import Store

if TYPE_CHECKING:
    from cem_assets.analyses.organelles.consensus import Consensus
    from cem_assets.analyses.organelles.correlation import MaskAgreement

logger = logging.getLogger(__name__)

LAYERS = {"resnet": "layer4", "efficientnet": "features"}
"""Last layer with maps, by the beginning of the network's name."""
RESNET_DOWNSAMPLING = 8
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9_-]+")
MAX_MAP_BYTES = 2 << 30
"""Largest size of all feature maps of one organelle, which are in memory together."""


def analyse_organelles(
    store: Store,
    weights: str,
    pictures: MaskedParams,
    params: MaskParams,
    device: str = "auto",
    run_id: str = "",
    progress: Progress = no_progress,
) -> StageResult:
    """Correlate the feature maps of a layer with masks of organelles.

    Args:
        weights: Name of committed weights.
        pictures: The pictures and masks.
        device: "auto", "cpu" or "cuda"; decides no number beyond rounding.

    Returns:
        The committed partition: `channels.parquet` (organelle, name, channel, correlation), `organelles.parquet` with the
        scores of each organelle, and a picture for each.

    Raises:
        DataError: The weights are not known, pictures and masks differ, or the layer has no maps.
        FileNotFoundError: Weights or the folder are not there.
    """
    found = analysed_weights(store, weights)
    chosen = plan_masked(store, pictures)
    layer = params.layer or next((name for start, name in LAYERS.items() if found.arch.startswith(start)), "")
    own = RESNET_DOWNSAMPLING if found.arch.startswith("resnet") else 0
    downsampling = own if params.downsampling is None else int(params.downsampling)
    parameters = {**params.model_dump(mode="json"), "max_images": pictures.max_images}
    plan = AnalysisPlan(ORGANELLES, found, parameters, chosen.upstream, chosen.source)
    return commit_analysis(
        store, plan, run_id, lambda: _find(store, plan, chosen, params, layer, downsampling, device, progress)
    )


def _find(
    store: Store,
    plan: AnalysisPlan,
    chosen: MaskedPlan,
    params: MaskParams,
    layer: str,
    downsampling: int,
    device: str,
    progress: Progress,
) -> Findings:
    from cem_assets.analyses.organelles.consensus import measure_consensus
    from cem_assets.analyses.organelles.correlation import layer_maps, measure_agreement
    from cem_assets.analyses.organelles.figures import agreement_png, organelles_png
    from cem_assets.analyses.organelles.strides import refine_maps

    encoder, norms = build_weights(store, plan.weights, device)
    refine_maps(encoder, downsampling)
    findings = Findings(details={"title": f"Correlation of feature maps with organelles: {chosen.source}", "layer": layer})
    rows: list[dict[str, Any]] = []
    channels: list[pa.Table] = []
    for number, organelle in enumerate(chosen.organelles):
        pictures = chosen.read(organelle)
        maps: list[NDArray[np.float32]] = []
        for picture in pictures:
            maps += layer_maps(encoder, [picture.image], norms, layer)
            if sum(one.nbytes for one in maps) > MAX_MAP_BYTES:
                raise DataError(
                    f"the feature maps of {len(pictures)} pictures of {organelle} take more than {MAX_MAP_BYTES >> 30} GiB; "
                    "expected less. Lower max_images, or raise downsampling."
                )
        masks = [picture.mask for picture in pictures]
        agreement = measure_agreement(maps, masks, params.top_share)
        consensus = measure_consensus(maps, masks, agreement.correlations, params.num_channels, params.threshold)
        images = [picture.image for picture in pictures]
        title = f"{plan.weights.name}, {layer}: {organelle.replace('_', ' ')}"
        findings.figures[f"organelle-{number:02d}-{_NOT_IN_A_NAME.sub('_', organelle)}.png"] = agreement_png(
            images, masks, maps, agreement, consensus, title
        )
        rows.append(_row(organelle, pictures, agreement, consensus))
        channels.append(_channel_table(organelle, pictures, agreement.correlations))
        progress(number + 1, len(chosen.organelles))
    findings.tables = {"organelles": pa.Table.from_pylist(rows), "channels": pa.concat_tables(channels)}
    for row in rows:
        findings.numbers |= {f"{key}_{row['organelle']}": float(row[key]) for key in SCORES}
    scores = {row["organelle"]: (row["consensus_correlation"], row["consensus_held_out"]) for row in rows}
    label = f"correlation with the mask,\nmean of {params.num_channels} channels"
    findings.figures = {
        "organelles.png": organelles_png({plan.weights.name: scores}, str(findings.details["title"]), label),
        **findings.figures,
    }
    findings.counts = {
        "organelles": len(rows),
        "images": sum(int(row["num_images"]) for row in rows),
        "channels": len(channels[0].column("channel").unique()),
    }
    return findings


SCORES = (
    "best_correlation",
    "best_held_out",
    "best_iou",
    "consensus_correlation",
    "consensus_held_out",
    "consensus_iou",
)
"""Columns of `organelles.parquet` that are compared between weights."""


def _row(organelle: str, pictures: list[Masked], agreement: "MaskAgreement", consensus: "Consensus") -> dict[str, Any]:
    return {
        "organelle": organelle,
        "num_images": len(pictures),
        "mask_share": float(np.mean([picture.mask.mean() for picture in pictures])),
        "best_channel": agreement.best_channel,
        "best_correlation": agreement.best_correlation,
        "best_held_out": agreement.held_out_correlation,
        "best_iou_channel": agreement.best_iou_channel,
        "best_iou": agreement.best_iou,
        "consensus_channels": " ".join(map(str, consensus.channels.tolist())),
        "consensus_correlation": float(consensus.correlations.mean()),
        "consensus_held_out": float(consensus.held_out.mean()),
        "consensus_iou": float(consensus.ious.mean()),
    }


def _channel_table(organelle: str, pictures: list[Masked], correlations: NDArray[np.float64]) -> pa.Table:
    num = correlations.shape[1]
    return pa.table(
        {
            "organelle": pa.array([organelle] * correlations.size),
            "name": pa.array([picture.name for picture in pictures for _ in range(num)]),
            "channel": np.tile(np.arange(num, dtype=np.int32), len(pictures)),
            "correlation": correlations.ravel(),
        }
    )
