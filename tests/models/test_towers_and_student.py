import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from rvlr_lib.models import (
    CachedRows,
    FusionEncoder,
    HeadStudent,
    TowerStudent,
    build_towers,
    encode_text_tokens,
    principal_directions,
    ridge_map,
    token_counter,
    tokenize,
)
from rvlr_lib.models.towers import as_tokens
from rvlr_lib.similarity import unit_rows
from tests.tiny import CONFIG, tiny_towers

CAPTIONS = ["a red circle", "a big blue star and a small green square on a dotted background", "tiny heart"]


@pytest.fixture(scope="module")
def towers():
    return tiny_towers(seed=3)


@pytest.fixture(scope="module")
def token_ids(towers):
    return tokenize(towers.tokenizer, CAPTIONS)


def test_same_seed_same_towers_and_the_global_stream_is_left_alone(towers):
    before = torch.get_rng_state()
    again, other = tiny_towers(seed=3), tiny_towers(seed=4)
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


@pytest.mark.parametrize("shape", [(2, 5, 3, 3), (2, 3, 3, 5), (2, 9, 5)])
def test_feature_maps_of_every_layout_give_the_same_tokens(shape):
    tokens = torch.randn(2, 9, 5)
    grid = tokens.reshape(2, 3, 3, 5).permute(0, 3, 1, 2) if shape[1:] == (5, 3, 3) else tokens.reshape(shape)
    assert grid.shape == shape
    assert torch.equal(as_tokens(SimpleNamespace(num_features=5), grid), tokens)


@pytest.mark.parametrize("shape", [(2, 5, 3, 5), (2, 4, 4, 4)])
def test_a_feature_map_of_unclear_layout_is_refused(shape):
    with pytest.raises(ValueError, match="cannot be told"):
        as_tokens(SimpleNamespace(num_features=5), torch.zeros(shape))


def test_features_are_unit_rows_and_tokens_come_only_when_asked(towers, token_ids):
    student = TowerStudent(towers).eval()
    pixels = torch.rand(3, 3, 48, 48)
    images, texts = student.encode_image(pixels), student.encode_text(token_ids)
    for encoded in (images, texts):
        torch.testing.assert_close(encoded.features.norm(dim=1), torch.ones(3))
        assert encoded.tokens is None
    assert student.encode_image(pixels, tokens=True).tokens.shape == (3, 36, 96)
    with pytest.raises(ValueError, match="fusion_layers"):
        student.match(pixels, pixels, pixels)


def test_padding_does_not_reach_the_matching_head(towers, token_ids):
    student = TowerStudent(towers, fusion_layers=2).eval()
    image = student.encode_image(torch.rand(3, 3, 48, 48), tokens=True)
    batch = student.encode_text(token_ids, tokens=True)
    alone = student.encode_text(token_ids[:1], tokens=True)
    logits, first = student.match(image.tokens, batch.tokens, batch.mask)
    assert logits.shape == (3, 2)
    assert first.shape == (3, 96)
    single, _ = student.match(image.tokens[:1], alone.tokens, alone.mask)
    torch.testing.assert_close(single[0], logits[0], rtol=1e-4, atol=1e-5)


def test_prepared_matching_is_the_forward_pass_where_text_tokens_are_mapped():
    fusion = FusionEncoder(24, 40, 2, 32).eval()
    images, texts, mask = torch.randn(2, 5, 40), torch.randn(2, 4, 24), torch.ones(2, 4, dtype=torch.bool)
    prepared = fusion.match_projected(fusion.project_images(images), torch.arange(2), fusion.begin_texts(texts, mask))
    torch.testing.assert_close(prepared, fusion(images, texts, mask)[0], rtol=1e-4, atol=1e-5)


def test_two_dropout_views_of_one_caption_differ_and_no_hook_stays(towers, token_ids):
    student = TowerStudent(towers)
    first, second = (student.encode_text(token_ids, dropout=0.3).features for _ in range(2))
    assert not torch.allclose(first, second)
    torch.testing.assert_close(student.encode_text(token_ids).features, student.encode_text(token_ids).features)


