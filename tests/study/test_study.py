import pytest
import torch

from rvlr_lib import cli
from rvlr_lib.config import ARMS, load_settings
from rvlr_lib.disk import load_tensors, read_json, sha256
from rvlr_lib.models import load_student
from rvlr_lib.study.cache import named_files, read_split
from rvlr_lib.study.study import FILES, open_study
from rvlr_lib.training import features
from tests.study.conftest import SIZES
from tests.tiny import draw_collection


def test_a_result_comes_from_the_cache_the_second_time(make_study, refuses):
    first = make_study().result("structure")
    assert {"metrics", "structure", "provenance"} <= first.keys()
    assert first.metrics["r_mean"] > 0
    assert "image/overlap_start" in first["structure"]
    again = make_study(missing="nothing may be computed")
    assert read_json(again.student_folder("structure") / "parts.json")["rows"] == again.settings.data.rows
    assert again.result("structure").metrics == first.metrics
    refuses("nothing may be computed", again.result, "intra")


def test_every_arm_trains_and_is_evaluated(make_study):
    study = make_study(**{"data.train_size": 32, "stage1.epochs": 6})
    for name in (name for name in ARMS if name not in ("teacher_lite2", "teacher_random")):
        assert torch.isfinite(study.test_features(name)[0]).all(), name
    assert read_json(study.student_folder("intra_only") / "fit.json")["best_epoch"] == 5  # the last: recall is chance
    assert study._student_stage("centred").parts["method"]["centred"]
    weak = make_study(**{"model.text_teacher": "weak"})
    assert [stage.parts["spec"] for stage in weak._teacher_stages("lite2")] == ["lite2", "weak"]


def test_all_seven_terms_train_on_cached_tokens_and_rerank(make_study):
    study = make_study(**{"model.fusion_layers": 1, "method.teacher_terms": True, "rerank_top_k": 4})
    record = study.result("rvlr_published")
    terms = {key for line in study.training_log("rvlr_published") for key in line if key.startswith("loss/")}
    assert len(terms) == 7
    assert "validation/r_mean" in study.training_log("rvlr_published")[-1]
    assert record["reranked"]["r_mean"] > 0


def keys(study):
    stages = {name: study._feature_stage(name) for name in ("image", "text")}
    stages |= {"rvlr": study._student_stage("rvlr"), "result": study.result_stage("rvlr")}
    return {name: stage.key for name, stage in stages.items()}


REMADE = {("data.text_detail", 0.5): "text rvlr result", ("data.image_visibility", 0.5): "image rvlr result"}
REMADE |= {("method.mixed_t2it", "transposed"): "result", ("method.distance", "mse"): "rvlr result"}
REMADE |= {("model.image_teacher", "weak"): "rvlr result"}


@pytest.mark.parametrize("change", REMADE)
def test_a_setting_remakes_what_depends_on_it_and_no_more(make_study, change):
    plain, changed = keys(make_study()), keys(make_study(**dict([change])))
    assert {name for name in plain if plain[name] != changed[name]} == set(REMADE[change].split())


def test_weights_are_identified_by_their_content(make_study, tmp_path):
    place = tmp_path / "own.pt"
    place.write_text("a")
    assert named_files("laion2b", None, f"local-dir:{tmp_path}") == named_files(f"timm:x:{place}") == [sha256(place)]
    other = make_study(**{"model.text_weights": str(place)})
    before = keys(other)
    place.write_text("another")
    assert not before.items() & keys(other).items()


def test_a_seed_draws_its_own_world_and_stages_of_stage_two_share_batches_and_start(make_study):
    captions = [make_study(seed=seed).dataset("test").captions for seed in (0, 0, 1)]
    assert captions[0] == captions[1] != captions[2]
    official = open_study("flickr30k").settings
    assert (official.arms, official.stage1.epochs) == ({}, 10)  # published strengths and lengths
    stages = [make_study()._student_stage(name) for name in ("rvlr", "matching_longer")]
    assert len({stage.parts["seed"] for stage in stages}) == 1
    assert len({stage.needs[0].key for stage in stages}) == 1


def test_the_shuffled_control_has_other_teachers_in_the_structure_term_only(make_study):
    study = make_study()
    plain, shuffled = (study.first_gradients(name) for name in ("structure", "shuffled"))
    assert plain["contrastive"] == pytest.approx(shuffled["contrastive"])
    assert plain["structure"] != pytest.approx(shuffled["structure"])


