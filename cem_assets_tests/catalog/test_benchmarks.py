"""The catalogue of benchmarks of this package, and the errors for a wrong one."""

import pytest

from cem_assets.benchmarks.data.preparation import step_problems
from cem_assets.benchmarks.rows import known_benchmarks, require_benchmark
from cem_assets.benchmarks.segmentation.params import EvaluationRule, SegmentationParams
from cem_assets.catalog.benchmarks import (
    SETTINGS,
    USER_LAYOUT,
    SegmentationBenchmark,
    TransferBenchmark,
    benchmark_rows,
    benchmark_tables,
)
from cem_assets.store.store import Store

SEGMENTATION = {
    "all_mito", "cremi", "guay", "kasthuri_pp", "lucchi_pp", "perez_lyso", "perez_mito", "perez_nuclei", "perez_nucleoli",
    "urocell",
}  # fmt: skip
MINE = '[mine]\ntitle = "Mine"\nlicence = "CC0"\ncitation = "Me"\nclasses = ["background", "thing"]\nparams = {iters = 10}\n'


def test_the_catalogue_has_ten_segmentation_and_three_transfer_benchmarks():
    rows = benchmark_rows()
    assert {name for name, row in rows.items() if isinstance(row, SegmentationBenchmark)} == SEGMENTATION
    assert {name for name, row in rows.items() if isinstance(row, TransferBenchmark)} == {"bbbc021", "coos_7", "cyclops"}
    assert all(row.name == name and row.licence and row.citation and row.title for name, row in rows.items())


def test_every_step_and_parameter_of_the_catalogue_is_known():
    for row in benchmark_rows().values():
        if isinstance(row, SegmentationBenchmark):
            assert [problem for step in row.steps for problem in step_problems(step.step, step.parameters)] == []
            SegmentationParams.model_validate(row.params)
            for part in row.union:
                EvaluationRule(**part.rule)


@pytest.mark.parametrize(
    ("name", "num_classes", "iters", "batch_size", "crop_px", "mode"),
    [
        ("all_mito", 1, 10_000, 32, 256, "mixed"),
        ("cremi", 1, 5_000, 16, 512, "stack"),
        ("guay", 7, 1_000, 16, 512, "stack"),
        ("kasthuri_pp", 1, 10_000, 16, 512, "2d"),
        ("lucchi_pp", 1, 10_000, 16, 512, "2d"),
        ("perez_lyso", 1, 2_500, 16, 480, "2d"),
        ("perez_mito", 1, 2_500, 16, 480, "2d"),
        ("perez_nuclei", 1, 2_500, 16, 480, "2d"),
        ("perez_nucleoli", 1, 2_500, 16, 480, "2d"),
        ("urocell", 3, 2_500, 16, 224, "orthoplane"),
    ],
)
def test_parameters_are_the_published_ones(name, num_classes, iters, batch_size, crop_px, mode):
    params = SegmentationParams.model_validate(benchmark_rows()[name].params)
    found = (params.num_classes, params.iters, params.batch_size, params.crop_px, params.test_mode)
    assert found == (num_classes, iters, batch_size, crop_px, mode)
    assert (params.lr, params.weight_decay, params.finetune_layer) == (0.003, 0.1, "none")
    assert params.is_instance_matched == name.startswith("perez")


def test_weights_scored_classes_and_the_sets_with_noise_are_the_published_ones():
    rows = benchmark_rows()
    assert rows["guay"].params["class_weights"] == [0.1, 0.1, 1, 1, 0.1, 3, 3]
    assert rows["guay"].params["scored_classes"] == [2, 3, 4, 5, 6] and rows["guay"].params["mask_unlabelled"]
    assert rows["urocell"].params["class_weights"] == [0.1, 1, 1]
    assert {name for name, row in rows.items() if row.params.get("has_noise")} == {"all_mito", "guay"}


def test_gates_leave_out_what_is_saturated():
    rows = benchmark_rows()
    assert {name for name, row in rows.items() if row.is_gated} == {"urocell", "guay", "all_mito", "coos_7", "cyclops"}
    assert {name for name, row in rows.items() if row.is_saturated} == {"lucchi_pp", "kasthuri_pp"}
    assert rows["bbbc021"].tolerance == 0.07


