"""Training-free baselines against slow, obvious implementations."""

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import cosine_similarity

from rvlr_lib.data import load_dataset
from rvlr_lib.evaluation import baselines
from rvlr_lib.evaluation.evaluate import retrieval_metrics
from rvlr_lib.similarity import unit_rows


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_centring_row_by_row_and_neighbour_normalisation_by_sorting_each_column():
    features, reference = rows(6, 4), rows(9, 4, seed=1) + 2
    mean = torch.tensor([sum(float(r[d]) for r in reference) / 9 for d in range(4)], dtype=torch.float64)
    slow = [(row - mean) / sum(float(v) ** 2 for v in row - mean) ** 0.5 for row in features]
    torch.testing.assert_close(baselines.centre(features, reference), torch.stack(slow))
    assert baselines.centre(features.float(), reference).dtype == torch.float32
    assert baselines.centre(np.array([[4, 1]], ">f4"), [[1, 5]]).numpy() == pytest.approx(np.array([[0.6, -0.8]]))
    assert baselines.centre(torch.tensor([[6e4, 0]]).half(), [[-6e4, 0]]).tolist() == [
        [1, 0]
    ]  # the difference overflows float16
    slow = features.clone()
    for candidate in range(4):
        slow[:, candidate] -= 0.75 * sum(sorted(reference[:, candidate].tolist())[-3:]) / 3
    torch.testing.assert_close(baselines.normalise_by_neighbours(features, reference, weight=0.75, k=3), slow)
    assert torch.equal(baselines.normalise_by_neighbours(features.numpy(), reference.numpy(), weight=0, k=9), features)


def test_principal_components_and_spectral_cut_against_numpy():
    """Compares cosines of the projected rows, which do not depend on the signs of the directions."""
    images, texts = rows(5, 6), rows(7, 6, seed=1)
    image_reference, text_reference = rows(30, 6, seed=2) + 1, rows(40, 6, seed=3)
    stacked = np.concatenate([image_reference, text_reference])
    directions = np.linalg.svd(stacked - stacked.mean(axis=0))[2][:3].T
    projected = baselines.principal_components((images, texts), (image_reference, text_reference), width=3)
    for ours, features in zip(projected, (images, texts), strict=True):
        expected = cosine_similarity((features.numpy() - stacked.mean(axis=0)) @ directions)
        np.testing.assert_allclose(ours @ ours.T, expected, atol=1e-9)
    texts, text_reference = texts[:, :4], text_reference[:30, :4] + image_reference[:, :4]
    x, y = (side.numpy() - side.numpy().mean(axis=0) for side in (image_reference, text_reference))
    operator = sum(np.outer(a, b) for a, b in zip(x, y, strict=True))
    left, right = (np.linalg.eigh(m)[1][:, ::-1][:, 1:3] for m in (operator @ operator.T, operator.T @ operator))
    cut = baselines.spectral_cut((images, texts), (image_reference, text_reference), leading=1, trailing=1)
    for ours, features, basis in zip(cut, (images, texts), (left, right), strict=True):
        np.testing.assert_allclose(ours @ ours.T, cosine_similarity(features.numpy() @ basis), atol=1e-9)


def test_weights_are_interpolated_between_two_states():
    start = {"w": torch.tensor([0.0, 2.0]), "half": torch.tensor([1.0], dtype=torch.float16), "n": torch.tensor(3)}
    trained = {"w": torch.tensor([1.0, 0.1]), "half": torch.tensor([3.0], dtype=torch.float16), "n": torch.tensor(7)}
    between = baselines.interpolate_weights(start, trained, 0.25)
    assert between["w"].tolist() == pytest.approx([0.25, 1.525])
    assert (between["half"].dtype, between["half"].item(), between["n"].item()) == (torch.float16, 1.5, 7)
    for alpha, end in ((0, start), (1.0, trained)):
        result = baselines.interpolate_weights(start, trained, alpha)
        assert torch.equal(result["w"], end["w"])  # to the last bit
        result["w"] += 1  # changes a copy
        assert not torch.equal(result["w"], end["w"])


def test_training_free_baselines_choose_on_validation_and_undo_an_offset():
    """Both modalities are noise around the same points, one of them shifted: centring aligns them."""
    dataset = load_dataset("emoji", split="train", limit=150)
    images = rows(150, 12).float()
    texts = images[dataset.caption_image] + 0.5 * rows(len(dataset.captions), 12, seed=1).float() + 6 * torch.eye(12)[0]
    split = (unit_rows(images), unit_rows(texts)), dataset
    frame = baselines.training_free(*split, splits=(split, split))
    table = frame.pivot_table("value", "arm", "metric")
    assert table.loc["centred", "r_mean"] > table.loc["as given", "r_mean"] + 10
    assert table.loc["as given", "r_mean"] == pytest.approx(retrieval_metrics(*split)["rouge_l"]["r_mean"])
    assert table.loc["nnn", "r_mean"] > table.loc["as given", "r_mean"]  # chosen on the same data
    assert np.isnan(table.loc["nnn", "i2i/NDCG@10"])
    single = ["i2i/NDCG@10", "t2t_no_siblings/NDCG@10"]
    assert table.loc["spectral_cut", single].mean() >= table.loc["as given", single].mean() - 1e-9
    assert frame.loc[frame["arm"] == "nnn", "parameters"].iloc[0].startswith("weight ")


X, Y = rows(6, 4), rows(8, 4, seed=1)
PAIR, NINE, ONE = (rows(5, 6), rows(7, 6)), (rows(9, 6),) * 2, (rows(1, 6),) * 2
BAD = [(lambda: baselines.centre(X, Y[:, :3]), r"features \(6, 4\) and reference \(8, 3\)")]
BAD += [(lambda: baselines.centre(X[0], Y), r"must be rows \[N, D\]")]
BAD += [(lambda: baselines.centre(X, Y / 0), "reference .* 8 rows are not finite")]
BAD += [(lambda: baselines.normalise_by_neighbours(X, Y, weight=1, k=9), "k = 9 neighbours of a bank of 8")]
BAD += [(lambda: baselines.normalise_by_neighbours(X, Y[:, :2], weight=1, k=1), r"\(6, 4\) and bank_scores \(8, 2\)")]
BAD += [(lambda: baselines.normalise_by_neighbours(X, Y, weight=float("nan"), k=1), "weight nan")]
BAD += [(lambda: baselines.principal_components(PAIR, ONE, width=2), r"width 2 .* 3 reference rows, got \[2, 6\]")]
BAD += [(lambda: baselines.spectral_cut(PAIR, PAIR, leading=1, trailing=1), "are not paired")]
BAD += [(lambda: baselines.spectral_cut(PAIR, NINE, leading=-1, trailing=1), "leave none of 6 directions")]
BAD += [(lambda: baselines.spectral_cut(PAIR, NINE, leading=3, trailing=3), "leave none of 6 directions")]
BAD += [(lambda: baselines.interpolate_weights({"w": X}, {"w": X}, float("nan")), "alpha is nan, expected 0 .* to 1")]
BAD += [(lambda: baselines.interpolate_weights({"w": X}, {"w": X}, 1.5), r"alpha is 1\.5")]
BAD += [(lambda: baselines.interpolate_weights({"w": X}, {"v": X}, 0.5), "'v' is missing in start and .* in trained")]
BAD += [(lambda: baselines.interpolate_weights({"w": X}, {"w": Y}, 0.5), r"'w' is .*\[6, 4\] in start and .*\[8, 4\]")]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message, refuses):
    refuses(message, call)