def test_reference_rows_have_the_metrics_that_apply_to_them(make_study, monkeypatch):
    study = make_study()
    monkeypatch.setattr(features, "fast_bfloat16", lambda device: device.type != "cpu")
    assert study.result("ceiling").metrics["r_mean"] > study.result("floor").metrics["r_mean"]
    assert not [key for key in study.result("teachers").metrics if key.startswith("i2t/")]
    assert study.result("floor")["provenance"]["device"] == "cpu without bfloat16"


def test_unknown_names_are_listed(make_study, refuses):
    refuses("unknown arm 'rvlx'; valid:", make_study().result, "rvlx")
    wrong = make_study(**{"model.text_teacher": "sentence:nowhere"})
    refuses("nowhere", wrong.result, "rvlr")
    assert not (wrong.cache.root / "cache" / "stage1").exists()
    refuses("unknown split 'dev'", make_study().dataset, "dev")
    refuses("data.name is 'emoji', but the data set is 'scenes'", open_study, "scenes", **{"data.name": "emoji"})
    refuses("unknown preset 'huge'", open_study, "scenes", preset="huge")


def test_edited_files_are_read_again_in_one_process(tmp_path):
    names = [name for name, _ in draw_collection(tmp_path, 15)]
    index = tmp_path / "mine.csv"
    settings = load_settings("own", overrides={"data.name": str(index)})
    for words in ("red square", "blue circle"):
        rows = [f"{name},{words} {n},{['train', 'val', 'test'][n % 3]}" for n, name in enumerate(names)]
        index.write_text("\n".join(["image,caption,split", *rows]) + "\n")
        assert read_split(settings, "test").captions[0] == f"{words} 2"


def test_own_pictures_train_and_are_evaluated(tmp_path):
    rows = [f"{name},{text}" for name, captions in draw_collection(tmp_path, 120) for text in captions]
    (tmp_path / "mine.csv").write_text("\n".join(["image,caption", *rows]) + "\n")
    small = SIZES | {"data.train_size": 0, "data.val_size": 0, "data.gallery_size": 0}
    result = open_study(str(tmp_path / "mine.csv"), preset="smoke", device="cpu", root=tmp_path, **small).result("rvlr")
    assert result["dataset"] == "mine"
    assert result.metrics["r_mean"] > 0


def test_the_command_trains_whole_towers_or_heads_and_keeps_a_folder_of_other_settings(tmp_path, capsys, monkeypatch):
    chosen = SIZES | {"model.freeze_towers": False, "stage1.epochs": 1, "data.train_size": 16}
    chosen |= {"model.context_length": 8}
    words = [word for key, value in chosen.items() for word in ("-s", key, str(value))]
    out, heads = tmp_path / "out", tmp_path / "heads"
    command = ["train", "--arm", "matching", "--device", "cpu", "--root", str(tmp_path), *words, "--out"]
    assert cli.main([*command, str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {*FILES, "made_by.json"}
    assert read_json(out / "result.json")["metrics"]["r_mean"] > 0
    assert read_json(out / "fit.json")["steps"] == 1
    assert capsys.readouterr().out.count("longer than 8 tokens and are cut") == 3  # a line for each split
    weights, left = load_tensors(out / "weights.safetensors"), load_student(out / "student").state_dict()
    assert all(tensor.equal(weights[name]) for name, tensor in left.items())
    assert cli.main([*command, str(heads), "-s", "model.freeze_towers", "true"]) == 0
    assert {path.name for path in heads.iterdir()} == {*FILES, "made_by.json"} - {"student"}
    assert cli.main([*command, str(out), "--seed", "1"]) == 2
    assert "seed was 0, is 1" in capsys.readouterr().err
    assert cli.main([*command, str(out / "log.jsonl")]) == 2
    assert "log.jsonl is a file: choose a folder" in capsys.readouterr().err
    monkeypatch.setattr("rvlr_lib.study.study.open_study", lambda name, preset, **_: exit(f"sizes {preset}"))
    assert cli.main(["train", "--arm", "floor"]) == 2  # a reference is refused before anything is opened
    with pytest.raises(SystemExit, match="sizes None"):
        cli.main(["train", "--dataset", "flickr30k"])
