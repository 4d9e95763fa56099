"""A given space without training: how much each modality holds, retrieval, gap, structure and training-free peers."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from rvlr_lib.data import ImageTextDataset, shown_share, told_share
from rvlr_lib.disk import write_json, write_text
from rvlr_lib.evaluation.baselines import training_free
from rvlr_lib.evaluation.evaluate import NEIGHBOURS, Device, first_captions, noise_floor, retrieval_metrics
from rvlr_lib.metrics import (
    alignment,
    knn_overlap,
    linear_cka,
    modality_gap,
    relational_similarity,
    relative_modality_gap,
    uniformity,
)
from rvlr_lib.provenance import provenance
from rvlr_lib.similarity import unit_rows
from rvlr_lib.tables import to_markdown, write_table

if TYPE_CHECKING:
    import pandas as pd

FOLDS = 5
ALPHAS = np.logspace(-4, 3, 15)
LEAST = 50  # pictures; below it a linear probe says nothing


@dataclass(frozen=True)
class ImbalanceReport:
    """How much each modality holds; shares from 0 to 1, None where the factors are not known.

    Attributes:
        image_shown: exact share of the scenes' factors that the pictures show.
        text_shown: exact share that the captions tell.
        image_probe: share of the variance of the scenes' factors that is linear in the image features, held out.
        text_probe: the same of text features.
        image_to_text: cross-modal predictability: share of the variance of text features linear in image features.
        text_to_image: the other direction.
        text_to_text: what a caption predicts of a sibling: how reliably captions tell; None below 50 pictures with two.
        cka: linear CKA of the two feature spaces.
        overlap: percent of the ten nearest neighbours that the two spaces share.
        index: the imbalance index, see :func:`imbalance_index`.
        index_from: what the index was computed from.
    """

    image_shown: float | None
    text_shown: float | None
    image_probe: float | None
    text_probe: float | None
    image_to_text: float
    text_to_image: float
    text_to_text: float | None
    cka: float
    overlap: float
    index: float
    index_from: str


def imbalance_index(image_share: float, text_share: float) -> float:
    """``(image − text) / (image + text)`` of the shares that two modalities hold, −1 to 1.

    0: they hold the same; positive: the captions hold less; ±1: one holds nothing. Two that hold nothing give 0.

    Limits. From exact shares of factors it is a fact about the data. From predictability it is a lead: linear
    predictability is nearly the same in both directions, since what either side leaves out at random is noise to the
    other. So what pictures hold is taken as the share they predict of what captions tell *reliably*: divided by the
    root of what one caption predicts of another of the same picture (Spearman's correction for attenuation; the
    sibling is as noisy as the caption). Pictures have no such siblings, and what they hide at random still
    counts against captions: an index below 0 is too near to 0. With one caption per picture the same holds on both
    sides. It mixes what the data hold with what the features keep, and sees only what is encoded linearly.

    Raises:
        ValueError: a share is negative.

    >>> imbalance_index(1.0, 0.5), imbalance_index(0.5, 0.5)
    (0.3333333333333333, 0.0)
    """
    if image_share < 0 or text_share < 0:
        raise ValueError(f"shares are not negative, got {image_share} and {text_share}")
    total = image_share + text_share
    return (image_share - text_share) / total if total else 0.0


def imbalance_report(
    dataset: ImageTextDataset, image_features: Tensor, text_features: Tensor, device: Device = "cpu"
) -> ImbalanceReport:
    """How much each modality of a data set holds, by its factors and by unimodal features.

    A picture is represented by its first caption. Features ``[I, D]`` and ``[C, E]`` of unimodal teachers, or of the
    towers to be judged. Probes are ridge regressions, their strength chosen inside each of five folds of pictures.

    Raises:
        ValueError: too few pictures, or features that do not fit the data set.
    """
    images, captions = (x.to(device) for x in _checked(dataset, image_features, text_features))
    texts = captions[first_captions(dataset)]
    across = predictability(images, texts), predictability(texts, images)
    shown: tuple[float | None, float | None] = (None, None)
    pairs = [own[:2] for own in map(dataset.captions_of, range(len(dataset))) if len(own) > 1]
    siblings = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    reliable = predictability(*(captions[rows] for rows in siblings.T)) if len(siblings) >= LEAST else None
    probes, basis = shown, (min(1.0, across[0] / reliable**0.5) if reliable else across[0], across[1])
    exact = dataset.scene is not None and "image_fault" not in dataset.info  # blur hides no factor for certain
    if exact and dataset.scene is not None:
        factors = torch.from_numpy(dataset.scene.scene.counts()).to(device)
        shown = basis = shown_share(dataset), told_share(dataset)
        probes = predictability(images, factors), predictability(texts, factors)
    return ImbalanceReport(
        *shown,
        *probes,
        *across,
        reliable,
        cka=linear_cka(images, texts),
        overlap=knn_overlap(images, texts, k=NEIGHBOURS),
        index=imbalance_index(*basis),
        index_from="exact shares of factors" if exact else "predictability",
    )


def predictability(source, target, *, seed: int = 0) -> float:
    """Share of the variance of ``target [N, E]`` that is linear in ``source [N, D]``, held out; 0 where it is negative.

    ``1 − Σ (y − ŷ)² / Σ (y − ȳ)²`` over all entries, ŷ from a ridge regression of the other four fifths, its strength
    the one of 15 with the least leave-one-out error there. On the device of ``source``, float64.
    """
    x = torch.as_tensor(source).double()
    y = torch.as_tensor(target).double().to(x.device)
    scale = float(x.var(dim=0, correction=0).mean()) or 1.0  # one for all columns: a rare one must not be blown up
    strengths = ALPHAS * len(x) * scale
    order = np.arange(len(x))
    np.random.RandomState(seed).shuffle(order)
    missed = 0.0
    for held_out in np.array_split(order, FOLDS):
        seen = np.setdiff1d(order, held_out)
        predicted = _ridge(x[seen], y[seen], x[held_out], strengths)
        missed += float((y[held_out] - predicted).square().sum())
    spread = float((y - y.mean(dim=0)).square().sum())
    return max(0.0, 1 - missed / spread) if spread else 0.0


def _ridge(x: Tensor, y: Tensor, new: Tensor, strengths: np.ndarray) -> Tensor:
    """Ridge regression with an intercept; of the strengths the one with the least leave-one-out error, in closed form.

    With ``x = U S Vᵀ`` centred, the residual of a left-out row is ``(y − ŷ) / (1 − h − 1/N)``, ``h`` its leverage.
    """
    x_mean, y_mean = x.mean(dim=0), y.mean(dim=0)
    u, s, vt = torch.linalg.svd(x - x_mean, full_matrices=False)
    rotated, best = u.T @ (y - y_mean), (float("inf"), 0.0)
    for strength in strengths.tolist():
        kept = s.square() / (s.square() + strength)
        leverage = u.square() @ kept + 1 / len(x)
        residual = (y - y_mean - u @ (kept[:, None] * rotated)) / (1 - leverage).clamp_min(1e-12)[:, None]
        best = min(best, (float(residual.square().sum()), strength))
    return (new - x_mean) @ (vt.T @ ((s / (s.square() + best[1]))[:, None] * rotated)) + y_mean


def audit(
    image_features: Tensor, text_features: Tensor, dataset: ImageTextDataset, *, seed: int = 0, device: Device = "cpu"
) -> dict[str, Any]:
    """Everything that can be said of a space without training.

    Args:
        image_features: ``[I, D]``, rows of any length.
        text_features: ``[C, D]``, in the order of the captions.
        dataset: the 50 or more pictures and the captions the features are of.
        seed: of the noise floor and of the parts that the peers' parameters are chosen on.
        device: to compute on.

    Returns:
        ``imbalance`` (:class:`ImbalanceReport` as a dict), ``retrieval`` and ``floor`` (relevance -> metrics in
        percent), ``structure`` (gap, alignment, uniformity; of the image space against the text space ``overlap`` in
        percent, ``relations`` by Spearman and ``cka``), ``peers`` (rows of
        :func:`rvlr_lib.evaluation.baselines.training_free`).

    Raises:
        ValueError: features that do not fit the data set or each other or are not finite, or too few pictures.
    """
    images, texts = (x.to(device) for x in _checked(dataset, image_features, text_features))
    if images.shape[1] != texts.shape[1]:
        raise ValueError(
            f"image features {tuple(images.shape)} and text features {tuple(texts.shape)} share no space: an audit "
            "compares them, so give the features after the projection into the common space"
        )
    pair = unit_rows(images), unit_rows(texts)
    shown = pair[1][first_captions(dataset)]
    data = {"name": dataset.name, "split": dataset.split, "pictures": len(images), "captions": len(texts)}
    return {
        "data": data,
        "imbalance": asdict(imbalance_report(dataset, images, texts, device)),
        "retrieval": retrieval_metrics(pair, dataset, device=device),
        "floor": noise_floor(dataset, images.shape[1], seed, device),
        "structure": {
            "modality_gap": modality_gap(*pair, dataset.caption_image),
            "relative_modality_gap": relative_modality_gap(*pair, dataset.caption_image),
            "alignment": alignment(*pair, dataset.caption_image),
            "image/uniformity": uniformity(pair[0]),
            "text/uniformity": uniformity(pair[1]),
            "image against text/overlap": knn_overlap(pair[0], shown, k=NEIGHBOURS),
            "image against text/relations": relational_similarity(pair[0], shown),
            "image against text/cka": linear_cka(pair[0], shown),
        },
        "peers": training_free(pair, dataset, seed=seed, device=device).to_dict("records"),
    }


def audit_table(found: Mapping[str, Any]) -> "pd.DataFrame":
    """Every retrieval figure beside its floor, under the headline relevance."""
    import pandas as pd

    columns = {name: next(iter(found[part].values())) for name, part in (("found", "retrieval"), ("floor", "floor"))}
    table = pd.DataFrame(columns).rename_axis("metric")
    return table[~table.index.str.endswith("above_floor")]


def peers_table(found: Mapping[str, Any]) -> "pd.DataFrame":
    """Training-free peers, a row each; columns are parameters chosen on validation, then metrics."""
    import pandas as pd

    table = pd.DataFrame(found["peers"]).pivot_table("value", ["arm", "parameters"], "metric", sort=False)
    return table.rename_axis(columns=None).reset_index().set_index("arm")


def audit_text(found: Mapping[str, Any]) -> str:
    """The whole audit as Markdown."""
    data = found["data"]
    parts = [f"# {data['name']}/{data['split']}: {data['pictures']} pictures, {data['captions']} captions"]
    parts += ["## Retrieval and its noise floor, percent", to_markdown(audit_table(found))]
    peers = "## Without training, on held-out pictures; parameters chosen on others"
    parts += [peers, to_markdown(peers_table(found))]
    for part in ("imbalance", "structure"):
        lines = (f"- {k}: {v:.3f}" if isinstance(v, float) else f"- {k}: {v}" for k, v in found[part].items())
        parts += [f"## {part.capitalize()}", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def write_audit(found: Mapping[str, Any], folder: Path) -> Path:
    """Write ``audit.json``, ``audit.md`` with everything, and both tables as CSV, Markdown and LaTeX.

    Returns:
        The path of the JSON.
    """
    write_table(audit_table(found), folder, "retrieval")
    write_table(peers_table(found), folder, "peers")
    write_text(folder / "audit.md", audit_text(found))
    path = folder / "audit.json"
    write_json(path, {**found, "provenance": provenance()})
    return path


def _checked(dataset: ImageTextDataset, image_features: Tensor, text_features: Tensor) -> tuple[Tensor, Tensor]:
    images, texts = (torch.as_tensor(x).float() for x in (image_features, text_features))
    if images.ndim != 2 or texts.ndim != 2 or (len(images), len(texts)) != (len(dataset), len(dataset.captions)):
        raise ValueError(
            f"features {tuple(images.shape)} and {tuple(texts.shape)} do not fit {len(dataset)} pictures and "
            f"{len(dataset.captions)} captions"
        )
    for name, rows in (("image", images), ("text", texts)):
        if not rows.isfinite().all():
            raise ValueError(
                f"{name} features hold {int((~rows.isfinite()).any(dim=1).sum())} rows that are not finite"
            )
    if len(images) < LEAST:
        raise ValueError(f"{len(images)} pictures are too few for a linear probe: give at least {LEAST}")
    return images, texts
