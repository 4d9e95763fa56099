from itertools import product

import pytest
import torch

from rvlr_lib.losses import structure_distillation_loss
from rvlr_lib.similarity import ridge_map, unit_rows
from rvlr_lib.training.objectives import RIDGE, Objective, gradient_shares, shuffle_teachers, warm_heads
from tests.training.conftest import OFFICIAL, OWNER, make_cached, make_objective

TERMS = """, alignment, structure, mean_relation, anchor, cross_modal_cyclic in_modal_cyclic, image_intra text_intra,
    image_representation text_representation, structure image_teacher_structure text_teacher_structure""".split(",")


@pytest.mark.parametrize("terms", TERMS)
def test_an_arm_computes_its_terms_and_no_others(inputs, terms):
    objective = make_objective(fusion_layers=0, **dict.fromkeys(terms.split(), 2.0))
    assert objective(inputs).keys() == {"contrastive", *terms.split()}
    assert objective.two_views == ("image_intra" in terms)
    assert not objective.tokens


@pytest.mark.parametrize("target", ["common", "fusion"])
@pytest.mark.parametrize("teacher", ["fused", "own"])
def test_no_gradient_reaches_the_teachers_and_every_trained_parameter_gets_some(inputs, target, teacher):
    objective = make_objective({"structure_target": target, "structure_teacher": teacher}, **OFFICIAL)
    sum(objective(inputs).values()).backward()
    assert not any(rows.requires_grad for rows in objective.frozen("teacher"))
    for name, parameter in objective.named_parameters():
        unused = not parameter.requires_grad or (teacher == "own" and name.startswith("fusion_weight"))
        assert unused or parameter.grad is not None, name


def test_switches_reach_the_structure_loss(inputs):
    def expected(distance, features, share, **options):
        rows = make_cached().images[0][inputs.image_rows], make_cached().texts[inputs.caption_rows]
        common = {"fusion_weight": share, "temperature": 0.07, "distance": distance}
        return structure_distillation_loss(features, *rows, **common, **options).student

    cases = product((("row_kl", {}), ("mae", {"centred": True}), ("rkd_distance", {})), ("own", "fused"))
    for (distance, options), teacher in cases:
        method = {"distance": distance, "structure_teacher": teacher} | options
        shares = (0.0, 1.0) if teacher == "own" else (0.5, 0.5)
        objective = make_objective(method, fusion_layers=0, structure=1)
        objective.eval()
        z, w = objective.student.encode_image(inputs.images), objective.student.encode_text(inputs.texts)
        terms = [expected(distance, x.features, share, **options) for x, share in zip((z, w), shares, strict=True)]
        torch.testing.assert_close(objective(inputs)["structure"], sum(terms) / 2)
    gradients = []
    for cost_gradient in (True, False):
        method = {"distance": "wasserstein", "cost_gradient": cost_gradient, "structure_teacher": "own"}
        objective = make_objective(method, fusion_layers=0, structure=1)
        term = objective.eval()(inputs)["structure"]
        gradients.append(torch.autograd.grad(term, objective.student.text_head.proj.weight)[0])
    assert not torch.allclose(*gradients)


def test_shuffled_teachers_change_the_structure_terms_only(inputs):
    """One permutation for both teachers: no picture keeps its rows, and captions go with their picture."""
    images, texts = torch.arange(32.0)[:, None], OWNER.float()[:, None]
    shuffled_images, shuffled_texts = shuffle_teachers((images, texts), OWNER, seed=0)
    assert sorted(shuffled_images.flatten().tolist()) == list(range(32))
    assert not (shuffled_images == images).any()
    assert torch.equal(shuffled_texts, shuffled_images[OWNER])
    plain = make_objective(**OFFICIAL)
    others = shuffle_teachers((make_cached().images[0], make_cached().texts), OWNER, seed=0)
    teachers = {"teachers": tuple(plain.frozen("teacher")), "structure_teachers": others}
    shuffled = Objective(plain.student, plain.weights, plain.method, **teachers, seed=0)
    values = []
    for objective in (plain.eval(), shuffled.eval()):
        torch.manual_seed(0)
        values.append({name: float(term.detach()) for name, term in objective(inputs).items()})
    changed = {name for name in values[0] if values[0][name] != values[1][name]}
    assert changed == {"structure", "image_teacher_structure", "text_teacher_structure"}


def test_warm_heads_are_the_ridge_regression_onto_the_students_features():
    objective = make_objective(image_representation=1, text_representation=1)
    features = make_cached()
    targets = tuple(unit_rows(torch.randn(len(rows), 8)) for rows in (features.images[0], features.texts))
    warm_heads(objective, targets)
    heads = objective.image_head, objective.text_head
    for head, rows, target in zip(heads, (features.images[0], features.texts), targets, strict=True):
        weight, bias = ridge_map(rows, target, RIDGE)
        torch.testing.assert_close(head(rows), rows @ weight.T + bias)


def test_the_anchor_is_at_the_starting_weights(inputs):
    objective = make_objective(fusion_layers=0, anchor=1.0)
    assert float(objective(inputs)["anchor"].detach()) == 0
    for value in objective.student.parameters():
        value.data += 0.5
    count = sum(value.numel() for value in objective.student.parameters())
    torch.testing.assert_close(objective(inputs)["anchor"].detach(), torch.tensor(count / 4))


def test_gradient_shares_are_the_norms_of_the_weighted_terms_and_leave_no_trace(inputs):
    objective = make_objective(matching=2.0, structure=3.0).eval()  # without dropout
    torch.manual_seed(5)
    shares = gradient_shares(objective, inputs)  # seeded with 0, whatever the present seed
    torch.manual_seed(0)
    assert all(parameter.grad is None for parameter in objective.parameters())
    for name, share in shares.items():
        objective.zero_grad()
        (getattr(objective.weights, name) * objective(inputs)[name]).backward()
        norm = torch.cat([p.grad.flatten() for p in objective.parameters() if p.grad is not None]).norm()
        assert share == pytest.approx(float(norm), rel=1e-4)


def test_the_fusion_target_needs_a_fusion_encoder(refuses):
    refuses("fusion_layers", make_objective, {"structure_target": "fusion"}, fusion_layers=0, structure=1)
