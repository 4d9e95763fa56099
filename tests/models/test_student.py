from types import SimpleNamespace

import pytest
import torch

from rvlr_lib import models
from rvlr_lib.models import CachedRows, HeadStudent, TowerStudent, build_towers, encode_text_tokens, needed_tokens
from rvlr_lib.models.towers import as_tokens
from rvlr_lib.similarity import principal_directions, ridge_map, unit_rows
from tests.tiny import tiny_towers

CAPTIONS = ["a red circle", "a big blue star and a small green square on a dotted background", "tiny heart"]


@pytest.fixture(scope="module")
def token_ids(towers):
    return towers.tokenizer(CAPTIONS)


def test_same_seed_same_towers_and_the_global_generator_is_left_alone(towers):
    before = torch.get_rng_state()
    first, second, third = (x.visual.conv1.weight for x in (towers, tiny_towers(), tiny_towers(seed=4)))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    with torch.no_grad():
        TowerStudent(towers).visual.conv1.weight.add_(1)  # changes a copy
    assert torch.equal(first, second)


def test_trimmed_captions_give_the_features_of_padded_ones(towers, token_ids):
    needed = needed_tokens(towers.text, token_ids)
    assert needed.tolist() == (token_ids != 0).sum(1).tolist()
    assert set(needed_tokens(SimpleNamespace(attn_mask=None), token_ids).tolist()) == {32}  # not causal: padding counts
    features, tokens, mask = encode_text_tokens(towers.text.eval(), token_ids[:, : max(needed)], tokens=True)
    torch.testing.assert_close(features, towers.text(token_ids), rtol=1e-5, atol=1e-6)
    assert tokens.shape[:2] == mask.shape
    alone, _, _ = encode_text_tokens(towers.text, token_ids[:1, : needed[0]], tokens=False)
    torch.testing.assert_close(alone[0], features[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 5, 3, 3), (2, 3, 3, 5), (2, 9, 5)])
def test_feature_maps_of_every_layout_give_the_same_tokens(shape):
    tokens = torch.randn(2, 9, 5)
    grid = tokens.reshape(2, 3, 3, 5).permute(0, 3, 1, 2) if shape[1:] == (5, 3, 3) else tokens.reshape(shape)
    assert torch.equal(as_tokens(SimpleNamespace(num_features=5), grid), tokens)


def test_padding_does_not_affect_the_matching_head(towers, token_ids):
    student = TowerStudent(towers, fusion_layers=2).eval()
    image = student.encode_image(torch.rand(3, 3, 48, 48), tokens=True)
    batch, alone = (student.encode_text(ids, tokens=True) for ids in (token_ids, token_ids[:1]))
    logits, first = student.fusion(image.tokens, batch.tokens, batch.mask)
    assert (image.tokens.shape, logits.shape, first.shape) == ((3, 36, 96), (3, 2), (3, 96))
    single, _ = student.fusion(image.tokens[:1], alone.tokens, alone.mask)
    torch.testing.assert_close(single[0], logits[0], rtol=1e-4, atol=1e-5)
    assert student.encode_image(torch.rand(1, 3, 48, 48)).tokens is None


def test_two_dropout_views_of_one_caption_differ_and_no_hook_stays(towers, token_ids):
    student = TowerStudent(towers)
    first, second = (student.encode_text(token_ids, dropout=0.3).features for _ in range(2))
    assert not torch.allclose(first, second)
    torch.testing.assert_close(student.encode_text(token_ids).features, student.encode_text(token_ids).features)


def test_heads_take_cached_rows_of_different_widths():
    images = CachedRows(torch.randn(6, 40), torch.randn(6, 9, 40).half())
    texts = CachedRows(torch.randn(6, 24), torch.randn(6, 7, 24).half(), torch.ones(6, 7, dtype=torch.bool))
    starts = [principal_directions(rows.features, 16) for rows in (images, texts)]
    student = HeadStudent(*starts, token_widths=(40, 24), fusion_layers=1)
    image, text = student.encode_image(images, tokens=True), student.encode_text(texts, tokens=True)
    torch.testing.assert_close(text.features, unit_rows(unit_rows(texts.features) @ starts[1]))  # also in training
    logits, first = student.fusion(image.tokens, text.tokens, text.mask)
    assert (logits.shape, first.shape, student.embed_dim) == ((6, 2), (6, 128), 16)
    assert not torch.equal(*(student.encode_text(texts, dropout=0.1).features for _ in range(2)))


