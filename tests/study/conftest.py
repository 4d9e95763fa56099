import open_clip
import pytest
import yaml

from rvlr_lib.study.plan import load_plan
from rvlr_lib.study.study import Study, open_study
from tests.tiny import CONFIG

open_clip.add_model_config(CONFIG)  # makes the name tiny_48 known
SIZES = {"data.train_size": 48, "data.val_size": 24, "data.galleries": 1, "data.gallery_size": 24}
SIZES |= {"model.views": 2, "model.name": "tiny_48", "model.width": 32}
SIZES |= {"stage1.epochs": 2, "stage1.batch_size": 16, "stage1.log_every": 1}
SIZES |= {"stage2.epochs": 1, "stage2.batch_size": 16, "stage2.log_every": 1}
PLAN = """
preset: smoke
seeds: 2
dials: {none: {}, text: {data.text_detail: 0.5}, image: {data.image_visibility: 0.5}}
arms: [start, matching_longer, rvlr, mean_relation, structure/structure]
tuning:
  {dataset: scenes, dials: [text, image], seeds: [100, 101], trials: 2, confirmed: 1, learning_rate: [1.0e-4, 1.0e-2],
   strengths: {structure: [0.01, 1], representation: [0.01, 1], mean_relation: [0.01, 1]},
   lengths: [1, 2], visibilities: [0.5, 0.4], kept: [0.0, 9.0]}
regime_map:
  {dataset: scenes, dials: [text, image], seeds: [200, 201], ratios: [0.1],
   teachers: {pretrained: structure, constant: mean_relation}}
delta: {r_mean: 1.0}
claims:
  recall: {text: RVLR retrieves better, metric: r_mean, primary: true, control: constant,
           effect: "scenes:rvlr|text - scenes:matching_longer|text"}
  constant: {text: the constant target alone, metric: r_mean,
             effect: "scenes:mean_relation|text - scenes:matching_longer|text"}
"""


@pytest.fixture
def make_study(tmp_path):
    """Studies of a tiny random model on few scenes, all in one cache."""

    def make(**options) -> Study:
        overrides = {**SIZES, **{key: options.pop(key) for key in list(options) if "." in key}}
        return open_study("scenes", preset="", device="cpu", root=tmp_path / "runs", **options, **overrides)

    return make


@pytest.fixture
def write_plan(tmp_path):
    """A profile with a small plan, some of its parts replaced."""

    def write(**changes) -> str:
        study = yaml.safe_load(PLAN) | {"sets": {"scenes": {"overrides": SIZES}}}
        study |= changes | {"tuning": study["tuning"] | changes.get("tuning", {})}
        (tmp_path / "plan.yaml").write_text(yaml.safe_dump({"study": study}))
        return str(tmp_path / "plan.yaml")

    return write


@pytest.fixture
def plan(write_plan):
    return load_plan(write_plan())
