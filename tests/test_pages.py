"""The code of the README runs, public names stay, and the rows and switches of FIDELITY.md agree with the settings."""

import dataclasses
import importlib
import inspect
import re
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch

from rvlr_lib.config import MethodSettings, load_settings
from tests.tiny import CONFIG

ROOT = Path(__file__).parents[1]
README, FIDELITY = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "FIDELITY.md"))
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)
ROWS = re.findall(r"^\| (\d+).* \| (.*) \|$", FIDELITY, re.MULTILINE)  # number and last cell
SWITCH = re.compile(r"`(\w+)`: (\S+) → ([^;\s]+)")
SAME_IN_BOTH = {"weights", "relation_temperature", "learn_fusion_weight", "fusion_weight", "centred"}


def test_the_recipe_trains_an_open_clip_model():
    assert len([line for line in BLOCKS[0].splitlines() if line]) <= 16
    open_clip.add_model_config(CONFIG)
    tiny = BLOCKS[0].replace('"ViT-B-32"', '"tiny_48"')
    assert tiny != BLOCKS[0]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 40000, (4, 32), generator=generator)
    teachers = (torch.randn(4, width, generator=generator) for width in (20, 30))
    scope = {"loader": [(torch.rand(4, 3, 48, 48, generator=generator), ids, *teachers)] * 2}
    exec(tiny, scope)
    assert torch.isfinite(scope["loss"])
    assert scope["terms"].student.requires_grad


def test_the_metrics_example_runs(capsys):
    generator = torch.Generator().manual_seed(0)
    scope = {"captions": ["A red circle!", "a red disc", "two blue stars"], "caption_image": np.array([0, 0, 1])}
    scope |= {f"{name}_features": torch.randn(n, 8, generator=generator) for name, n in (("image", 2), ("text", 3))}
    exec(BLOCKS[1], scope)
    assert len(capsys.readouterr().out.split()) == 3


def test_fidelity_has_33_rows_in_order_and_both_values_of_every_switch():
    assert list(dict.fromkeys(int(number) for number, _ in ROWS)) == list(range(1, 34))
    official, corrected = load_settings("official").method, load_settings("corrected").method
    assert all(SWITCH.search(row) or row.startswith("none: ") for _, row in ROWS)
    listed = {switch for _, row in ROWS for switch in SWITCH.findall(row)}
    names = {field.name for field in dataclasses.fields(MethodSettings)} - SAME_IN_BOTH
    assert listed == {(name, str(getattr(official, name)), str(getattr(corrected, name))) for name in names}


THREE = "student_features image_teacher_features text_teacher_features fusion_weight temperature"
OTHERS = "scores_i2t scores_t2i image_relevance text_relevance protocol ks_recall ks_ndcg chunk_size per_query"
CONTRACT = [
    "losses image_text_contrastive_loss image_features text_features temperature image_ids",
    "losses representation_distillation_loss student_features teacher_features temperature image_ids bidirectional",
    "losses sample_hard_negatives similarity temperature image_ids generator",
    "losses image_text_matching_loss positive_logits negative_logits",
    f"losses structure_distillation_loss {THREE} distance cost_features centred",
    f"losses mean_relation_loss {THREE}",
    "metrics recall_at_k scores positives ks per_query",
    "metrics ndcg_at_k scores relevance ks exclude per_query",
    f"metrics evaluate_retrieval image_features text_features caption_image relevance {OTHERS}",
    "metrics relative_modality_gap image_features text_features caption_image",
    "data clean_caption text",
    "data rouge_l_relevance captions caption_image variant num_images chunk_size",
    "data load_dataset name_or_path split image_root",
    "data ImageTextDataset",
    "models build_towers",
    "evaluation.baselines centre features reference",
    "evaluation.baselines normalise_by_neighbours scores bank_scores weight k",
    "evaluation.baselines interpolate_weights start trained alpha",
    "study open_study name device root",
]


@pytest.mark.parametrize("line", CONTRACT)
def test_names_and_parameters_stay(line):
    package, name, *wanted = line.split()
    parameters = inspect.signature(getattr(importlib.import_module(f"rvlr_lib.{package}"), name)).parameters
    assert [parameter for parameter in parameters if parameter in wanted] == wanted
