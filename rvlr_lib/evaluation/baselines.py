"""Training-free peers: what a practitioner would try on given features before training anything."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from rvlr_lib.data import ImageTextDataset
from rvlr_lib.evaluation.curves import tidy
from rvlr_lib.evaluation.evaluate import Features, galleries, headline_metrics, mean_of
from rvlr_lib.metrics import finite_rows
from rvlr_lib.similarity import unit_rows

Split = tuple[Features, ImageTextDataset]
BANK = 2000  # training queries of neighbour normalisation


def centre(features, reference) -> Tensor:
    """``features [N, D]`` minus the mean row of their training features ``[M, D]``, as unit rows (GR-CLIP).

    >>> centre([[2.0, 1.0], [1.0, 3.0]], [[0.0, 1.0], [2.0, 1.0]])
    tensor([[1., 0.],
            [0., 1.]], dtype=torch.float64)
    """
    features, reference = _alike("features", features, "reference", reference)
    return unit_rows(features.double() - reference.double().mean(dim=0)).to(features)


def principal_components(features: Features, reference: Features, *, width: int) -> Features:
    """Both modalities on the ``width`` leading principal directions of the training features of both together."""
    both = torch.cat(reference).double()
    if not 1 <= width <= min(both.shape[1], len(both) - 1):
        raise ValueError(f"width {width} needs features as wide and {width + 1} reference rows, got {list(both.shape)}")
    mean = both.mean(dim=0)
    directions = torch.linalg.eigh((both - mean).T @ (both - mean)).eigenvectors.flip(1)[:, :width]
    images, texts = (unit_rows((x.double() - mean) @ directions).to(x.dtype) for x in features)
    return images, texts


def spectral_cut(features: Features, reference: Features, *, leading: int, trailing: int) -> Features:
    """Leave out the first and last singular directions of the cross-covariance, for single-modal retrieval (IsoCLIP).

    Row m of the reference pictures ``[M, D]`` belongs to row m of the reference captions ``[M, D']``. Unit rows of
    width ``min(D, D') − leading − trailing``: pictures on the left directions that stay, captions on the right ones.
    """
    if len(reference[0]) != len(reference[1]):
        shapes = [list(rows.shape) for rows in reference]
        raise ValueError(f"reference pictures {shapes[0]} and captions {shapes[1]} are not paired")
    x, y = (rows.double() - rows.double().mean(dim=0) for rows in reference)
    left, _, right = torch.linalg.svd(x.T @ y, full_matrices=False)
    kept = slice(leading, left.shape[1] - trailing)
    if leading < 0 or trailing < 0 or kept.start >= kept.stop:
        raise ValueError(f"leading {leading} and trailing {trailing} leave none of {left.shape[1]} directions")
    pairs = zip(features, (left, right.T), strict=True)
    images, texts = (unit_rows(rows.double() @ basis[:, kept]).to(rows.dtype) for rows, basis in pairs)
    return images, texts


def normalise_by_neighbours(scores, bank_scores, *, weight: float, k: int) -> Tensor:
    """``scores [Q, G] − weight · mean of the k largest of each column of bank_scores [B, G]`` (NNN).

    The bank are training queries of the queries' modality: candidates near to many of them lose what they share.

    >>> normalise_by_neighbours([[1.0, 0.5]], [[0.8, 0.0], [0.6, 0.2], [0.0, 0.0]], weight=1.0, k=2)
    tensor([[0.3000, 0.4000]], dtype=torch.float64)
    """
    scores, bank = _alike("scores", scores, "bank_scores", bank_scores)
    if not math.isfinite(weight) or k != int(k) or not 1 <= k <= len(bank):
        raise ValueError(f"weight {weight}, k = {k} neighbours of a bank of {len(bank)} queries: k is 1 to {len(bank)}")
    return scores - weight * bank.topk(int(k), dim=0).values.mean(dim=0).to(scores)


def interpolate_weights(start: Mapping[str, Tensor], trained: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """``(1 − alpha) · start + alpha · trained`` of two state dicts (WiSE-FT); buffers of integers are those of trained.

    >>> interpolate_weights({"w": torch.zeros(2)}, {"w": torch.ones(2)}, 0.25)
    {'w': tensor([0.2500, 0.2500])}
    """
    if not math.isfinite(alpha):
        raise ValueError(f"alpha {alpha} is not finite")
    first, last = ({k: f"{v.dtype} {list(v.shape)}" for k, v in state.items()} for state in (start, trained))
    if differing := sorted(k for k in first.keys() | last.keys() if first.get(k) != last.get(k)):
        k = differing[0]
        raise ValueError(f"{k!r} is {first.get(k, 'not there')} in start and {last.get(k, 'not there')} in trained")
    pairs = {name: (start[name].detach().to(after.device), after.detach()) for name, after in trained.items()}
    return {k: torch.lerp(a, b, alpha) if b.is_floating_point() else b.clone() for k, (a, b) in pairs.items()}


def training_free(
    features: Features, dataset: ImageTextDataset, *, splits: tuple[Split, Split] | None = None, seed: int = 0
) -> pd.DataFrame:
    """The features as given and under each peer, under the headline relevance; parameters chosen on validation.

    ``splits`` are train, which gives means, directions and the bank, and validation; without them 40 % of the data
    set's pictures are train, 20 % validation, 40 % test. ``pca`` and ``spectral_cut`` are chosen by single-modal
    NDCG@10, ``nnn``, which changes cross-modal scores alone, by ``r_mean``; the first of equals.

    Returns:
        Columns dataset, arm (``as given``, ``centred``, ``pca``, ``spectral_cut``, ``nnn``), parameters, metric (NDCG
        at 10, R@K, ``r_mean``), value (percent).
    """
    if splits:
        (train, validation), test = splits, (features, dataset)
    else:
        order = np.random.default_rng(seed).permutation(len(dataset))
        parts = np.split(order, [round(0.4 * len(order)), round(0.6 * len(order))])
        train, validation, test = (_part(features, dataset, np.sort(rows)) for rows in parts)
    (images, texts), width = train[0], features[0].shape[1]
    generator = torch.Generator().manual_seed(seed)
    bank = [unit_rows(x[torch.randperm(len(x), generator=generator)[:BANK]]) for x in (images, texts)]
    paired = images[torch.as_tensor(train[1].caption_image)]
    widths = sorted({min(w, width, len(images) - 1) for w in (16, 32, 64, 128, 256)})
    cuts = product((0, 1, 2, 4), sorted({0, width // 4, width // 2}))
    neighbours = product((0.25, 0.5, 1.0), sorted({min(k, *map(len, bank)) for k in (1, 8, 64)}))
    pca, cut = partial(principal_components, reference=train[0]), partial(spectral_cut, reference=(paired, texts))
    peers: dict[str, tuple[Callable[..., Features], list[dict[str, Any]]]] = {
        "as given": (lambda pair: pair, [{}]),
        "centred": (lambda pair: (centre(pair[0], images), centre(pair[1], texts)), [{}]),
        "pca": (pca, [{"width": w} for w in widths]),
        "spectral_cut": (cut, [{"leading": a, "trailing": b} for a, b in cuts if a + b < width]),
        "nnn": (
            lambda pair, **_: (unit_rows(pair[0]), unit_rows(pair[1])),
            [{"weight": w, "k": k} for w, k in neighbours],
        ),
    }

    def measure(arm: str, split: Split, parameters: Mapping[str, Any]) -> dict[str, float]:
        reports, matching, ks_ndcg = [], None, () if arm == "nnn" else (10,)
        for gallery, (z, w) in galleries(peers[arm][0](split[0], **parameters), split[1]):
            if arm == "nnn":
                i2t = normalise_by_neighbours(z @ w.T, bank[0] @ w.T, **parameters)
                matching = i2t, normalise_by_neighbours(w @ z.T, bank[1] @ z.T, **parameters)
            reports.append(headline_metrics((z, w), gallery, matching=matching, ks_ndcg=ks_ndcg))
        return mean_of(reports)

    frames = []
    for arm, (_, candidates) in peers.items():
        goal = ["r_mean"] if arm == "nnn" else ["i2i/NDCG@10", "t2t_no_siblings/NDCG@10"]
        scores = [0.0]
        if len(candidates) > 1:
            scores = [sum(measure(arm, validation, each)[key] for key in goal) for each in candidates]
        if np.isnan(scores).any():
            raise ValueError(f"{arm}: a validation score is undefined: {scores}")
        chosen = candidates[int(np.argmax(scores))]
        told = ", ".join(f"{name} {value:g}" for name, value in chosen.items())
        frames.append(tidy(measure(arm, test, chosen), dataset, arm=arm, parameters=told))
    return pd.concat(frames, ignore_index=True)


def _part(features: Features, dataset: ImageTextDataset, rows: np.ndarray) -> Split:
    """Some pictures of a data set with their captions, and the features of both."""
    captions = np.concatenate([dataset.captions_of(row) for row in rows])
    return (features[0][rows], features[1][captions]), dataset.subset(rows)


def _alike(name: str, value, other: str, reference) -> Features:
    """Rows and their reference, of one width and on one device."""
    rows, others = finite_rows(name, value), finite_rows(other, reference)
    if rows.shape[1] != others.shape[1]:
        shapes = f"{name} {tuple(rows.shape)} and {other} {tuple(others.shape)}"
        raise ValueError(f"{shapes} do not fit: give rows of one width")
    return rows, others.to(rows.device)
