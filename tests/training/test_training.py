import dataclasses
import json
import threading

import numpy as np
import pytest
import torch

from rvlr_lib.config import MethodSettings, Settings, TrainSettings, load_settings, variant_weights
from rvlr_lib.data.dataset import ArraySource, ImageTextDataset
from rvlr_lib.models import Student, Teacher, build_towers
from rvlr_lib.similarity import unit_rows
from rvlr_lib.training.batches import ahead
from rvlr_lib.training.loop import BatchSource, Inputs, choose_device, fit
from rvlr_lib.training.objectives import StudentObjective, TeacherObjective
from rvlr_lib.training.stages import (
    cross_modal_recall,
    derived_seed,
    encode_with_student,
    shuffle_teacher,
    train_student,
)

WORDS = "one two three four five six seven eight".split()
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pairs():
    """32 pictures of plain colours with a caption or two that name them apart."""
    generator = np.random.default_rng(0)
    pictures = np.repeat(np.repeat(generator.integers(0, 256, (32, 4, 4, 3), dtype=np.uint8), 12, 1), 12, 2)
    captions, owner = [], []
    for row in range(32):
        name = f"{WORDS[row % 8]} {WORDS[row // 8]}"
        captions += [name, f"the {name}"][: 1 + row % 2]
        owner += [row] * (1 + row % 2)
    ids = [str(row) for row in range(32)]
    return ImageTextDataset("toy", "train", ids, captions, np.array(owner), ArraySource(pictures))


@pytest.fixture(scope="module")
def towers():
    return build_towers("tiny")


def objective_for(pairs, towers, variant="rvlr", **overrides):
    settings = load_settings("official", overrides={"model.fusion_layers": 1, **overrides})
    weights = variant_weights(settings, variant)
    generator = torch.Generator().manual_seed(0)
    teachers = tuple(unit_rows(torch.randn(n, 24, generator=generator)) for n in (32, len(pairs.captions)))
    student = Student(towers, fusion_layers=settings.model.fusion_layers)
    return StudentObjective(student, weights, settings.method, teachers, towers.embed_dim, seed=0), weights


def inputs_for(pairs, towers, two_views=False):
    source = BatchSource(pairs, towers.tokenizer, 48, TrainSettings(batch_size=16), "images", seed=0)
    return next(source.epoch(0, CPU, two_views=two_views))


def run(objective, weights, pairs, towers, tmp_path, **settings):
    train = TrainSettings(**{"epochs": 2, "batch_size": 16, "log_every": 1, **settings})
    source = BatchSource(pairs, towers.tokenizer, 48, train, "images", seed=0)
    return fit(objective, weights, source, train, seed=0, device=CPU, validate=lambda: {"score": 0.0},
               log_path=tmp_path / "log.jsonl", label="toy")  # fmt: skip


def test_training_overfits_32_pairs(pairs, towers, tmp_path):
    student = Student(towers)
    stage = TrainSettings(epochs=60, batch_size=32, learning_rate=2e-3, crop_scale=(0.99, 1.0), flip=False)
    weights = variant_weights(Settings(), "contrastive")
    train_student(student, towers, pairs, pairs, Settings(), stage, weights, None, seed=0, device=CPU,
                  log_path=tmp_path / "log.jsonl", label="overfit")  # fmt: skip
    recalls = cross_modal_recall(
        *encode_with_student(student, pairs, towers, CPU), torch.as_tensor(pairs.caption_image)
    )
    assert recalls["r_mean"] > 95


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("contrastive", {"contrastive"}),
        ("matching", {"contrastive", "matching"}),
        ("representation", {"contrastive", "matching", "image_representation", "text_representation"}),
        ("structure", {"contrastive", "matching", "structure", "image_teacher_structure", "text_teacher_structure"}),
        ("intra", {"contrastive", "matching", "image_intra", "text_intra"}),
    ],
)
def test_each_variant_computes_its_terms_and_no_other(pairs, towers, variant, expected):
    objective, _ = objective_for(pairs, towers, variant)
    inputs = inputs_for(pairs, towers, objective.two_views)
    assert set(objective(inputs, torch.autocast("cpu", enabled=False))) == expected


