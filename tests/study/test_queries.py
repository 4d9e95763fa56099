from dataclasses import replace

import numpy as np
import pytest

from rvlr_lib.study.queries import query_encoder, query_encoders
from rvlr_lib.study.study import Study, open_study


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    sizes = {"train_size": 32, "val_size": 16, "galleries": 1, "gallery_size": 8}
    epochs = {"teacher_epochs": 1, "stage1_epochs": 1, "stage2_epochs": 1}
    return open_study("scenes", root=tmp_path_factory.mktemp("runs"), device="cpu", **sizes, **epochs)


@pytest.mark.parametrize("name", ["matching", "teachers", "frozen"])
def test_an_item_of_the_data_set_gets_its_own_feature(study, name):
    test, (images, texts) = study.dataset("test"), study.test_features(name)
    encode = query_encoder(study, name)
    assert np.allclose(encode(test.captions[3]), texts[3], atol=1e-5)
    assert np.allclose(encode(test.image(5)), images[5], atol=1e-5)
    assert np.allclose(encode(f"  {test.captions[3].upper()}!"), texts[3], atol=1e-5)


def test_what_is_no_query(study):
    encode = query_encoder(study, "teachers")
    with pytest.raises(ValueError, match="'!' holds no word"):
        encode("!")
    with pytest.raises(ValueError, match="words or a picture"):
        encode(3)
    with pytest.raises(ValueError, match="'floor' has no encoder"):
        query_encoder(study, "floor")("red")


def test_spaces_that_take_no_query_are_left_out(study):
    names = {"A": "matching", "B": "frozen"}
    assert list(query_encoders(study, names)) == ["A", "B"]
    model = study.settings.model
    given = Study(replace(study.settings, model=replace(model, image_teacher="arrays:x.npz")), root=study.root)
    assert list(query_encoders(given, names)) == ["A"]
    frozen = Study(replace(study.settings, model=replace(model, freeze_towers=True)), root=study.root)
    assert query_encoders(frozen, names) == {}
