"""Parameters of a segmentation benchmark: the rules of published ones, and refusals that list all problems."""

import pytest
from pydantic import ValidationError

from cem_assets.benchmarks.segmentation.params import EvaluationRule, SegmentationParams

GUAY = {
    "num_classes": 7,
    "class_weights": (0.1, 0.1, 1, 1, 0.1, 3, 3),
    "scored_classes": (2, 3, 4, 5, 6),
    "iters": 1000,
    "test_mode": "stack",
    "mask_unlabelled": True,
}


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        (GUAY, EvaluationRule("stack", (2, 3, 4, 5, 6), False, True)),
        ({"iters": 2500, "is_instance_matched": True}, EvaluationRule("2d", (1,), True, False)),
        (
            {"iters": 2500, "num_classes": 3, "class_weights": (0.1, 1, 1), "test_mode": "orthoplane"},
            EvaluationRule("orthoplane", (1, 2)),
        ),
    ],
)
def test_published_benchmarks_have_their_rule(fields, rule):
    assert SegmentationParams(**fields).evaluation_rule() == rule


def test_a_mixed_benchmark_has_no_rule_of_its_own():
    with pytest.raises(ValueError, match="expected a rule with every test image"):
        SegmentationParams(iters=1, test_mode="mixed").evaluation_rule()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"class_weights": (1.0,)}, "no classes to weigh"),
        ({"num_classes": 3, "class_weights": (1.0, 1.0)}, "expected 3 numbers"),
        ({"num_classes": 2, "class_weights": (0.0, 0.0)}, "not all 0"),
        ({"scored_classes": (0,)}, r"name \[0\], expected numbers of 1 to 1"),
        ({"num_classes": 3, "scored_classes": (3,)}, "expected numbers of 0 to 2"),
        ({"num_classes": 3, "scored_classes": (1, 1)}, "expected each once"),
        ({"crop_scale": (0.5, 0.1)}, "crop_scale"),
        ({"crop_ratio": (0.0, 1.0)}, "crop_ratio"),
        ({"crop_px": 100}, "multiple of 32"),
        ({"crop_px": 32, "batch_size": 1}, "leaves BatchNorm one value"),
        ({"mask_unlabelled": True}, "hide every false positive"),
        ({"finetune_layer": "layer5"}, "finetune_layer"),
        ({"learning_rate": 1.0}, "Extra inputs"),
    ],
)
def test_what_makes_no_sense_is_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        SegmentationParams(**({"iters": 10} | fields))


def test_all_problems_are_told_at_once():
    with pytest.raises(ValidationError) as caught:
        SegmentationParams(iters=10, num_classes=3, class_weights=(1.0,), scored_classes=(7,), crop_scale=(0.0, 2.0))
    assert all(name in str(caught.value) for name in ("class_weights", "scored_classes", "crop_scale"))
