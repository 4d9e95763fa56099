"""Training-free peers: what a practitioner would try on given features before training anything."""

import math
from collections.abc import Callable, Iterable, Mapping
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from rvlr_lib.data import ImageTextDataset
from rvlr_lib.evaluation.evaluate import CROSS_MODAL, Device, Features, galleries, relevances
from rvlr_lib.metrics import evaluate_retrieval
from rvlr_lib.similarity import unit_rows

if TYPE_CHECKING:
    import pandas as pd

Split = tuple[Features, ImageTextDataset]
BANK = 2000  # training queries of neighbour normalisation


def centre(features, reference) -> Tensor:
    """Subtract the mean row of a reference and renormalise: closes the modality gap where it is an offset (GR-CLIP).

    ``features [N, D]`` of one modality, ``reference [M, D]`` its training features -> unit rows ``[N, D]``.

    Raises:
        ValueError: widths that differ, fewer than 2 reference rows, a value that is not finite.

    >>> centre([[2.0, 1.0], [1.0, 3.0]], [[0.0, 1.0], [2.0, 1.0]])
    tensor([[1., 0.],
            [0., 1.]])
    """
    features, reference = _rows("features", features), _rows("reference", reference)
    _same_width("features", features, "reference", reference)
    _enough(reference, 2, "a mean")
    return unit_rows(features - reference.double().mean(dim=0).to(features))


def principal_components(
    image_features, text_features, reference_images, reference_texts, *, width: int
) -> tuple[Tensor, Tensor]:
    """Project both modalities on the leading principal directions of the training features of both.

    ``[I, D]``, ``[C, D]`` and training features ``[M, D]``, ``[L, D]`` -> unit rows ``[I, width]`` and ``[C, width]``.
    Directions and mean are those of all ``M + L`` reference rows together, so the two modalities stay comparable.

    Raises:
        ValueError: widths that do not fit, too few reference rows, ``width`` out of range, a value that is not finite.
    """
    images, texts, others = _pair_and_reference(image_features, text_features, reference_images, reference_texts)
    _same_width("reference_images", others[0], "reference_texts", others[1])
    both = torch.cat([others[0].double(), others[1].double()])
    if not 1 <= width <= both.shape[1]:
        raise ValueError(f"width {width} is not in 1 to {both.shape[1]}, the width of the features")
    _enough(both, width + 1, f"{width} principal directions")
    mean = both.mean(dim=0)
    directions = torch.linalg.eigh((both - mean).T @ (both - mean)).eigenvectors.flip(1)[:, :width]
    projected = [unit_rows((x.double() - mean) @ directions).to(x.dtype) for x in (images, texts)]
    return projected[0], projected[1]


def spectral_cut(
    image_features,
    text_features,
    reference_images,
    reference_texts,
    *,
    leading: int,
    trailing: int,
    centred: bool = True,
) -> tuple[Tensor, Tensor]:
    """Leave out the first and last singular directions of the cross-modal operator, for single-modal retrieval.

    The operator is ``A = Xᵀ Y`` (IsoCLIP). On features alone X and Y are paired training rows, less their means: the
    cross-covariance. Where the towers end in linear maps, give the inputs of the maps as features, the maps
    ``W_image [E, D]`` and ``W_text [E, D']`` as reference, and ``centred=False``: then ``A = W_imageᵀ W_text``.
    Pictures are projected on the left directions that stay, captions on the right ones.

    Args:
        image_features: ``[I, D]``.
        text_features: ``[C, D']``.
        reference_images: ``[M, D]``, row m belongs to row m of ``reference_texts [M, D']``.
        leading: largest directions to leave out, and ``trailing`` smallest; one of ``min(D, D')`` must stay.
        centred: subtract the mean of the reference rows first.

    Returns:
        Unit rows ``[I, r]`` and ``[C, r]``, ``r = min(D, D') − leading − trailing``.

    Raises:
        ValueError: shapes that do not fit, too few reference rows, no direction left, a value that is not finite.
    """
    images, texts, others = _pair_and_reference(image_features, text_features, reference_images, reference_texts)
    x, y = others[0].double(), others[1].double()
    if len(x) != len(y):
        raise ValueError(f"reference_images {tuple(x.shape)} and reference_texts {tuple(y.shape)} are not paired")
    if centred:
        _enough(x, 2, "a cross-covariance")
        x, y = x - x.mean(dim=0), y - y.mean(dim=0)
    left, _, right = torch.linalg.svd(x.T @ y, full_matrices=False)
    count = left.shape[1]
    if leading < 0 or trailing < 0 or leading + trailing >= count:
        raise ValueError(f"leading {leading} and trailing {trailing} leave none of {count} directions")
    kept = slice(leading, count - trailing)
    return (
        unit_rows(images.double() @ left[:, kept]).to(images.dtype),
        unit_rows(texts.double() @ right.T[:, kept]).to(texts.dtype),
    )


