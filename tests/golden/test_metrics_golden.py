import json
from pathlib import Path

import numpy as np
import pytest

from rvlr_lib.metrics import evaluate_retrieval


def our_key(official: str) -> str:
    """``i2t_@1`` -> ``i2t/R@1``, ``I2I_@10`` -> ``i2i/NDCG@10``, ``r_mean`` stays."""
    if official == "r_mean":
        return official
    name, cut = official.split("_")
    return f"{name}/R@{cut.lstrip('@')}" if name in ("i2t", "t2i") else f"{name.lower()}/NDCG{cut}"


@pytest.mark.parametrize("chunk_size", [None, 1, 3, 17, 23])
def test_official_protocol_gives_every_official_number(chunk_size):
    folder = Path(__file__).parent
    arrays = np.load(folder / "metrics_0.npz")
    official = json.loads((folder / "metrics_0.json").read_text())["official"]
    x = arrays["image_embeddings"], arrays["text_embeddings"]
    options = {"scores_i2t": arrays["scores_i2t"], "scores_t2i": arrays["scores_t2i"], "protocol": "official"}
    owner = np.repeat(np.arange(len(x[0])), 5)
    result = evaluate_retrieval(*x, owner, arrays["relevance"], chunk_size=chunk_size, **options)
    assert result == pytest.approx({our_key(key): value for key, value in official.items()}, abs=1e-4)
