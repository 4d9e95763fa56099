"""Figures: charts of tidy frames, verdicts, picture panels, embeddings and the query browser.

Notebooks use ``from rvlr_lib.figures import browser, charts, panels, projection, verdicts``.
"""

import os
from pathlib import Path


def ensure_numba_cache(root: Path | str) -> None:
    """Keep what numba compiles for UMAP below ``root`` (home may be read-only), unless NUMBA_CACHE_DIR says where."""
    os.environ.setdefault("NUMBA_CACHE_DIR", str(Path(root).absolute() / "cache" / "numba"))
