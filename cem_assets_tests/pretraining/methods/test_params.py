"""Parameters: complete presets with the published numbers, overrides, refusals, and lengths of queues."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cem_assets.pretraining.methods.params import PARAMS, PRESETS, MoCoParams, ViewSpec, params_for, queue_length, views
from cem_assets.pretraining.methods.registry import METHODS

ALL = [(method, preset) for method in PRESETS for preset in PRESETS[method]]

# The parameters with which CEM500K, CEM1.5M and CytoImageNet were trained.
PUBLISHED = {
    "moco": {
        "epochs": 200,
        "batch_size": 128,
        "lr": 0.015,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "lr_decay": 0.1,
        "milestones": (120, 160),
        "dim": 128,
        "queue": 65_536,
        "encoder_momentum": 0.999,
        "temperature": 0.2,
        "weight_gamma": 0.5,
        "mean": 0.57287,
        "std": 0.12741,
        "crops": (ViewSpec(2, 224, (0.2, 1.0)),),
    },
    "swav": {
        "epochs": 200,
        "batch_size": 64,
        "lr": 0.6,
        "final_lr": 0.0006,
        "larc_trust": 0.001,
        "larc_clip": False,
        "weight_decay": 1e-6,
        "prototypes": 3000,
        "freeze_iterations": 5005,
        "dim": 128,
        "hidden": 2048,
        "temperature": 0.1,
        "epsilon": 0.05,
        "sinkhorn_iterations": 3,
        "queue": 3840,
        "queue_start_epoch": 15,
        "weight_gamma": 0.5,
        "mean": 0.57571,
        "std": 0.12765,
        "crops": (ViewSpec(2, 224, (0.14, 1.0)), ViewSpec(6, 96, (0.05, 0.14))),
    },
    "supervised": {
        "epochs": 24,
        "batch_size": 64,
        "lr": 1e-3,
        "validation_share": 0.1,
        "crops": (ViewSpec(1, 224, (1.0, 1.0)),),
    },
}


@pytest.mark.parametrize("method", PUBLISHED)
def test_the_paper_preset_is_the_published_recipe(method):
    params = params_for(method, "paper")
    assert {name: getattr(params, name) for name in PUBLISHED[method]} == PUBLISHED[method]


def test_every_method_has_parameters_and_the_same_presets():
    assert METHODS.keys() == PARAMS.keys() == PRESETS.keys() == PUBLISHED.keys()
    assert {method: PARAMS[method].method for method in PARAMS} == {method: method for method in PARAMS}
    assert all(list(presets) == ["paper", "single_gpu", "smoke"] for presets in PRESETS.values())


@pytest.mark.parametrize(("method", "preset"), ALL)
def test_presets_say_every_parameter(method, preset):
    assert PRESETS[method][preset].keys() == PARAMS[method].model_fields.keys()


@pytest.mark.parametrize("method", PRESETS)
def test_parameters_made_without_a_preset_are_those_of_the_paper(method):
    assert PARAMS[method]() == params_for(method, "paper")


@pytest.mark.parametrize(("method", "preset"), ALL)
def test_parameters_survive_json_and_never_change(method, preset):
    params = params_for(method, preset)
    assert PARAMS[method].model_validate_json(params.model_dump_json()) == params
    with pytest.raises(ValidationError, match="frozen"):
        params.epochs = 1


def test_prototypes_are_frozen_for_as_many_images_in_every_full_preset():
    paper, single = (params_for("swav", preset) for preset in ("paper", "single_gpu"))
    assert single.freeze_iterations * single.batch_size == pytest.approx(paper.freeze_iterations * paper.batch_size, rel=1e-3)


@pytest.mark.parametrize("preset", ["paper", "single_gpu"])
def test_queues_are_multiples_of_the_batch_and_batchnorm_groups_hold_32_images(preset):
    moco, swav = params_for("moco", preset), params_for("swav", preset)
    assert moco.queue % moco.batch_size == swav.queue % swav.batch_size == 0
    assert moco.batch_size / moco.num_batch_splits == 32


def test_views_come_in_the_order_of_the_crops():
    assert [(spec.num, spec.size_px) for spec in views(params_for("swav", "paper"))] == [(2, 224), (6, 96)]


def test_overrides_change_what_they_name():
    params = params_for("swav", "smoke", prototypes=7, dtype="bfloat16")
    assert (params.prototypes, params.dtype, params.dim) == (7, "bfloat16", PRESETS["swav"]["smoke"]["dim"])


def test_what_happens_at_an_epoch_moves_with_the_number_of_epochs():
    assert params_for("moco", "paper", epochs=20).milestones == (12, 16)
    assert params_for("moco", "paper", epochs=20, milestones=(3,)).milestones == (3,)
    assert params_for("moco", "paper", epochs=1).milestones == (1,)
    assert params_for("swav", "paper", epochs=400).queue_start_epoch == 30
    assert params_for("swav", "paper", epochs=400, queue_start_epoch=2).queue_start_epoch == 2


@pytest.mark.parametrize(
    ("method", "bad", "message"),
    [
        ("moco", {"tempertaure": 1}, "tempertaure"),
        ("moco", {"lr": 0}, "lr"),
        ("moco", {"dtype": "float16"}, "dtype"),
        ("moco", {"epochs": "many"}, "epochs"),
        ("moco", {"milestones": (5, 5)}, "each later than the one before"),
        ("moco", {"num_batch_splits": 3}, "does not split into 3 equal groups"),
        ("moco", {"num_batch_splits": 128}, "groups of 2 or more"),
        ("moco", {"queue": 100}, "expected at least batch_size"),
        ("moco", {"crops": (ViewSpec(3, 224, (0.2, 1.0)),)}, "expected two views of one size"),
        ("swav", {"crops": (ViewSpec(1, 224, (0.2, 1.0)),)}, "expected two or more"),
        ("swav", {"final_lr": 1.0}, "at most lr"),
        ("swav", {"queue": 10}, "expected 0 or at least batch_size"),
        ("swav", {"epsilon": 0.001}, "epsilon"),
        ("supervised", {"crops": (ViewSpec(2, 224, (1.0, 1.0)),)}, "expected one view"),
        ("supervised", {"crops": ({"num": 1, "size_px": 4, "scale": (1.0, 1.0)},)}, "expected 8 to 1024"),
    ],
)
def test_senseless_parameters_are_refused(method, bad, message):
    with pytest.raises(ValueError, match=message):
        params_for(method, "paper", **bad)


def test_all_problems_are_told_at_once():
    with pytest.raises(ValueError, match=r"num is 0.*size_px is 4.*scale is \(0.5, 0.2\)"):
        ViewSpec(0, 4, (0.5, 0.2))
    with pytest.raises(ValueError, match="milestones are .* does not split"):
        MoCoParams(milestones=(9, 1), num_batch_splits=3)


@pytest.mark.parametrize(("ask", "message"), [(("byol", "paper"), "moco, swav"), (("moco", "full"), "paper, single_gpu")])
def test_unknown_names_are_told_the_known_ones(ask, message):
    with pytest.raises(ValueError, match=message):
        params_for(*ask)


@given(st.integers(0, 500), st.integers(1, 50), st.integers(0, 2000))
def test_a_queue_is_the_longest_allowed_multiple_of_the_batch(queue, batch_size, num_samples):
    if num_samples < batch_size:
        with pytest.raises(ValueError, match="at least one batch"):
            queue_length(queue, batch_size, num_samples)
        return
    allowed = [n for n in range(0, queue + 1, batch_size) if n <= num_samples]
    assert queue_length(queue, batch_size, num_samples) == max(allowed)
