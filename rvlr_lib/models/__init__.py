"""Towers with pretrained weights, students, the fusion encoder, teachers' features and exported models."""
# ruff: noqa: F401 - these names are for the other rooms

from rvlr_lib.models.export import load_student, save_student
from rvlr_lib.models.fusion import FusionEncoder
from rvlr_lib.models.student import CachedRows, Encoded, HeadStudent, Student, TowerStudent
from rvlr_lib.models.teachers import teacher_features
from rvlr_lib.models.towers import (
    Towers,
    build_towers,
    count_tokens,
    encode_image_tokens,
    encode_text_tokens,
    needed_tokens,
    token_counter,
)