@pytest.mark.parametrize("target", ["common", "fusion"])
@pytest.mark.parametrize("teacher", ["fused", "own"])
def test_no_gradient_reaches_the_teachers_and_all_students_parts_get_some(pairs, towers, target, teacher):
    overrides = {"method.structure_target": target, "method.structure_teacher": teacher}
    objective, _ = objective_for(pairs, towers, **overrides)
    terms = objective(inputs_for(pairs, towers), torch.autocast("cpu", enabled=False))
    sum(terms.values()).backward()
    assert not objective.image_teacher.requires_grad
    for name, parameter in objective.named_parameters():
        unused = name.startswith("log_representation") or (teacher == "own" and name.startswith("fusion_weight"))
        assert unused or parameter.grad is not None, name


def test_fused_target_pulls_both_modalities_to_one_geometry(pairs, towers):
    """With ``own`` the picture side of the loss does not change with the text teacher; with ``fused`` it does."""
    values = {}
    for teacher in ("own", "fused"):
        objective, _ = objective_for(
            pairs, towers, "structure", **{"method.structure_teacher": teacher, "method.structure_target": "common"}
        )
        texts = torch.zeros(16, 8) + torch.arange(8.0)
        images = unit_rows(torch.randn(16, 8, generator=torch.Generator().manual_seed(1))).requires_grad_()
        gradients = []
        for seed in (2, 3):
            objective.text_teacher = unit_rows(
                torch.randn(objective.text_teacher.shape, generator=torch.Generator().manual_seed(seed))
            )
            rows = torch.arange(16)
            inputs = Inputs(images, images, rows, rows)
            (gradient,) = torch.autograd.grad(objective._structure(images, texts, None, inputs)["structure"], images)
            gradients.append(gradient)
        values[teacher] = torch.equal(*gradients)
    assert values == {"own": True, "fused": False}


def test_the_cost_of_wasserstein_has_gradient_only_where_the_switch_says_so(pairs, towers):
    gradients = []
    for kept in (True, False):
        objective, _ = objective_for(
            pairs, towers, "structure", **{"method.distance": "wasserstein", "method.structure_target": "common",
                                           "method.structure_teacher": "own", "method.cost_gradient": kept}
        )  # fmt: skip
        images = unit_rows(torch.randn(16, 8, generator=torch.Generator().manual_seed(1))).requires_grad_()
        texts = unit_rows(torch.randn(16, 8, generator=torch.Generator().manual_seed(2))).requires_grad_()
        rows = torch.arange(16)
        term = objective._structure(images, texts, None, Inputs(images, images, rows, rows))["structure"]
        gradients.append(torch.autograd.grad(term, texts)[0])
    assert not torch.allclose(*gradients)


def test_same_seed_same_weights_and_log(pairs, towers, tmp_path):
    states = []
    for name in ("a", "b"):
        objective, weights = objective_for(pairs, towers)
        states.append(run(objective, weights, pairs, towers, tmp_path / name).state)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert (tmp_path / "a/log.jsonl").read_text() == (tmp_path / "b/log.jsonl").read_text()


def test_second_views_do_not_change_the_batches(pairs, towers):
    source = BatchSource(pairs, towers.tokenizer, 48, TrainSettings(batch_size=16), "images", seed=0)
    for one, two in zip(source.epoch(1, CPU, two_views=False), source.epoch(1, CPU, two_views=True), strict=True):
        assert torch.equal(one.pixels, two.pixels)
        assert torch.equal(one.caption_rows, two.caption_rows)
        assert not torch.equal(two.pixels, two.second_pixels)


def test_log_holds_every_term_and_scalar(pairs, towers, tmp_path):
    objective, weights = objective_for(pairs, towers)
    run(objective, weights, pairs, towers, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "total" in line]
    assert [line["step"] for line in steps] == list(range(4))
    assert {"loss/contrastive", "loss/matching", "loss/structure", "loss/text_representation", "fusion_weight",
            "temperature", "relation_temperature", "gradient_norm", "learning_rate"} <= set(steps[0])  # fmt: skip
    assert sum("validation/score" in line for line in lines) == 2


