import pytest
import torch

from rvlr_lib.models import Student, Teacher, build_towers, orthogonal_maps
from rvlr_lib.models.towers import encode_text_tokens, tokenize

CAPTIONS = ["a red circle", "a big blue star and a small green square on a dotted background", "tiny heart"]


@pytest.fixture(scope="module")
def towers():
    return build_towers("tiny", seed=3)


@pytest.fixture(scope="module")
def token_ids(towers):
    return tokenize(towers.tokenizer, CAPTIONS)


def test_same_seed_same_towers_and_the_global_stream_is_left_alone(towers):
    before = torch.get_rng_state()
    again, other = build_towers("tiny", seed=3), build_towers("tiny", seed=4)
    assert torch.equal(before, torch.get_rng_state())
    first, second, third = (model.visual.conv1.weight for model in (towers, again, other))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_trimmed_captions_give_the_features_of_padded_ones(towers, token_ids):
    towers.text.eval()
    features, tokens, mask = encode_text_tokens(towers.text, token_ids, tokens=True)
    torch.testing.assert_close(features, towers.text(token_ids), rtol=1e-5, atol=1e-6)
    assert tokens.shape[:2] == mask.shape
    assert mask.shape[1] == int((token_ids != 0).sum(1).max()) < token_ids.shape[1]
    alone, _, _ = encode_text_tokens(towers.text, token_ids[:1], tokens=False)
    torch.testing.assert_close(alone[0], features[0], rtol=1e-5, atol=1e-6)


def test_features_are_unit_rows_and_tokens_come_only_when_asked(towers, token_ids):
    student = Student(towers).eval()
    pixels = torch.rand(3, 3, 48, 48)
    images, texts = student.encode_image(pixels), student.encode_text(token_ids)
    for encoded in (images, texts):
        torch.testing.assert_close(encoded.features.norm(dim=1), torch.ones(3))
        assert encoded.tokens is None
    assert student.encode_image(pixels, tokens=True).tokens.shape == (3, 36, 96)
    with pytest.raises(ValueError, match="fusion_layers"):
        student.match(pixels, pixels, pixels)


def test_padding_does_not_reach_the_matching_head(towers, token_ids):
    student = Student(towers, fusion_layers=2).eval()
    image = student.encode_image(torch.rand(3, 3, 48, 48), tokens=True)
    batch = student.encode_text(token_ids, tokens=True)
    alone = student.encode_text(token_ids[:1], tokens=True)
    logits, first = student.match(image.tokens, batch.tokens, batch.mask)
    assert logits.shape == (3, 2)
    assert first.shape == (3, 96)
    single, _ = student.match(image.tokens[:1], alone.tokens, alone.mask)
    torch.testing.assert_close(single[0], logits[0], rtol=1e-4, atol=1e-5)


def test_two_dropout_views_of_one_caption_differ_and_no_hook_stays(towers, token_ids):
    teacher = Teacher(towers, "text")
    assert not torch.allclose(teacher(token_ids, dropout=0.3), teacher(token_ids, dropout=0.3))
    torch.testing.assert_close(teacher(token_ids), teacher(token_ids))


def test_students_do_not_share_weights_with_their_towers(towers):
    student = Student(towers)
    with torch.no_grad():
        student.visual.conv1.weight.add_(1)
    assert not torch.equal(student.visual.conv1.weight, towers.visual.conv1.weight)


def test_unknown_models_and_missing_weights_are_errors(tmp_path):
    with pytest.raises(ValueError, match="unknown model 'tinny'"):
        build_towers("tinny")
    with pytest.raises(ValueError, match="cannot be loaded"):
        build_towers("tiny", str(tmp_path / "absent.safetensors"))
    with pytest.raises(ValueError, match="'image' or 'text'"):
        Teacher(build_towers("tiny"), "sound")


def test_a_real_open_clip_model_gives_tokens_offline():
    student = Student(build_towers("RN50"), fusion_layers=0)
    assert student.encode_text(tokenize(build_towers("tiny").tokenizer, CAPTIONS)).features.shape == (3, 1024)


def test_orthogonal_maps_keep_every_cosine_and_find_a_known_rotation():
    generator = torch.Generator().manual_seed(0)
    images = torch.nn.functional.normalize(torch.randn(50, 8, generator=generator, dtype=torch.float64), dim=1)
    rotation, _ = torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=torch.float64))
    texts = images @ rotation
    image_map, text_map = orthogonal_maps(images, texts)
    torch.testing.assert_close(images @ image_map, texts @ text_map)
    torch.testing.assert_close((images @ image_map) @ (images @ image_map).T, images @ images.T)
    with pytest.raises(ValueError, match=r"\(50, 8\) and \(49, 8\)"):
        orthogonal_maps(images, texts[:-1])
