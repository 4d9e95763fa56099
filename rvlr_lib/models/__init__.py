"""Towers with pretrained weights, students, the fusion encoder, teachers' features and exported models."""

from rvlr_lib.models.export import load_student, save_open_clip, save_student
from rvlr_lib.models.fusion import FusionEncoder
from rvlr_lib.models.student import (
    CachedRows,
    Encoded,
    HeadStudent,
    Student,
    TowerStudent,
    full_precision,
    principal_directions,
    ridge_map,
)
from rvlr_lib.models.teachers import TEACHERS, stored_features, teacher_features
from rvlr_lib.models.towers import (
    Towers,
    batch_dropout,
    build_towers,
    count_tokens,
    encode_image_tokens,
    encode_text_tokens,
    real_tokens,
    token_counter,
    tokenize,
)

__all__ = [
    "TEACHERS",
    "CachedRows",
    "Encoded",
    "FusionEncoder",
    "HeadStudent",
    "Student",
    "TowerStudent",
    "Towers",
    "batch_dropout",
    "build_towers",
    "count_tokens",
    "encode_image_tokens",
    "encode_text_tokens",
    "full_precision",
    "load_student",
    "principal_directions",
    "real_tokens",
    "ridge_map",
    "save_open_clip",
    "save_student",
    "stored_features",
    "teacher_features",
    "token_counter",
    "tokenize",
]
