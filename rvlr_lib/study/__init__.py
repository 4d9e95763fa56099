"""Studies: stages and their cache, sweeps over seeds, claims."""

from rvlr_lib.study.study import Study, open_study

__all__ = ["Study", "open_study"]
