"""Students, teachers and the fusion encoder, over open_clip's towers."""

from rvlr_lib.models.fusion import FusionEncoder
from rvlr_lib.models.student import Student
from rvlr_lib.models.teachers import Teacher, orthogonal_maps
from rvlr_lib.models.towers import Towers, build_towers

__all__ = ["FusionEncoder", "Student", "Teacher", "Towers", "build_towers", "orthogonal_maps"]