def test_published_figures_have_a_source_and_are_those_of_the_papers():
    rows = benchmark_rows()
    gains = {name: row.published[0].value for name, row in rows.items() if isinstance(row, SegmentationBenchmark)}
    assert gains == {
        "all_mito": 31, "cremi": 27, "guay": 40, "kasthuri_pp": 1, "lucchi_pp": 0, "perez_lyso": 34, "perez_mito": 34,
        "perez_nuclei": 34, "perez_nucleoli": 34, "urocell": 73,
    }  # fmt: skip
    assert [score.value for score in rows["bbbc021"].published] == [27.18, 83.5, 83.5, 86.41]
    assert [score.value for score in rows["coos_7"].published if score.weights == "fusion"] == [94.8, 95.07, 78.97, 87.47]
    assert all(score.source for row in rows.values() for score in row.published)


def test_a_users_benchmark_is_one_table():
    row = benchmark_rows(MINE)["mine"]
    assert isinstance(row, SegmentationBenchmark) and row.layout == USER_LAYOUT and row.steps == () and not row.is_gated


def test_all_problems_are_told_at_once():
    text = """
[Bad-Name]
title = "x"
licence = "y"
citation = "z"
classes = ["only background"]
colour = "red"
[b]
task = "juggling"
[c]
task = "transfer"
title = "x"
licence = "y"
citation = "z"
kind = "folders"
path_pattern = "(?P<label>.*"
[d]
name = "e"
"""
    with pytest.raises(ValueError) as caught:
        benchmark_rows(text, "settings/benchmarks.toml")
    told = str(caught.value)
    for words in (
        "settings/benchmarks.toml has 6 problem(s)",
        "'Bad-Name' is not allowed",
        "2 to 256 classes",
        "Bad-Name.colour: unknown key",
        "b.task is 'juggling'; expected one of segmentation, transfer",
        "path_pattern is no regular expression",
        "d.name: the name of a benchmark is the key",
    ):
        assert words in told


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[a", "not valid TOML"),
        ("a = 3", "has a where one table per benchmark"),
        ("[a]\n" + "#" * (1 << 20), "expected at most 1048576"),
    ],
)
def test_what_is_no_catalogue_is_refused(text, words):
    with pytest.raises(ValueError, match=words):
        benchmark_tables(text)


def test_a_union_names_benchmarks_with_files_of_their_own():
    text = MINE + '[[mine.union]]\nbenchmark = "nobody"\nrule = {mode = "2d", scored_classes = [1]}\n'
    with pytest.raises(ValueError, match=r"mine.union: 'nobody' is no segmentation benchmark"):
        benchmark_rows(text)


def test_a_store_changes_rows_and_adds_its_own(local_store: Store):
    local_store.put(SETTINGS, (MINE + "[urocell]\ntolerance = 0.05\nparams = {iters = 7}\n").encode())
    rows = known_benchmarks(local_store)
    assert list(rows)[-1] == "mine" and len(rows) == 14
    assert (rows["urocell"].tolerance, rows["urocell"].params["iters"], rows["urocell"].params["batch_size"]) == (0.05, 7, 16)
    assert benchmark_rows()["urocell"].tolerance == 0.02
    assert require_benchmark(local_store, "mine").title == "Mine"
    with pytest.raises(KeyError, match="no benchmark 'yours'"):
        require_benchmark(local_store, "yours")


def test_wrong_steps_and_parameters_of_a_store_are_told_together(local_store: Store):
    wrong = MINE.replace("{iters = 10}", '{iters = -1, test_mode = "mixed"}') + 'steps = [{step = "binarize"}]\n'
    local_store.put(SETTINGS, wrong.encode())
    with pytest.raises(ValueError) as caught:
        known_benchmarks(local_store)
    for words in ("3 problem(s)", "step 'binarize' is not known", "params.iters", "is for a union"):
        assert words in str(caught.value)
