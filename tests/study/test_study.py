import pytest
import torch

from rvlr_lib.config import ARMS, load_settings
from rvlr_lib.disk import read_json
from rvlr_lib.study import inputs
from rvlr_lib.study.study import open_study
from tests.tiny import tiny_towers


def test_a_result_comes_from_the_cache_the_second_time(make_study, monkeypatch):
    study = make_study()
    first = study.result("structure")
    assert {"metrics", "structure", "provenance"} <= first.record.keys()
    assert first.metrics["r_mean"] > 0
    assert "image/overlap_start" in first.structure
    again = make_study(missing="nothing may be computed")
    assert again.result("structure").metrics == first.metrics
    with pytest.raises(ValueError, match="nothing may be computed"):
        again.result("intra")


def test_every_arm_trains_and_is_evaluated(make_study):
    study = make_study(**{"data.train_size": 32})
    for name in (name for name in ARMS if name not in ("teacher_lite2", "teacher_random")):
        assert torch.isfinite(study.test_features(name)[0]).all(), name


def test_all_seven_terms_train_on_cached_tokens_and_rerank(make_study):
    study = make_study(**{"model.fusion_layers": 1, "method.teacher_terms": True, "rerank_top_k": 4})
    record = study.result("rvlr_published").record
    terms = {key for line in study.training_log("rvlr_published") for key in line if key.startswith("loss/")}
    assert len(terms) == 7
    assert record["reranked"]["r_mean"] > 0


def test_a_seed_draws_its_own_world(make_study):
    captions = [make_study(seed=seed).dataset("test").captions for seed in (0, 0, 1)]
    assert captions[0] == captions[1] != captions[2]


def test_a_dial_of_captions_leaves_the_features_of_pictures_alone(make_study):
    plain, poor = make_study(), make_study(**{"data.text_detail": 0.5})
    assert plain._feature_stage("image").key == poor._feature_stage("image").key
    assert plain._feature_stage("text").key != poor._feature_stage("text").key


def test_stages_of_stage_two_share_batches_and_start(make_study):
    study = make_study()
    keys = {name: study._student_stage(name) for name in ("rvlr", "matching_longer")}
    assert len({stage.parts["seed"] for stage in keys.values()}) == 1
    assert len({stage.needs[0].key for stage in keys.values()}) == 1


def test_an_evaluation_switch_retrains_nothing(make_study):
    plain, switched = make_study(), make_study(**{"method.mixed_t2it": "transposed"})
    assert plain._student_stage("rvlr").key == switched._student_stage("rvlr").key
    assert plain.result_stage("rvlr").key != switched.result_stage("rvlr").key


def test_the_shuffled_control_hears_other_teachers_in_the_structure_term_alone(make_study):
    study = make_study()
    plain, shuffled = (study.first_gradients(name) for name in ("structure", "shuffled"))
    assert plain["contrastive"] == pytest.approx(shuffled["contrastive"])
    assert plain["structure"] != pytest.approx(shuffled["structure"])


def test_references_have_what_they_can_have(make_study):
    study = make_study()
    assert study.result("ceiling").metrics["r_mean"] > study.result("floor").metrics["r_mean"]
    assert not [key for key in study.result("teachers").metrics if key.startswith("i2t/")]


def test_unknown_names_are_listed(make_study):
    with pytest.raises(ValueError, match="unknown arm 'rvlx': valid are"):
        make_study().result("rvlx")
    with pytest.raises(ValueError, match="unknown preset 'huge'"):
        open_study("scenes", preset="huge")


def test_edited_files_are_read_again(tmp_path):
    """In one process: the stamp of every file read is part of the key of what is kept."""
    from PIL import Image

    index = tmp_path / "mine.csv"
    for number in range(12):
        Image.new("RGB", (16, 16), (number * 20, 0, 0)).save(tmp_path / f"{number}.png")

    def write(words):
        splits = ["train", "val", "test"]
        rows = [f"{number}.png,{words} {number},{splits[number % 3]}" for number in range(12)]
        index.write_text("\n".join(["image,caption,split", *rows]) + "\n")

    write("red square")
    settings = load_settings("own", overrides={"data.name": str(index)})
    assert inputs.read_split(settings, "test").captions[0] == "red square 2"
    write("blue circle")
    assert inputs.read_split(settings, "test").captions[0] == "blue circle 2"


def test_own_pictures_train_and_are_evaluated(tmp_path):
    import numpy as np
    from PIL import Image

    tiny_towers()
    rows, draws = ["image,caption"], np.random.default_rng(0)
    for number in range(120):
        Image.fromarray(draws.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
        rows += [f"{number}.png,thing {number} of {number % 7}"] * (1 + number % 2)
    (tmp_path / "mine.csv").write_text("\n".join(rows) + "\n")
    small = {"model.name": "tiny_48", "model.width": 32, "stage1.batch_size": 16, "stage2.batch_size": 16}
    study = open_study(
        str(tmp_path / "mine.csv"),
        preset="smoke",
        device="cpu",
        root=tmp_path / "runs",
        **small,
        **{"data.train_size": 0, "data.val_size": 0, "data.gallery_size": 0},
    )
    result = study.result("rvlr")
    assert result.record["dataset"] == "mine"
    assert result.metrics["r_mean"] > 0


def test_whole_towers_train_with_the_same_code(make_study):
    study = make_study(**{"model.freeze_towers": False, "stage1.epochs": 1, "data.train_size": 16})
    assert study.result("matching").metrics["r_mean"] > 0
    assert read_json(study.student_folder("matching") / "fit.json")["steps"] == 1
