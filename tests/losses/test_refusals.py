"""Errors for bad input; a check that several losses share is tested on one of them."""

import pytest
import torch

from rvlr_lib import losses

ONES, SQUARE, WIDE, LONG = torch.ones(4, 3), torch.zeros(3, 3), torch.ones(3, 2), torch.ones(1, 4)
NANS = torch.tensor([0, 1, torch.nan, torch.nan])


def contrast(student=ONES, teacher=ONES, temperature=0.1, ids=None):
    return losses.representation_distillation_loss(student, teacher, temperature, ids)


def structure(*counts, function=losses.structure_distillation_loss, **change):
    rows = [torch.ones(count, 2) for count in counts or (4, 4, 4)]
    return function(*rows, **{"fusion_weight": 0.5, "temperature": 0.1} | change)


def match(*shapes):
    return losses.image_text_matching_loss(*map(torch.zeros, shapes))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: contrast(teacher=torch.ones(4, 2)), r"\(4, 3\).*\(4, 2\)"),
        (lambda: contrast(torch.ones(4), torch.ones(4)), "matrices"),
        (lambda: contrast(torch.ones(4, 0), torch.ones(4, 0)), "matrices"),
        (lambda: contrast(torch.ones(1, 3), torch.ones(1, 3)), "B >= 2"),
        (lambda: contrast([["a"], ["b"]], torch.ones(2, 1)), "_features must hold numbers"),
        (lambda: contrast(ONES * 1j), "real numbers"),
        (lambda: contrast(ONES.to_sparse()), "must hold dense real numbers"),
        (lambda: contrast([[1.0], [1.0, 2.0]], torch.ones(2, 1)), "_features is not an array"),
        (lambda: contrast(temperature=0), "temperature must not be zero"),
        (lambda: contrast(temperature=torch.tensor(0.0)), "temperature must not be zero"),
        (lambda: contrast(temperature=torch.ones(4)), "0-d"),
        (lambda: contrast(temperature="warm"), "temperature must be a number"),
        (lambda: contrast(temperature=torch.tensor(1j)), "temperature must be a real number"),
        (lambda: contrast(ONES.to(torch.float8_e4m3fn)), "of 16 bits or more"),
        *((lambda ids=ids: contrast(ids=ids), "image_ids hold NaN") for ids in (NANS, ["a", "b", *NANS.tolist()[2:]])),
        (lambda: contrast(ids=[None, 1, 2, 3]), "image_ids must be numbers or strings, all of one kind"),
        (lambda: losses.image_text_contrastive_loss(ONES, ONES[:3], 1), r"image_.* \(4, 3\), text_.* \(3, 3\)"),
        (lambda: structure(distance=["mae"]), "unknown distance"),
        (lambda: contrast(ids=torch.arange(3)), r"\(3,\)"),
        (lambda: contrast(ids=torch.zeros(4, 1)), r"\(4, 1\)"),
        (lambda: losses.pair_alignment_loss(ONES, torch.ones(4, 2)), r"\(4, 3\).*\(4, 2\)"),
        (lambda: losses.cross_modal_cyclic_loss(ONES, torch.ones(4, 2)), r"\(4, 3\).*\(4, 2\)"),
        (lambda: losses.in_modal_cyclic_loss(ONES, torch.ones(5, 3)), r"\(4, 3\).*\(5, 3\)"),
        (lambda: structure(distance="kl"), "unknown distance 'kl'; valid: mae, mse, cumulative_l1"),
        (lambda: structure(distance="wasserstein"), "needs cost_features"),
        (lambda: structure(distance="wasserstein", cost_features=torch.ones(3, 2)), r"\(4, 2\).*\(3, 2\)"),
        (lambda: structure(distance="wasserstein", centred=True), "not with wasserstein"),
        (lambda: structure(distance="rkd_angle", centred=True), "not with rkd_angle"),
        (lambda: structure(temperature=0.0), "zero"),
        (lambda: structure(fusion_weight=torch.ones(2)), r"fusion_weight .*\(2,\)"),
        (lambda: structure(4, 4, 5), r"\(4, 2\).*\(5, 2\)"),
        (lambda: structure(more_features=[ONES[:3]]), r"more_features\[0\] \(3, 3\)"),
        (lambda: structure(2, 2, 2, distance="rkd_angle"), "B >= 3"),
        (lambda: structure(1, 1, 1, function=losses.mean_relation_loss), "B >= 2"),
        (lambda: structure(temperature=0.0, function=losses.mean_relation_loss), "zero"),
        (lambda: losses.sample_hard_negatives(torch.zeros(3, 4), 0.1), r"\(3, 4\)"),
        (lambda: losses.sample_hard_negatives(torch.zeros(1, 1), 0.1), "B >= 2"),
        (lambda: losses.sample_hard_negatives(SQUARE, 0.0), "zero"),
        (lambda: losses.sample_hard_negatives(SQUARE, 0.1, torch.zeros(3)), "no negative"),
        (lambda: losses.sample_hard_negatives(SQUARE * torch.nan, 0.1), "finite"),
        (lambda: match((4, 2), (4, 2)), "expected logits"),
        (lambda: match((4, 3), (8, 3)), "expected logits"),
        (lambda: match((1, 2), (2, 2)), "expected logits"),
        (lambda: match((4,), (8, 2)), "expected logits"),
        (lambda: losses.anchor_loss([WIDE, LONG], [WIDE]), "shorter"),
        (lambda: losses.anchor_loss([WIDE, LONG], [LONG, WIDE]), r"\(3, 2\), \(1, 4\)"),
        (lambda: losses.anchor_loss([], []), "none"),
        (lambda: losses.FusionWeight(0.5, "relu"), "valid: sigmoid, free"),
        (lambda: losses.FusionWeight(1.0), r"inside \(0, 1\)"),
    ],
)
def test_bad_input_is_named(call, message, refuses):
    refuses(message, call)
