import pytest

from rvlr_lib.config import VARIANTS, Settings, available_presets, data_presets, load_settings, variant_weights

SHIPPED = ["coco", "corrected", "emoji", "flickr30k", "frozen", "official", "own", "scenes", "vizwiz"]


def test_presets_are_those_that_ship_and_each_is_lawful():
    assert available_presets() == SHIPPED
    assert data_presets() == ["coco", "emoji", "flickr30k", "scenes", "vizwiz"]
    for name in SHIPPED:
        load_settings(name)


@pytest.mark.parametrize(("name", "rate", "words", "shortlist"), [
    ("flickr30k", 5e-5, 60, 128), ("coco", 3e-5, 40, 256), ("vizwiz", 5e-5, 40, 128)
])  # fmt: skip
def test_published_sets_have_the_official_hyper_parameters(name, rate, words, shortlist):
    settings = load_settings(name, "official")
    assert (settings.model.context_length, settings.rerank_top_k) == (words, shortlist)
    assert (settings.model.name, settings.model.text_layers, settings.model.fusion_layers) == ("swin_b384_bert", 6, 6)
    for stage in (settings.stage1, settings.stage2):
        assert (stage.learning_rate, stage.batch_size, stage.epochs, stage.clip_norm) == (rate, 36, 10, 0)
        assert (stage.betas, stage.weight_decay, stage.warmup, stage.crop_scale) == ((0.9, 0.98), 0.01, 0.1, (0.5, 1.0))
    assert settings.data.rows == "captions"


def test_later_presets_and_overrides_win():
    settings = load_settings("scenes", "official", overrides={"stage1.epochs": 3, "model.fusion_layers": 2})
    assert (settings.stage1.epochs, settings.model.fusion_layers, settings.data.name) == (3, 2, "scenes")
    assert settings.method.structure_target == "fusion"
    assert settings.stage2.epochs == load_settings("scenes").stage2.epochs


def test_official_and_corrected_differ_only_in_named_switches():
    official, corrected = load_settings("official").method, load_settings("corrected").method
    different = {name for name in official.__dataclass_fields__ if getattr(official, name) != getattr(corrected, name)}
    assert different == {
        "teacher_terms", "learn_relation_temperature", "fusion_weight_form", "structure_target", "baseline",
        "cost_gradient", "selection", "mixed_t2it", "mixed_scores", "siblings", "representation_bidirectional",
        "representation_temperature",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"stage1.epoch": 3}, "stage1.epoch"),
        ({"model.init": "pretrained"}, "'teacher', 'scratch'"),
        ({"stage1.epochs": "three"}, "expected int"),
        ({"stage1.epochs": True}, "expected int"),
        ({"stage1.betas": [0.9]}, "2 numbers"),
        ({"stage1": 3}, "settings under it"),
    ],
)
def test_wrong_keys_and_values_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        load_settings("scenes", overrides=overrides)


def test_numbers_that_yaml_takes_for_text_are_numbers():
    assert load_settings("scenes", overrides={"stage1.learning_rate": "1e-4"}).stage1.learning_rate == 1e-4
    with pytest.raises(ValueError, match="stage1.learning_rate is 'fast', expected float"):
        load_settings("scenes", overrides={"stage1.learning_rate": "fast"})


def test_unknown_preset_lists_the_valid_ones():
    with pytest.raises(ValueError, match=", ".join(SHIPPED)):
        load_settings("flicker")


def test_weights_of_variants():
    settings = load_settings("official", overrides={"model.fusion_layers": 1})
    rvlr = variant_weights(settings, "rvlr")
    assert (rvlr.contrastive, rvlr.matching, rvlr.image_representation, rvlr.text_representation) == (1, 2, 1, 2)
    assert (rvlr.structure, rvlr.image_teacher_structure, rvlr.text_teacher_structure) == (2, 1, 1)
    assert rvlr.image_intra == rvlr.text_intra == 0
    assert variant_weights(settings, "shuffled") == rvlr
    longer = variant_weights(settings, "matching_longer")
    assert longer == variant_weights(settings, "matching")
    assert longer.structure == longer.image_representation == 0
    intra = variant_weights(settings, "intra")
    assert intra.image_intra > 0
    assert intra.structure == 0


def test_weights_without_fusion_encoder_or_teacher_terms():
    weights = variant_weights(Settings(), "rvlr")
    assert weights.matching == 0
    assert weights.image_teacher_structure == weights.text_teacher_structure == 0
    assert variant_weights(Settings(), "contrastive") == variant_weights(Settings(), "matching")


def test_unknown_variant_lists_the_valid_ones():
    with pytest.raises(ValueError, match="matching_longer"):
        variant_weights(Settings(), "rvl")
    assert len(VARIANTS) == 13
