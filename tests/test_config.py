import dataclasses

import pytest

from rvlr_lib.config import SHIPPED, Settings, _parser, arm_training, arm_weights, load_settings


@pytest.mark.parametrize("preset", SHIPPED)
def test_every_shipped_preset_is_valid(preset):
    assert isinstance(load_settings(preset), Settings)


def test_later_presets_win_and_overrides_win_over_all(tmp_path):
    preset = tmp_path / "mine.yaml"
    preset.write_text("stage1: {epochs: 7, learning_rate: 1e-4}\nfor: {emoji: {stage1: {batch_size: 32}}, other: }\n")
    overrides = {"stage2.epochs": 3, "seed": None, "stage2": {"flip": False}}
    settings = load_settings("emoji", "quick", str(preset), overrides=overrides)
    assert (settings.stage1.epochs, settings.stage1.learning_rate, settings.stage1.batch_size) == (7, 1e-4, 32)
    assert (settings.stage2.epochs, settings.stage2.flip) == (3, False)
    assert load_settings("scenes", str(preset)).stage1.batch_size == Settings().stage1.batch_size
    assert load_settings(overrides={"seed": 3, "data.seed": 0}).world_seed == 0  # by default the seed
    _parser.cache_clear()  # the first call once changed the values that it parsed
    tuned = load_settings("tuned", overrides={"arms.rvlr.learning_rate": 9}).arms["rvlr"]
    assert tuned.strengths == load_settings("tuned").arms["rvlr"].strengths


FAULTS = [({"stage1.epochz": 3}, "stage1.epochz.*valid: epochs, batch_size"), ({"nope": 3}, "valid: data, model")]
FAULTS += [({"data.image_fault": "fog"}, "occlusion"), ({"data.text_detail": True}, "text_detail")]
FAULTS += [({"stage1.betas": [1, 2, 3]}, "betas"), ({"arms.rvlx.learning_rate": 1.0}, "unknown arm 'rvlx'")]
FAULTS += [({"stage1": 3, "stage1.epochs": 3}, "stage1 is 3, expected settings under"), ({"seed": "many"}, "seed")]
FAULTS += [({"arms.rvlr.strengths": {"intra": 1.0}}, "valid: representation, structure")]
FAULTS += [({"arms.rvlr.strengths": {"structure": -1.0}}, "rvlr: structure is -1.0, expected 0 to")]
FAULTS += [({"stage1.learning_rate": float("nan")}, "stage1.learning_rate is nan"), ({"data.seed": -2}, "-1 to")]
FAULTS += [({"seed": 2**32}, "0 to"), ({"stage1.warmup": 2}, "stage1.warmup is 2.0, expected 0 to 1")]
FAULTS += [({key: -2}, f"{key} is -2, expected 0 to") for key in ("seed", "data.max_bad_pictures", "rerank_top_k")]
FAULTS += [({"stage1.epochs": 0}, "epochs is 0, expected 1 to"), ({"stage2.batch_size": 1}, "is 1, expected 2 to")]
FAULTS += [({"method.distance": "kl"}, "'kl'; valid: mae, mse"), ({"stage1.crop_scale": [2, 3]}, "expected 0 to 1")]
FAULTS += [({"data.text_detail": 2}, "is 2.0, expected 0 to 1"), ({"stage2.betas": [1, 2]}, "expected 0 to")]
FAULTS += [({f"{part}temperature": 0}, "is 0.0, expected 1e-06 to") for part in ("model.", "method.relation_")]


@pytest.mark.parametrize(("overrides", "fault"), FAULTS)
def test_invalid_settings_are_refused_by_name(overrides, fault, refuses):
    refuses(fault, load_settings, overrides=overrides)


@pytest.mark.parametrize("text", "[1]|{a: |words|for: 5|for: [a]|for: {emoji: 5}|seed: null|a: &a [*a]".split("|"))
def test_a_malformed_preset_is_named(tmp_path, text, refuses):
    (tmp_path / "bad.yaml").write_text(text)
    refuses(r"bad.yaml", load_settings, str(tmp_path / "bad.yaml"))


def terms(name, **overrides):
    """The non-zero loss weights of an arm."""
    weights = dataclasses.asdict(arm_weights(load_settings(overrides=overrides), name))
    return {term: weight for term, weight in weights.items() if weight}


def test_an_arm_has_exactly_its_terms():
    tuned = {"arms.structure": {"learning_rate": 1e-5, "strengths": {"structure": 0.25}}}
    assert terms("structure", **tuned) == {"contrastive": 1.0, "structure": 0.25}
    assert terms("teacher_oracle", **tuned) == terms("structure", **tuned)  # which uses the tuned values of structure
    assert arm_training(load_settings(overrides=tuned), "teacher_oracle").learning_rate == 1e-5
    assert terms("rvlr_published")["structure"] == Settings().method.weights.structure
    assert terms("intra_only").keys() == {"image_intra", "text_intra"}
    assert terms("matching", **{"model.fusion_layers": 1})["matching"] == 2.0  # needs the fusion encoder
    on, off = {"method.teacher_terms": True}, {"arms.structure.strengths": {"structure": 0.0}}
    assert {"image_teacher_structure", "text_teacher_structure"} <= terms("structure", **on).keys()
    assert terms("structure", **on, **off) == terms("matching_longer", **on) == {"contrastive": 1.0}