def normalise_by_neighbours(scores, bank_scores, *, weight: float, k: int) -> Tensor:
    """Nearest-neighbour normalisation (NNN): candidates that are near to many queries lose what they have in common.

    ``scores [Q, G] − weight · mean of the k largest of each column of bank_scores [B, G]``; the bank are training
    queries of the queries' modality, against the same candidates.

    Raises:
        ValueError: other candidates, ``k`` beyond the bank, a weight that is not finite, NaN.

    >>> normalise_by_neighbours([[1.0, 0.5]], [[0.8, 0.0], [0.6, 0.2], [0.0, 0.0]], weight=1.0, k=2)
    tensor([[0.3000, 0.4000]])
    """
    scores, bank = _rows("scores", scores), _rows("bank_scores", bank_scores)
    _same_width("scores", scores, "bank_scores", bank)
    if isinstance(k, bool) or k != int(k) or not 1 <= k <= len(bank):
        raise ValueError(f"k = {k} neighbours of a bank of {len(bank)} queries: give 1 to {len(bank)}")
    if not math.isfinite(weight):
        raise ValueError(f"weight {weight} is not finite")
    return scores - weight * bank.topk(int(k), dim=0).values.mean(dim=0).to(scores)


def interpolate_weights(start: Mapping[str, Tensor], trained: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """``(1 − alpha) · start + alpha · trained`` of two state dicts (WiSE-FT); 0 is the start, 1 the trained.

    A new state dict on the device of ``trained``, from which buffers of integers are taken.

    Raises:
        ValueError: ``alpha`` outside 0 to 1, or state dicts that do not match; names the first difference.

    >>> interpolate_weights({"w": torch.zeros(2)}, {"w": torch.ones(2)}, 0.25)
    {'w': tensor([0.2500, 0.2500])}
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha {alpha} is outside 0 to 1")
    if start.keys() != trained.keys():
        alone = [sorted(a.keys() - b.keys())[:3] for a, b in ((start, trained), (trained, start))]
        raise ValueError(f"the state dicts do not match: only start has {alone[0]}, only trained has {alone[1]}")
    mixed = {}
    for name, after in trained.items():
        before = start[name]
        if before.shape != after.shape or before.dtype != after.dtype:
            raise ValueError(
                f"the state dicts do not match: {name!r} is {before.dtype} {tuple(before.shape)} in start and "
                f"{after.dtype} {tuple(after.shape)} in trained"
            )
        source = before if alpha == 0 and after.is_floating_point() else after
        mixed[name] = source.detach().to(after.device, copy=True)
        if after.is_floating_point() and 0 < alpha < 1:  # the ends stay to the last bit
            wide = torch.promote_types(after.dtype, torch.float32)
            first, last = (x.detach().to(after.device, wide) for x in (before, after))
            mixed[name] = ((1 - alpha) * first + alpha * last).to(after.dtype)
    return mixed


def choose_on_validation(
    candidates: Iterable[Mapping[str, Any]], score: Callable[..., float]
) -> tuple[dict[str, Any], float]:
    """The parameters with the highest ``score(**parameters)``, the first of equals, and that score.

    Raises:
        ValueError: no candidate, or a score that is NaN.

    >>> choose_on_validation([{"k": 1}, {"k": 4}, {"k": 9}], lambda k: -abs(k - 5))
    ({'k': 4}, -1.0)
    """
    best: tuple[dict[str, Any], float] | None = None
    for candidate in candidates:
        value = float(score(**candidate))
        if math.isnan(value):
            raise ValueError(f"the validation score of {dict(candidate)} is NaN")
        if best is None or value > best[1]:
            best = dict(candidate), value
    if best is None:
        raise ValueError("there are no candidates to choose from")
    return best


def training_free(
    features: Features,
    dataset: ImageTextDataset,
    *,
    train: Split | None = None,
    validation: Split | None = None,
    seed: int = 0,
    device: Device = "cpu",
    **columns: Any,
) -> "pd.DataFrame":
    """The features as given and under each peer, under the headline relevance; parameters chosen on validation.

    ``pca`` and ``spectral_cut`` are chosen by the mean of ``i2i/NDCG@10`` and ``t2t_no_siblings/NDCG@10``, ``nnn`` by
    ``r_mean``; it changes scores across modalities alone and has rows for these. Its bank is at most 2,000 queries.

    Args:
        features: ``[I, D]`` and ``[C, D]`` of the test pictures and captions of the data set.
        train: features and data set that means, directions and the bank are taken from.
        validation: features and data set that parameters are chosen on. Without these two, three disjoint parts of the
            data set take their places: 40 % train, 20 % validation, 40 % test of its pictures.
        seed: of these parts and of the bank.

    Returns:
        Columns dataset, columns, arm (``as given``, ``centred``, ``pca``, ``spectral_cut``, ``nnn``), parameters,
        metric (NDCG at 10, R@K, ``r_mean``), value (percent).
    """
    import pandas as pd

    test = features, dataset
    if train is None and validation is None:
        order = np.random.default_rng(seed).permutation(len(dataset))
        ends = round(0.4 * len(order)), round(0.6 * len(order))
        train, validation, test = (_part(test, np.sort(rows)) for rows in np.split(order, ends))
    if train is None or validation is None:
        raise ValueError("give train and validation, or neither of them")
    images, texts = (x.to(device) for x in train[0])
    owner = torch.as_tensor(train[1].caption_image)
    generator = torch.Generator().manual_seed(seed)
    bank = [unit_rows(x[torch.randperm(len(x), generator=generator)[:BANK]]) for x in (images, texts)]
    width = images.shape[1]
    cuts = product((0, 1, 2, 4), sorted({0, width // 4, width // 2}))
    neighbours = sorted({min(k, *map(len, bank)) for k in (1, 8, 64)})
    arms: dict[str, list[dict[str, Any]]] = {
        "as given": [{}],
        "centred": [{}],
        "pca": [{"width": w} for w in sorted({min(w, width, len(images) - 1) for w in (16, 32, 64, 128, 256)})],
        "spectral_cut": [{"leading": a, "trailing": b} for a, b in cuts if a + b < width],
        "nnn": [{"weight": w, "k": k} for w, k in product((0.25, 0.5, 1.0), neighbours)],
    }

    def measure(arm: str, split: Split, **parameters: Any) -> dict[str, float]:
        z, w = (x.to(device) for x in split[0])
        if arm == "nnn":
            values = _measure((z, w), split[1], lambda *pair: _nnn_scores(*pair, *bank, **parameters))
            return {key: value for key, value in values.items() if key.startswith(CROSS_MODAL)}
        if arm == "centred":
            z, w = centre(z, images), centre(w, texts)
        elif arm == "pca":
            z, w = principal_components(z, w, images, texts, **parameters)
        elif arm == "spectral_cut":
            z, w = spectral_cut(z, w, images[owner], texts, **parameters)
        return _measure((z, w), split[1])

    rows = []
    for arm, candidates in arms.items():
        goal = ["r_mean"] if arm == "nnn" else ["i2i/NDCG@10", "t2t_no_siblings/NDCG@10"]

        def score(arm: str = arm, goal: list[str] = goal, **parameters: Any) -> float:
            found = measure(arm, validation, **parameters)
            return float(np.mean([found[key] for key in goal]))

        chosen = choose_on_validation(candidates, score)[0] if len(candidates) > 1 else candidates[0]
        own = {"arm": arm, "parameters": ", ".join(f"{name} {value:g}" for name, value in chosen.items())}
        values = measure(arm, test, **chosen)
        rows += [{"dataset": dataset.name, **columns, **own, "metric": m, "value": v} for m, v in values.items()]
    return pd.DataFrame(rows)


def _part(split: Split, rows: np.ndarray) -> Split:
    """Some pictures of a data set with their captions, and the features of both."""
    (images, texts), dataset = split
    captions = np.concatenate([dataset.captions_of(row) for row in rows])
    return (images[rows], texts[captions]), dataset.subset(rows)


def _nnn_scores(z: Tensor, w: Tensor, image_bank: Tensor, text_bank: Tensor, **parameters: Any) -> dict[str, Tensor]:
    """Normalised scores of both directions; the bank holds training queries of the query's modality."""
    return {
        "scores_i2t": normalise_by_neighbours(z @ w.T, image_bank @ w.T, **parameters),
        "scores_t2i": normalise_by_neighbours(w @ z.T, text_bank @ z.T, **parameters),
    }


def _measure(pair: Features, dataset: ImageTextDataset, scores: Callable[..., dict] | None = None) -> dict[str, float]:
    """Metrics under the headline relevance, mean over galleries; ``scores`` of unit rows in place of cosines."""
    reports = []
    for gallery, (z, w) in galleries(pair, dataset):
        known = next(iter(relevances(gallery).values()))
        given: dict[str, Any] = {
            "image_relevance": known.image_to_image,
            "text_relevance": known.text_to_text,
            "ks_ndcg": (10,),
        }
        given |= scores(unit_rows(z), unit_rows(w)) if scores else {}
        reports.append(evaluate_retrieval(z, w, gallery.caption_image, known.caption_to_image, **given))
    return {key: float(np.mean([report[key] for report in reports])) for key in reports[0]}


def _pair_and_reference(image_features, text_features, reference_images, reference_texts):
    """Checked features of both modalities and their references, each on the device of its features."""
    images = _rows("image_features", image_features)
    texts = _rows("text_features", text_features).to(images.device)
    given = ("reference_images", reference_images), ("reference_texts", reference_texts)
    others = [_rows(name, x).to(images.device) for name, x in given]
    _same_width("image_features", images, "reference_images", others[0])
    _same_width("text_features", texts, "reference_texts", others[1])
    return images, texts, others


def _rows(name: str, value) -> Tensor:
    rows = torch.as_tensor(value)
    rows = rows if rows.is_floating_point() else rows.float()
    if rows.ndim != 2 or not rows.numel():
        raise ValueError(f"{name} must be rows [N, D] with at least one, got {tuple(rows.shape)}")
    if not rows.isfinite().all():
        raise ValueError(f"{name} {tuple(rows.shape)} holds values that are not finite")
    return rows


def _same_width(name: str, a: Tensor, other: str, b: Tensor) -> None:
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"{name} {tuple(a.shape)} and {other} {tuple(b.shape)} differ in width")


def _enough(rows: Tensor, least: int, what: str) -> None:
    if len(rows) < least:
        raise ValueError(f"{len(rows)} reference rows are too few for {what}: give at least {least}")