def test_learning_rate_rises_then_falls_to_almost_nothing(pairs, towers, tmp_path):
    objective, weights = objective_for(pairs, towers, "contrastive")
    run(objective, weights, pairs, towers, tmp_path, epochs=10, learning_rate=1.0e-3, warmup=0.2)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    rates = [line["learning_rate"] for line in lines if "total" in line]
    top = rates.index(max(rates))
    assert max(rates) == pytest.approx(1e-3)
    assert top == pytest.approx(4, abs=1)
    assert rates[0] < 3e-4
    assert rates[-1] < 1e-4
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_a_loss_that_is_not_finite_is_named_and_stops_training(pairs, towers, tmp_path):
    objective, weights = objective_for(pairs, towers, "structure")
    objective.image_teacher[3] = float("nan")
    with pytest.raises((FloatingPointError, ValueError), match="structure|finite|NaN"):
        run(objective, weights, pairs, towers, tmp_path)


def test_weight_decay_spares_biases_norms_temperatures_and_the_fusion_weight(pairs, towers):
    from rvlr_lib.training.loop import _optimizer

    objective, _ = objective_for(pairs, towers)
    optimizer, _ = _optimizer(objective, TrainSettings(scalar_lr_multiplier=7.0), 10)
    decay, plain, scalars = optimizer.param_groups
    assert decay["weight_decay"] == 0.01
    assert all(parameter.ndim > 1 for parameter in decay["params"])
    assert plain["weight_decay"] == scalars["weight_decay"] == 0
    assert len(scalars["params"]) == 2
    assert scalars["initial_lr"] == pytest.approx(7 * decay["initial_lr"])
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(objective.parameters()))


def test_distillation_needs_teachers_and_the_fusion_target_a_fusion_encoder(towers):
    weights = variant_weights(Settings(), "rvlr")
    with pytest.raises(ValueError, match="no teacher features"):
        StudentObjective(Student(towers), weights, MethodSettings(), None, 96, 0)
    method = dataclasses.replace(MethodSettings(), structure_target="fusion")
    with pytest.raises(ValueError, match="fusion_layers"):
        StudentObjective(Student(towers), weights, method, (torch.ones(2, 3), torch.ones(2, 3)), 96, 0)


def test_shuffled_teachers_move_every_picture_with_its_captions(pairs):
    count, owner = len(pairs), torch.as_tensor(pairs.caption_image)
    images, texts = torch.arange(count).float()[:, None], owner.float()[:, None]
    moved_images, moved_texts = shuffle_teacher((images, texts), owner, seed=0)
    assert sorted(moved_images.flatten().tolist()) == list(range(count))
    assert not (moved_images == images).any()
    assert torch.equal(moved_texts, moved_images[owner])


def test_teacher_objective_uses_one_modality(pairs, towers):
    inputs = inputs_for(pairs, towers, two_views=True)
    for modality in ("image", "text"):
        terms = TeacherObjective(Teacher(towers, modality))(inputs, torch.autocast("cpu", enabled=False))
        assert set(terms) == {f"{modality}_intra"}


def test_seeds_of_two_purposes_differ_and_stay():
    assert derived_seed(0, "stage1") == derived_seed(0, "stage1")
    assert len({derived_seed(0, "stage1"), derived_seed(0, "stage2"), derived_seed(1, "stage1")}) == 3


def test_a_demanded_gpu_that_is_not_there_is_an_error():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ValueError, match="sees no CUDA device"):
        choose_device("cuda")
    assert choose_device("auto") == CPU


def test_the_next_batch_is_read_while_this_one_is_used():
    begun = [threading.Event() for _ in range(3)]

    def read(number):
        begun[number].set()
        return 1 / (2 - number)

    reader = ahead(range(3), read)
    for number in range(2):
        assert next(reader) == (number, 1 / (2 - number))
        assert begun[number + 1].wait(timeout=60)
    with pytest.raises(ZeroDivisionError):
        next(reader)
