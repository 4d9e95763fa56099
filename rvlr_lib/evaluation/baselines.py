"""Training-free peers: what a practitioner would try on given features before training anything."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from rvlr_lib.similarity import unit_rows


def centre(features, reference) -> Tensor:
    """Subtract the mean row of a reference and renormalise: closes the modality gap where it is an offset (GR-CLIP).

    Args:
        features: ``[N, D]`` of one modality; tensor or array.
        reference: ``[M, D]`` training features of the same modality, M >= 2.

    Returns:
        ``[N, D]`` unit rows.

    Raises:
        ValueError: shapes that do not fit, fewer than 2 reference rows, a value that is not finite.

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

    The directions and the mean subtracted are those of all reference rows together, so the two stay comparable.

    Args:
        image_features: ``[I, D]``.
        text_features: ``[C, D]``.
        reference_images: ``[M, D]`` training pictures.
        reference_texts: ``[L, D]`` training captions.
        width: directions to keep, 1 to D; below ``M + L``.

    Returns:
        Unit rows ``[I, width]`` and ``[C, width]``.

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
        reference_images: ``[M, D]``.
        reference_texts: ``[M, D']``, row m belongs to row m of ``reference_images``.
        leading: largest directions to leave out.
        trailing: smallest directions to leave out; at least one of ``min(D, D')`` must stay.
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

    ``scores − weight · mean of the k largest of each column of bank_scores``.

    Args:
        scores: ``[Q, G]`` of queries and candidates.
        bank_scores: ``[B, G]`` of training queries of the same modality and the same candidates.
        weight: of the correction; 0 changes nothing.
        k: scores of each candidate to average, 1 to B.

    Returns:
        ``[Q, G]``.

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

    Args:
        start: state dict.
        trained: state dict with the same names, shapes and dtypes; buffers that hold no floating-point numbers are
            taken from it.
        alpha: 0 to 1.

    Returns:
        A new state dict, on the device of ``trained``.

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
            parts = (x.detach().to(after.device, wide) for x in (before, after))
            mixed[name] = torch.lerp(*parts, alpha).to(after.dtype)
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


def _pair_and_reference(image_features, text_features, reference_images, reference_texts):
    """Checked features of both modalities and their references, each on the device of its features."""
    images = _rows("image_features", image_features)
    texts = _rows("text_features", text_features).to(images.device)
    others = [
        _rows(name, x).to(images.device)
        for name, x in (("reference_images", reference_images), ("reference_texts", reference_texts))
    ]
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