def test_directions_and_ridge_match_plain_linear_algebra():
    rows = unit_rows(torch.randn(50, 8, dtype=torch.float64) + 1)
    directions, expected = principal_directions(5 * rows, 3), torch.linalg.svd(rows).Vh[:3].T.float()
    torch.testing.assert_close((directions * expected).sum(0).abs(), torch.ones(3), rtol=1e-5, atol=1e-5)
    x, y = torch.randn(30, 5, dtype=torch.float64), torch.randn(30, 3, dtype=torch.float64)
    weight, bias = ridge_map(x, y, 0.2)
    centred = x - x.mean(0)
    stacked = torch.cat([centred, (0.2 * (centred**2).sum() / 5).sqrt() * torch.eye(5)])
    expected = torch.linalg.lstsq(stacked, torch.cat([y - y.mean(0), torch.zeros(5, 3)])).solution
    torch.testing.assert_close(weight, expected.T.float())
    torch.testing.assert_close(x.mean(0).float() @ weight.T + bias, y.mean(0).float())
    weight, bias = ridge_map(torch.ones(5, 2), torch.arange(5.0)[:, None], 0.2)  # nothing to learn from
    assert (weight.tolist(), bias.tolist()) == ([[0, 0]], [2])


def test_weights_come_from_a_file_and_missing_or_foreign_weights_are_refused(towers, tmp_path, refuses):
    folder, pickle = tmp_path / "clip", tmp_path / "damaged.pt"
    weights = models.save_student(TowerStudent(towers), towers, folder) / "open_clip_model.safetensors"
    read = tiny_towers(99, pretrained=str(weights))
    torch.testing.assert_close(read.visual.conv1.weight, towers.visual.conv1.weight)
    pickle.write_bytes(b"\x80\x04cos\nsystem\n(S'true'\ntR.")  # it would run a command
    unusable = ("tiny_48", pickle), ("tiny_48", "no_such_tag"), ("tiny_48", tmp_path / "absent.pt")
    for model, pretrained in (("RN50", weights), *unusable):  # RN50 is another architecture
        refuses(f"of model '{model}' cannot be loaded", build_towers, model, str(pretrained))
    weights.unlink()
    refuses("cannot be loaded", build_towers, f"local-dir:{folder}")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tiny_towers(image_weights="x.pth"), "is not timm's"),
        (lambda: tiny_towers(text_weights="x"), "not from Hugging Face"),
        (lambda: build_towers("swin_b384_bert"), "needs text_weights: a folder with bert-base-uncased"),
        (lambda: build_towers("swin_b384_bert", text_weights="x"), r"lacks config\.json and model\.safetensors"),
        (lambda: build_towers("effnet_minilm", text_layers=7), "has 6 layers"),
        (lambda: build_towers("tinny"), "unknown model 'tinny'"),
        (lambda: principal_directions(torch.ones(20, 8), 9), "width 8 have no 9 directions"),
        (lambda: as_tokens(SimpleNamespace(num_features=5), torch.zeros(2, 5, 3, 5)), "unclear layout"),
        (lambda: as_tokens(SimpleNamespace(num_features=5), torch.zeros(2, 4, 4, 4)), "unclear layout"),
    ],
)
def test_refuses(call, message, refuses):
    refuses(message, call)


def test_context_length_and_picture_size_can_be_set(towers):
    resized = tiny_towers(context_length=20, image_size=32)
    assert (resized.tokenizer(["a"]).shape, resized.image_size) == ((1, 20), 32)
    assert (towers.tokenizer(["a"]).shape, towers.image_size, towers.embed_dim) == ((1, 32), 48, 96)
    assert models.count_tokens(towers.tokenizer, ["a red circle", "word " * 50]) == [(5, False), (52, False)]


@pytest.mark.slow
def test_the_papers_pair_trains_for_a_step_on_drawn_pictures(tmp_path):
    import transformers

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"a red blue green circle square star on the".split()]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    config = transformers.BertConfig(vocab_size=len(words))
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    towers = build_towers("swin_b384_bert", text_weights=str(tmp_path), text_layers=6)
    assert (towers.image_size, towers.embed_dim, len(towers.text.transformer.encoder.layer)) == (384, 256, 6)
    assert towers.mean == pytest.approx((0.485, 0.456, 0.406))  # the Swin's own statistics
    student = TowerStudent(towers, fusion_layers=1)
    image = student.encode_image(torch.rand(2, 3, 384, 384), tokens=True)
    text = student.encode_text(towers.tokenizer(["a red star", "the blue circle"]), tokens=True)
    assert image.tokens.shape == (2, 144, 1024)
    before = student.visual.trunk.patch_embed.proj.weight.detach().clone()
    logits, _ = student.fusion(image.tokens, text.tokens, text.mask)
    ((image.features @ text.features.T).diagonal().sum() + logits[:, 1].sum()).backward()
    torch.optim.SGD(student.parameters(), 0.1).step()
    assert not torch.equal(before, student.visual.trunk.patch_embed.proj.weight)
