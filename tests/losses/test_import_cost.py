import subprocess
import sys

HEAVY = (
    "open_clip",
    "umap",
    "matplotlib",
    "pandas",
    "sklearn",
    "scipy",
    "numba",
    "torchvision",
    "seaborn",
    "rapidfuzz",
)


def test_losses_and_metrics_load_nothing_heavy():
    code = f"import sys, rvlr_lib.losses, rvlr_lib.metrics; print([m for m in {HEAVY} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"
