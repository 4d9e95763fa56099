"""Public names: where they are imported from, and their parameters in order."""

import importlib
import inspect

import pytest

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