def test_students_do_not_share_weights_with_their_towers(towers):
    student = TowerStudent(towers)
    with torch.no_grad():
        student.visual.conv1.weight.add_(1)
    assert not torch.equal(student.visual.conv1.weight, towers.visual.conv1.weight)


def test_heads_take_cached_rows_of_differing_widths_and_train():
    images = CachedRows(torch.randn(6, 40), torch.randn(6, 9, 40).half())
    texts = CachedRows(torch.randn(6, 24), torch.randn(6, 7, 24).half(), torch.ones(6, 7, dtype=torch.bool))
    starts = principal_directions(images.features, 16), principal_directions(texts.features, 16)
    student = HeadStudent(*starts, token_widths=(40, 24), fusion_layers=1)
    image, text = student.encode_image(images, tokens=True), student.encode_text(texts, tokens=True)
    torch.testing.assert_close(text.features, unit_rows(unit_rows(texts.features) @ starts[1]))  # exactly, in training
    logits, first = student.match(image.tokens, text.tokens, text.mask)
    assert (logits.shape, first.shape, student.embed_dim) == ((6, 2), (6, 128), 16)
    (logits[:, 1].sum() + (image.features * text.features).sum()).backward()
    assert student.image_head.last.weight.grad.abs().sum() > 0
    assert student.image_head.proj.weight.grad.abs().sum() > 0
    assert not torch.equal(*(student.encode_text(texts, dropout=0.1).features for _ in range(2)))
    with pytest.raises(ValueError, match="none are cached"):
        student.encode_image(CachedRows(images.features), tokens=True)
    with pytest.raises(ValueError, match="different widths"):
        HeadStudent(starts[0], torch.eye(24, 8))
    with pytest.raises(ValueError, match="token_widths"):
        HeadStudent(*starts, fusion_layers=1)


def test_directions_are_the_leading_singular_vectors():
    rows = unit_rows(torch.randn(50, 8, dtype=torch.float64) + 1)
    ours = principal_directions(5 * rows, 3)
    wanted = torch.linalg.svd(rows).Vh[:3].T.float()
    torch.testing.assert_close((ours * wanted).sum(0).abs(), torch.ones(3), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="width 8 have no 9 directions"):
        principal_directions(rows, 9)


def test_ridge_is_the_solution_of_the_augmented_least_squares():
    x, y = torch.randn(30, 5, dtype=torch.float64), torch.randn(30, 3, dtype=torch.float64)
    weight, bias = ridge_map(x, y, 0.2)
    centred = x - x.mean(0)
    penalty = 0.2 * (centred**2).sum() / 5
    stacked = torch.cat([centred, penalty.sqrt() * torch.eye(5)])
    wanted = torch.linalg.lstsq(stacked, torch.cat([y - y.mean(0), torch.zeros(5, 3)])).solution
    torch.testing.assert_close(weight, wanted.T.float())
    torch.testing.assert_close(x.mean(0).float() @ weight.T + bias, y.mean(0).float())
    with pytest.raises(ValueError, match="equally many rows"):
        ridge_map(x, y[1:], 0.2)


@pytest.fixture
def local_dir(tmp_path):
    """The tiny model as a folder of open_clip's, weights and all."""
    towers = tiny_towers(seed=5)
    pixels = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5], "interpolation": "bilinear"}
    config = {"model_cfg": json.loads(CONFIG.read_text()), "preprocess_cfg": pixels}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    state = {
        f"{part}.{name}": value
        for part, tower in (("visual", towers.visual), ("text", towers.text))
        for name, value in tower.state_dict().items()
    }
    save_file(state | {"logit_scale": torch.tensor(2.6)}, tmp_path / "open_clip_model.safetensors")
    return tmp_path, towers


