import json

import pytest
import torch

from rvlr_lib.config import Settings, TrainSettings, variant_weights
from rvlr_lib.data import load_dataset
from rvlr_lib.models.towers import ARCHITECTURES, build_towers, token_counter
from rvlr_lib.training.loop import _optimizer


@pytest.fixture
def local_dir(tmp_path):
    """Our tiny model as a folder of open_clip's, weights and all."""
    from safetensors.torch import save_file

    towers = build_towers("tiny", seed=5)
    pixels = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5], "interpolation": "bilinear"}
    config = {"model_cfg": json.loads((ARCHITECTURES / "rvlr_tiny.json").read_text()), "preprocess_cfg": pixels}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    state = {f"{part}.{name}": value for part, tower in (("visual", towers.visual), ("text", towers.text))
             for name, value in tower.state_dict().items()}  # fmt: skip
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
    from_file = build_towers("tiny", str(folder / "open_clip_model.safetensors"), seed=99)
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
            build_towers("tiny", asked)
    with pytest.raises(ValueError, match="is not timm's"):
        build_towers("tiny", image_weights="x.pth")
    with pytest.raises(ValueError, match="not of Hugging Face"):
        build_towers("tiny", text_weights="x")
    with pytest.raises(ValueError, match="needs its text tower"):
        build_towers("swin_b384_bert")
    with pytest.raises(ValueError, match=r"lacks config\.json and model\.safetensors"):
        build_towers("swin_b384_bert", text_weights=str(tmp_path))


def test_context_length_can_be_set():
    assert build_towers("tiny", context_length=20).tokenizer(["a"]).shape == (1, 20)
    count, context = token_counter("tiny")
    assert context == 32
    assert count(["a red circle", "word " * 50]) == [5, 52]


def test_tower_bodies_can_learn_slower_than_heads():
    from rvlr_lib.models.student import Student
    from rvlr_lib.training.objectives import StudentObjective

    settings = Settings()
    student = Student(build_towers("tiny"), fusion_layers=1)
    features = torch.eye(4, 96), torch.eye(4, 96)
    objective = StudentObjective(student, variant_weights(settings, "rvlr"), settings.method, features, 96, 0)
    train = TrainSettings(learning_rate=0.1, tower_lr_multiplier=0.01, scalar_lr_multiplier=3.0, warmup=0.0)
    optimizer, _ = _optimizer(objective, train, 10)
    rates = {id(p): group["initial_lr"] for group in optimizer.param_groups for p in group["params"]}
    named = {name: rates[id(p)] for name, p in objective.named_parameters() if p.requires_grad}
    assert named["student.visual.conv1.weight"] == named["student.text.token_embedding.weight"] == pytest.approx(0.001)
    for head in ("student.visual.proj", "student.text.text_projection", "student.fusion.image_in.weight",
                 "student.log_temperature", "image_head.weight"):  # fmt: skip
        assert named[head] == pytest.approx(0.1)
    scalar = next(name for name in named if name.startswith("fusion_weight"))
    assert named[scalar] == pytest.approx(0.3)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays[id(student.visual.conv1.weight)] == train.weight_decay
    assert decays[id(student.visual.ln_post.bias)] == 0
    assert optimizer.param_groups[0]["initial_lr"] == 0.1  # the rate that is logged
    assert len(rates) == len(named)


@pytest.fixture
def bert_base(tmp_path):
    """A folder with a BERT of base size, random, and a tokenizer of a few words."""
    transformers = pytest.importorskip("transformers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"a red blue green circle square star on the".split()]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    config = transformers.BertConfig(vocab_size=len(words))
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_papers_pair_trains_for_a_step_on_drawn_pictures(bert_base, tmp_path):
    from rvlr_lib.config import load_settings
    from rvlr_lib.models.student import Student
    from rvlr_lib.training import stages

    changes = {"stage1.batch_size": 2, "stage1.epochs": 1, "data.rows": "images"}
    settings = load_settings("flickr30k", "official", overrides=changes)
    model = settings.model
    towers = build_towers(model.name, text_weights=str(bert_base), text_layers=model.text_layers,
                          context_length=model.context_length)  # fmt: skip
    assert (towers.image_size, towers.embed_dim, len(towers.text.transformer.encoder.layer)) == (384, 256, 6)
    assert towers.mean == pytest.approx((0.485, 0.456, 0.406))  # the Swin's own statistics
    student = Student(towers, fusion_layers=model.fusion_layers)
    train = load_dataset("scenes", split="train", size=2).subset([0, 1])
    before = student.visual.trunk.patch_embed.proj.weight.detach().clone()
    weights = variant_weights(settings, "matching")
    cpu, log = torch.device("cpu"), tmp_path / "log.jsonl"
    fitted = stages.train_student(student, towers, train, train, settings, settings.stage1, weights, None, seed=0,
                                  device=cpu, log_path=log, label="step")  # fmt: skip
    assert fitted.steps == 1
    assert not torch.equal(before, student.visual.trunk.patch_embed.proj.weight)
    line = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])
    assert line["loss/contrastive"] > 0
    assert line["loss/matching"] > 0
