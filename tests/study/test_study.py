import pytest
import torch

from rvlr_lib.config import VARIANTS
from rvlr_lib.study.study import REFERENCES, Study, open_study
from rvlr_lib.training import stages

SIZES = {"train_size": 64, "val_size": 32, "galleries": 2, "gallery_size": 30, "teacher_epochs": 1, "stage1_epochs": 1,
         "stage2_epochs": 1}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def study(root):
    return open_study("scenes", device="cpu", root=root, fusion_layers=1, **SIZES)


@pytest.mark.parametrize("name", [*VARIANTS, *REFERENCES])
def test_every_variant_and_reference_gives_a_record(study, name):
    result = study.result(name)
    assert result.record["variant"] == name
    assert result.record["dataset"] == "scenes"
    assert result.metrics
    assert all(value <= 100 + 1e-9 for value in result.metrics.values())
    assert all(value >= 0 for key, value in result.metrics.items() if not key.endswith("above_floor"))
    provenance = result.record["provenance"]
    assert len(provenance["data"]) == 64
    assert provenance["settings"]["stage1"]["epochs"] == 1
    assert provenance["versions"]["torch"] == torch.__version__.split("+")[0] or "+" in torch.__version__
    if name not in ("floor", "ceiling"):
        assert {"image/overlap_teacher", "text/overlap_truth"} <= set(result.structure)
    if name == "teachers":
        assert not any(key.startswith(("i2t", "t2i", "r_mean")) for key in result.metrics)


def test_nothing_is_trained_twice(study, root, monkeypatch):
    for variant in ("rvlr", "matching_longer"):
        study.result(variant)
    monkeypatch.setattr(stages, "train_student", None)
    monkeypatch.setattr(stages, "train_teacher", None)
    again = Study(study.settings, device="cpu", root=root)
    assert again.result("rvlr").metrics == study.result("rvlr").metrics


def test_the_start_has_the_teachers_geometry_and_frozen_keeps_it(study):
    for name in ("start", "frozen"):
        structure = study.result(name).structure
        assert structure["image/overlap_teacher"] == pytest.approx(100, abs=0.5)
        assert structure["text/overlap_teacher"] == pytest.approx(100, abs=0.5)
    assert study.result("rvlr").structure["text/overlap_teacher"] < 100


def test_stage_two_variants_share_their_start_and_seed(study):
    from rvlr_lib.disk import read_json

    parts = [read_json(study.student_folder(name) / "parts.json") for name in ("matching_longer", "rvlr", "intra")]
    assert len({part["start"] for part in parts}) == len({part["seed"] for part in parts}) == 1
    assert parts[0]["start"] == study.student_folder("matching").name


def test_another_dial_point_keeps_the_image_teacher_and_changes_the_rest(study, root):
    full = open_study("scenes", device="cpu", root=root, fusion_layers=1, text_detail=1.0, **SIZES)
    assert full.teacher_folder("image") == study.teacher_folder("image")
    assert full.teacher_folder("text") != study.teacher_folder("text")
    assert full.student_folder("matching") != study.student_folder("matching")


def test_an_evaluation_switch_retrains_nothing_and_a_training_switch_does(study, root):
    changes = {"as it is": {}, "evaluation": {"method.siblings": "in"}, "training": {"method.distance": "mse"}}
    folders = {
        name: open_study("scenes", device="cpu", root=root, fusion_layers=1, **SIZES, **change).student_folder("rvlr")
        for name, change in changes.items()
    }
    assert folders["as it is"] == folders["evaluation"] == study.student_folder("rvlr")
    assert folders["training"] != folders["as it is"]


def test_training_log_has_steps_and_validation(study):
    log = study.training_log("rvlr")
    assert {"loss/structure", "fusion_weight"} <= set(log[0])
    assert any("validation/r_mean" in line for line in log)
    assert "temperature" in study.training_log("text teacher")[0]


def test_scratch_students_do_not_start_from_teachers(root):
    scratch = open_study("scenes", device="cpu", root=root, init="scratch", **SIZES)
    assert scratch.result("start").structure["image/overlap_teacher"] < 99


def test_reranking_stands_beside_cosine_where_the_fusion_encoder_is(root):
    emoji = open_study("emoji", device="cpu", root=root, fusion_layers=1, train_size=64, val_size=32, teacher_epochs=1,
                       stage1_epochs=1, stage2_epochs=1, rerank_top_k=4)  # fmt: skip
    record = emoji.result("matching").record
    assert set(record["metrics_by_relevance"]) == {"rouge_l", "category"}
    assert {"i2t/R@1", "t2i/R@10", "r_mean"} <= set(record["reranked"])
    assert record["provenance"]["rouge"] == "coco"


def test_unknown_names_list_the_valid_ones(study):
    with pytest.raises(ValueError, match="matching_longer.*ceiling"):
        study.result("rvl")
    with pytest.raises(ValueError, match="stage1_epochs"):
        open_study("scenes", stage1_epoch=3)
    with pytest.raises(ValueError, match="scenes"):
        open_study("senes", device="cpu").dataset("test")


def test_a_damaged_cache_file_is_named(study, root, tmp_path):
    folder = study.student_folder("structure")
    weights = folder / "weights.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    try:
        with pytest.raises(ValueError, match=r"weights\.safetensors is damaged"):
            study.trained_student("structure")
    finally:
        weights.write_bytes(content)


def test_pictures_are_the_clusters_of_recall():
    """Equal numbers of captions: plain recall. Otherwise every picture weighs the same, whatever it has."""
    from rvlr_lib.data import load_dataset
    from rvlr_lib.evaluation import evaluate as evaluation

    scenes = load_dataset("scenes", split="test", galleries=2, gallery_size=20)
    features = evaluation.random_features(scenes, 8, 0)
    plain = evaluation.retrieval_metrics(features, scenes)["latent"]
    for key, value in evaluation.cluster_recall(features, scenes).items():
        assert value == pytest.approx(plain[key])
    emoji = load_dataset("emoji", split="train", limit=60)
    images, texts = evaluation.random_features(emoji, 8, 0)
    hits = [
        [float((texts[c] @ images.T).argsort(descending=True)[:5].eq(row).any()) for c in emoji.captions_of(row)]
        for row in range(60)
    ]
    slow = 100 * sum(sum(own) / len(own) for own in hits) / 60
    found = evaluation.cluster_recall((images, texts), emoji)
    assert found["t2i/R@5"] == pytest.approx(slow)
    assert found["t2i/R@5"] != pytest.approx(evaluation.retrieval_metrics((images, texts), emoji)["rouge_l"]["t2i/R@5"])