def test_a_local_folder_brings_weights_and_preprocessing(local_dir):
    folder, towers = local_dir
    loaded = build_towers(f"local-dir:{folder}", seed=99)
    torch.testing.assert_close(loaded.visual.conv1.weight, towers.visual.conv1.weight)
    assert loaded.preprocessing()["mean"] == [0.1, 0.2, 0.3]
    assert loaded.preprocessing()["interpolation_of_the_weights"] == "bilinear"
    assert (loaded.image_size, loaded.embed_dim) == (48, 96)
    assert loaded.tokenizer(["a"]).shape == (1, 32)
    from_file = tiny_towers(99, pretrained=str(folder / "open_clip_model.safetensors"))
    torch.testing.assert_close(from_file.text.ln_final.weight, towers.text.ln_final.weight)


def test_asked_for_weights_that_are_not_there_never_start_at_random(local_dir, tmp_path):
    folder, _ = local_dir
    weights = folder / "open_clip_model.safetensors"
    with pytest.raises(ValueError, match="of model 'RN50' cannot be loaded"):
        build_towers("RN50", str(weights))  # another architecture
    weights.unlink()
    with pytest.raises(ValueError, match="cannot be loaded"):
        build_towers(f"local-dir:{folder}")
    (tmp_path / "damaged.pt").write_bytes(b"\x80\x04cos\nsystem\n(S'true'\ntR.")  # a pickle that would run a command
    for asked in (str(tmp_path / "damaged.pt"), "no_such_tag", str(tmp_path / "absent.pt")):
        with pytest.raises(ValueError, match="cannot be loaded"):
            tiny_towers(pretrained=asked)
    with pytest.raises(ValueError, match="is not timm's"):
        tiny_towers(image_weights="x.pth")
    with pytest.raises(ValueError, match="not of Hugging Face"):
        tiny_towers(text_weights="x")
    with pytest.raises(ValueError, match="needs its text tower"):
        build_towers("swin_b384_bert")
    with pytest.raises(ValueError, match=r"lacks config\.json and model\.safetensors"):
        build_towers("swin_b384_bert", text_weights=str(tmp_path))
    with pytest.raises(ValueError, match="unknown model 'tinny'"):
        build_towers("tinny")


def test_context_length_and_picture_size_can_be_set():
    assert tiny_towers(context_length=20).tokenizer(["a"]).shape == (1, 20)
    assert tiny_towers(image_size=32).image_size == 32
    count, context = token_counter("tiny_48")
    assert context == 32
    assert count(["a red circle", "word " * 50]) == [5, 52]


@pytest.fixture
def bert_base(tmp_path):
    """A folder with a BERT of base size, random, and a tokenizer of a few words."""
    import transformers

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"a red blue green circle square star on the".split()]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    config = transformers.BertConfig(vocab_size=len(words))
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_papers_pair_trains_for_a_step_on_drawn_pictures(bert_base):
    towers = build_towers("swin_b384_bert", text_weights=str(bert_base), text_layers=6)
    assert (towers.image_size, towers.embed_dim, len(towers.text.transformer.encoder.layer)) == (384, 256, 6)
    assert towers.mean == pytest.approx((0.485, 0.456, 0.406))  # the Swin's own statistics
    student = TowerStudent(towers, fusion_layers=1)
    image = student.encode_image(torch.rand(2, 3, 384, 384), tokens=True)
    text = student.encode_text(tokenize(towers.tokenizer, ["a red star", "the blue circle"]), tokens=True)
    assert image.tokens.shape == (2, 144, 1024)
    before = student.visual.trunk.patch_embed.proj.weight.detach().clone()
    logits, _ = student.match(image.tokens, text.tokens, text.mask)
    ((image.features @ text.features.T).diagonal().sum() + logits[:, 1].sum()).backward()
    torch.optim.SGD(student.parameters(), 0.1).step()
    assert not torch.equal(before, student.visual.trunk.patch_embed.proj.weight)
