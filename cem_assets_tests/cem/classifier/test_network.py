"""The patch classifier: weights, inference, training and evaluation."""

import numpy as np
import pytest
import torch
import torchvision

from cem_assets.cem.classifier.network import build_classifier, environment, score_batches
from cem_assets.cem.classifier.params import ClassifierParams, Finetune, Precision, ScoreParams, probability, to_hash_side
from cem_assets.cem.classifier.scoring_network import to_network
from cem_assets.cem.classifier.training import (
    augment,
    evaluate,
    freeze,
    settle_statistics,
    split_labelled,
    train_classifier,
)
from cem_assets.cem.filter.params import FilterParams, is_informative


def stripes_and_blanks(num: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Patches that are easy to classify: one half has stripes, the other half only noise."""
    generator = np.random.default_rng(seed)
    images = generator.integers(150, 180, (num, 224, 224))
    is_good = np.arange(num) % 2 == 0
    x = np.arange(224)
    for row in np.flatnonzero(is_good):
        images[row] -= (60 * (np.sin(x / generator.uniform(4, 9)) > 0)).astype(int)
    return images.astype(np.uint8), is_good


def published_layout() -> dict[str, torch.Tensor]:
    model = torchvision.models.resnet34()
    model.fc = torch.nn.Linear(512, 1)
    return model.state_dict()


def test_logits_equal_a_hand_loaded_torchvision_model():
    torch.manual_seed(0)
    weights = published_layout()
    images = np.random.default_rng(0).integers(0, 256, (3, 224, 224), dtype=np.uint8)
    reference = torchvision.models.resnet34()
    reference.fc = torch.nn.Linear(512, 1)
    reference.load_state_dict(weights)
    gray = torch.from_numpy(images).float().unsqueeze(1).expand(-1, 3, -1, -1) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        expected = reference.eval()((gray - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)).flatten().numpy()
    found = next(score_batches(build_classifier(weights), [images], ScoreParams(batch_size=2)))
    assert np.allclose(found, expected, atol=1e-4)


def test_tables_in_bfloat16_name_their_rounding_and_those_in_float32_keep_their_digests():
    found = [set(environment(ScoreParams(device="cpu", precision=precision))) for precision in Precision]
    assert found == [{"torch", "device"}, {"torch", "device", "rounding"}]


def test_inference_does_not_leak_its_mode_into_the_caller():
    for _ in score_batches(build_classifier(), [np.zeros((1, 224, 224), np.uint8)], ScoreParams()):
        assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda w: w.pop("conv1.weight"), "conv1.weight is missing"),
        (lambda w: w.update(extra=torch.zeros(1)), "extra is unexpected"),
        (lambda w: w.update({"fc.weight": torch.zeros(1000, 512)}), r"fc.weight has shape \(1000, 512\), expected \(1, 512\)"),
    ],
)
def test_weights_that_do_not_fit_are_named(damage, message):
    weights = dict(published_layout())
    damage(weights)
    with pytest.raises(ValueError, match=message):
        build_classifier(weights)


def test_probabilities_do_not_overflow():
    out = probability(np.array([-1000, -1, 0, 1, 1000], np.float32))
    assert out.tolist() == pytest.approx([0, 0.26894143, 0.5, 0.7310586, 1])


def test_informative_means_above_the_threshold():
    scores = np.array([0.2, 0.5, 0.50001, 0.9], np.float32)
    assert is_informative(scores, FilterParams()).tolist() == [False, False, True, True]
    assert is_informative(scores, FilterParams(threshold=0.2)).tolist() == [False, True, True, True]


def test_patches_of_any_size_come_to_one_size_in_order():
    patches = [np.full((h, w), n, np.uint8) for n, (h, w) in enumerate([(224, 224), (100, 224), (224, 224), (64, 70)])]
    out = to_hash_side(patches)
    assert out.shape == (4, 224, 224) and [image.min() for image in out] == [image.max() for image in out] == [0, 1, 2, 3]


def test_training_learns_and_is_repeatable():
    images, is_good = stripes_and_blanks(24)
    params = ClassifierParams(epochs=2, batch_size=8, learning_rate=3e-4, validation_share=0.25, device="cpu")
    names = [f"p{n}" for n in range(24)]
    split = split_labelled(names, is_good, params)
    weights = []
    for _ in range(2):
        torch.manual_seed(0)
        model = build_classifier()
        results = list(train_classifier(model, images, is_good, split, params, Finetune.all))
        weights.append(model.fc.weight.detach().clone())
    assert torch.equal(*weights)
    assert results[-1].training_loss < results[0].training_loss
    assert [result.epoch for result in results] == [1, 2]
    assert results[-1].validation_accuracy == 1, "right in evaluation mode too, after few steps from random weights"


def test_settled_statistics_are_those_of_all_patches_in_whatever_order_they_come():
    images, is_good = stripes_and_blanks(24)
    images = images[np.argsort(is_good)]  # neighbours look alike, as in a table sorted by name
    torch.manual_seed(0)
    model = build_classifier()
    settle_statistics(model, images, ClassifierParams(batch_size=8, device="cpu"))
    with torch.no_grad():
        outputs = model.conv1(to_network(torch.from_numpy(images).float()))
    deviation, mean = torch.std_mean(outputs, dim=(0, 2, 3))
    assert torch.allclose(model.bn1.running_mean, mean, atol=0.02 * float(deviation.max()))
    assert float((model.bn1.running_var.sqrt() / deviation).min()) > 0.85, "the spread between batches is in it"
    assert not model.training and model.bn1.momentum == 0.1


def test_only_layer4_and_fc_move_unless_all_do():
    model = build_classifier()
    freeze(model, Finetune.layer4)
    moving = {name.split(".")[0] for name, value in model.named_parameters() if value.requires_grad}
    assert moving == {"layer4", "fc"}
    freeze(model, Finetune.all)
    assert all(value.requires_grad for value in model.parameters())


def test_the_split_keeps_the_share_of_labels_and_depends_on_names_only():
    is_good = np.arange(100) < 40
    names = [f"p{n}" for n in range(100)]
    params = ClassifierParams()
    split = split_labelled(names, is_good, params)
    assert len(split.validation) == 15 and is_good[split.validation].sum() == 6
    assert sorted([*split.training, *split.validation]) == list(range(100))
    order = np.random.default_rng(0).permutation(100)
    again = split_labelled([names[n] for n in order], is_good[order], params)
    assert {names[n] for n in split.validation} == {names[order[n]] for n in again.validation}


def test_augmentations_have_the_distributions_they_promise():
    generator = torch.Generator().manual_seed(0)
    flat = torch.full((200, 224, 224), 128.0)
    out = augment(flat, generator)
    assert out.min() >= 0 and out.max() <= 255
    deviations = out.flatten(1).std(1)
    is_noisy = deviations > 0.5
    assert 0.4 < is_noisy.float().mean() < 0.6
    means = out.flatten(1).mean(1)
    is_bright = (means - 128).abs() > 1
    assert 0.38 < is_bright.float().mean() < 0.6 and (means - 128).abs().max() < 128 * 0.2 + 255 * 0.2 + 2
    ramp = torch.arange(224.0).expand(100, 224, 224) * 0.5 + 60
    flipped = (augment(ramp, generator)[:, :, -20:].mean((1, 2)) < augment(ramp, generator)[:, :, :20].mean((1, 2))).float()
    assert 0.25 < flipped.mean() < 0.75


def test_measures_of_known_decisions():
    class Fixed(torch.nn.Module):
        def forward(self, inputs):
            return (inputs[:, 0, 0, 0] > 0).float().unsqueeze(1) * 8 - 4

    images = np.stack([np.full((224, 224), value, np.uint8) for value in (0, 0, 255, 255, 255)])
    labels = np.array([False, True, True, True, False])
    measured = evaluate(Fixed(), images, labels, ClassifierParams(device="cpu"))
    assert measured.confusion.tolist() == [[1, 1], [1, 2]]
    assert measured.accuracy == pytest.approx(3 / 5)
    assert measured.auc == pytest.approx(0.5 * (2 / 3) + 0.5 * 0.5)  # counted by hand over the six pairs
