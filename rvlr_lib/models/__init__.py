"""Pretrained towers, students, the fusion encoder, teacher features and exported models."""
# ruff: noqa: F401 - re-exported for the other packages

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
)
