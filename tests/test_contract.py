"""Names that others build on: where they are imported from, and their parameters in order."""

import importlib
import inspect

import pytest

CONTRACT = {
    "losses": {
        "image_text_contrastive_loss": "image_features text_features temperature image_ids",
        "representation_distillation_loss": "student_features teacher_features temperature image_ids bidirectional",
        "sample_hard_negatives": "similarity temperature image_ids generator",
        "image_text_matching_loss": "positive_logits negative_logits",
        "structure_distillation_loss": "student_features image_teacher_features text_teacher_features fusion_weight "
        "temperature distance cost_features centred",
        "mean_relation_loss": "student_features image_teacher_features text_teacher_features fusion_weight temperature",
    },
    "metrics": {
        "recall_at_k": "scores positives ks per_query",
        "ndcg_at_k": "scores relevance ks exclude per_query",
        "evaluate_retrieval": "image_features text_features caption_image relevance scores_i2t scores_t2i "
        "image_relevance text_relevance protocol ks_recall ks_ndcg chunk_size per_query",
        "relative_modality_gap": "image_features text_features caption_image",
    },
    "data": {
        "clean_caption": "text",
        "rouge_l_relevance": "captions caption_image variant num_images chunk_size",
        "load_dataset": "name_or_path split image_root",
        "ImageTextDataset": "",
    },
    "models": {"build_towers": ""},
    "evaluation.baselines": {
        "centre": "features reference",
        "normalise_by_neighbours": "scores bank_scores weight k",
        "interpolate_weights": "start trained alpha",
    },
    "study": {"open_study": "name device root"},
}


@pytest.mark.parametrize(("room", "name"), [(room, name) for room, names in CONTRACT.items() for name in names])
def test_names_and_parameters_stay(room, name):
    function = getattr(importlib.import_module(f"rvlr_lib.{room}"), name)
    wanted = CONTRACT[room][name].split()
    if wanted:
        assert [each for each in inspect.signature(function).parameters if each in wanted] == wanted
