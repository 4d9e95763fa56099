"""What is trained: one module that turns a batch into named loss terms.

Of several processes each encodes its own rows of a batch and gathers the others' features, so that every loss is that
of the whole batch; the mean of their gradients is that of a single process (:mod:`rvlr_lib.training.processes`).
"""

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from rvlr_lib.config import MethodSettings
from rvlr_lib.losses import (
    FusionWeight,
    LossWeights,
    anchor_loss,
    cross_modal_cyclic_loss,
    image_text_contrastive_loss,
    image_text_matching_loss,
    in_modal_cyclic_loss,
    intra_modal_contrastive_loss,
    mean_relation_loss,
    pair_alignment_loss,
    representation_distillation_loss,
    sample_hard_negatives,
    structure_distillation_loss,
)
from rvlr_lib.models import CachedRows, Encoded, Student, full_precision, ridge_map
from rvlr_lib.similarity import unit_rows
from rvlr_lib.training.batches import Inputs
from rvlr_lib.training.features import Features
from rvlr_lib.training.processes import gather_rows, gather_tokens, own_rows

TOKEN_DROPOUT = 0.1  # makes two views of a caption that a whole tower encodes
ANGLE_ROWS = 64  # of a batch: triples of rows grow with the cube


class Objective(nn.Module):
    """All loss terms of the method, its controls and peers; only those with a weight are computed.

    Args:
        student: trained in place.
        weights: of the terms; a term of weight 0 costs nothing.
        method: the switches.
        teachers: frozen unit features of the training pictures ``[I, W]`` and captions ``[C, W]``.
        structure_teachers: those of the structure term alone, where they are others (the shuffled control).
        start: weights of the student that ``anchor`` pulls to; None: those it has now.
        embed_dim: width of the teacher heads, that of the student's features.
        seed: of the teacher heads and the hard negatives.

    Attributes:
        two_views, tokens: whether it wants second views, and cached tokens.

    Raises:
        ValueError: a term with a weight lacks its teachers, or the fusion encoder.
    """

    def __init__(
        self,
        student: Student,
        weights: LossWeights,
        method: MethodSettings,
        *,
        teachers: Features | None = None,
        structure_teachers: Features | None = None,
        start: Mapping[str, Tensor] | None = None,
        embed_dim: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.student, self.weights, self.method = student, weights, method
        self.seed, self.negatives = seed, torch.Generator().manual_seed(seed)
        self.represent = bool(weights.image_representation or weights.text_representation)
        self.two_views = bool(weights.image_intra or weights.text_intra)
        relational = bool(weights.structure or weights.mean_relation or weights.rkd_angle)
        self.fused_target = relational and method.structure_target == "fusion"
        self.tokens = student.fusion is not None and bool(weights.matching or self.fused_target)
        if (self.represent or relational) and teachers is None:
            raise ValueError("distillation terms have a weight, but there are no teacher features")
        if self.fused_target and student.fusion is None:
            raise ValueError("structure_target 'fusion' needs the fusion encoder: set model.fusion_layers >= 1")
        if teachers is not None:
            self._keep("teacher", teachers)
            self._keep("structure_teacher", structure_teachers or teachers)
        if self.represent and teachers is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.image_head = nn.Linear(teachers[0].shape[1], embed_dim)
                self.text_head = nn.Linear(teachers[1].shape[1], embed_dim)
            self.log_representation_temperature = nn.Parameter(torch.tensor(math.log(0.07)))
        if relational:
            self.fusion_weight = FusionWeight(
                method.fusion_weight, form=method.fusion_weight_form, learnable=method.learn_fusion_weight
            )
            temperature = torch.tensor(method.relation_temperature)
            self.relation_temperature = nn.Parameter(temperature, requires_grad=method.learn_relation_temperature)
        if self.two_views:
            self.log_intra_temperature = nn.Parameter(torch.tensor(math.log(0.1)))
        if weights.anchor:
            found = start or dict(student.named_parameters())
            self.anchored = [name for name, value in student.named_parameters() if value.requires_grad]
            self._keep("start", [found[name].detach().clone() for name in self.anchored])

    def forward(self, inputs: Inputs, precision: AbstractContextManager | None = None) -> dict[str, Tensor]:
        """Named terms of one batch; towers run under ``precision``, losses in full precision."""
        weights, student, precision = self.weights, self.student, precision or nullcontext()
        with precision:
            images = student.encode_image(inputs.images, tokens=self.tokens)
            texts = student.encode_text(inputs.texts, tokens=self.tokens)
            seconds = self._second_views(inputs) if self.two_views else None
        z, w, ids = gather_rows(images.features), gather_rows(texts.features), gather_rows(inputs.image_rows)
        captions = gather_rows(inputs.caption_rows)
        terms = {"contrastive": image_text_contrastive_loss(z, w, student.temperature, ids)}
        if weights.alignment:
            terms["alignment"] = pair_alignment_loss(z, w)
        if weights.cross_modal_cyclic:
            terms["cross_modal_cyclic"] = cross_modal_cyclic_loss(z, w)
        if weights.in_modal_cyclic:
            terms["in_modal_cyclic"] = in_modal_cyclic_loss(z, w)
        fused = None
        if self.tokens:
            terms["matching"], fused = self._matching(images, texts, (z @ w.T).detach(), ids, precision)
        if self.represent:
            terms |= self._representation(z, w, ids, captions)
        terms |= self._relations(z, w, fused, ids, captions)
        if seconds is not None:
            temperature = self.log_intra_temperature.exp()
            for name, first, second in zip(("image", "text"), (z, w), seconds, strict=True):
                terms[f"{name}_intra"] = intra_modal_contrastive_loss(first, gather_rows(second), temperature, ids)
        if weights.anchor:
            named = dict(student.named_parameters())
            terms["anchor"] = anchor_loss([named[name] for name in self.anchored], self._kept("start"))
        return terms

    def generators(self, device: torch.device) -> dict[str, torch.Generator]:
        """Generators of its own that a checkpoint must keep: that of the hard negatives, on the device of the draw."""
        if self.negatives.device.type != device.type:
            self.negatives = torch.Generator(device).manual_seed(self.seed)
        return {"negatives": self.negatives}

    def scalars(self) -> dict[str, float]:
        """Values to log: temperatures and the fusion weight."""
        values = {"temperature": self.student.temperature}
        if hasattr(self, "fusion_weight"):
            values |= {"fusion_weight": self.fusion_weight(), "relation_temperature": self.relation_temperature}
        if self.represent:
            values["representation_temperature"] = self._representation_temperature
        return {name: float(value.detach()) for name, value in values.items()}

    @property
    def _representation_temperature(self) -> Tensor:
        shared = self.method.representation_temperature == "shared"
        return self.student.temperature if shared else self.log_representation_temperature.exp()

    def _keep(self, name: str, values: Features | list[Tensor]) -> None:
        """Frozen tensors that follow the module to its device and into no checkpoint."""
        for number, value in enumerate(values):
            self.register_buffer(f"{name}_{number}", value, persistent=False)

    def _kept(self, name: str) -> list[Tensor]:
        return [value for key, value in self._buffers.items() if key.startswith(f"{name}_") and value is not None]

    def _second_views(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        dropout = 0.0 if isinstance(inputs.second_texts, CachedRows) else TOKEN_DROPOUT
        images = self.student.encode_image(inputs.second_images)
        return images.features, self.student.encode_text(inputs.second_texts, dropout=dropout).features

    def _matching(
        self, images: Encoded, texts: Encoded, similarity: Tensor, ids: Tensor, precision: AbstractContextManager
    ) -> tuple[Tensor, Tensor]:
        """Score each pair, each text with a hard negative picture, each picture with a hard negative text: 3B pairs.

        Negatives come from the whole batch. A process scores the pairs of its own rows, so the mean over the processes
        is the loss; the fused first tokens are of all rows.
        """
        assert images.tokens is not None
        assert texts.tokens is not None
        assert texts.mask is not None
        negative_image, negative_text = sample_hard_negatives(
            similarity, self.student.temperature.detach(), ids, generator=self.generators(ids.device)["negatives"]
        )
        part = own_rows(len(ids))
        own = torch.arange(len(ids), device=ids.device)[part]
        image_rows = torch.cat([own, negative_image[part], own])
        text_rows = torch.cat([own, own, negative_text[part]])
        image_tokens, (text_tokens, text_mask) = gather_rows(images.tokens), gather_tokens(texts.tokens, texts.mask)
        with precision:  # index_select: its backward is one deterministic index_add, not atomics
            logits, first = self.student.match(
                image_tokens.index_select(0, image_rows), text_tokens.index_select(0, text_rows), text_mask[text_rows]
            )
        logits, first = full_precision(logits), full_precision(first[: len(own)])
        loss = image_text_matching_loss(logits[: len(own)], logits[len(own) :])
        return loss, gather_rows(first) if self.fused_target else first

    def _representation(self, images: Tensor, texts: Tensor, ids: Tensor, captions: Tensor) -> dict[str, Tensor]:
        temperature, both = self._representation_temperature, self.method.representation_bidirectional
        image_teacher, text_teacher = self._kept("teacher")
        heads = unit_rows(self.image_head(image_teacher[ids])), unit_rows(self.text_head(text_teacher[captions]))
        return {
            f"{name}_representation": representation_distillation_loss(
                student, teacher, temperature, ids, bidirectional=both
            )
            for name, student, teacher in zip(("image", "text"), (images, texts), heads, strict=True)
        }

    def _relations(
        self, images: Tensor, texts: Tensor, fused: Tensor | None, ids: Tensor, captions: Tensor
    ) -> dict[str, Tensor]:
        """Geometry of the target space against the relations of the teachers: mean over the spaces of each term."""
        weights, method = self.weights, self.method
        terms: dict[str, Tensor] = {}
        if not (weights.structure or weights.mean_relation or weights.rkd_angle):
            return terms
        weight = self.fusion_weight()
        if self.fused_target:
            assert fused is not None
            spaces = [(fused, weight)]
        elif method.structure_teacher == "own":
            spaces = [(images, torch.zeros_like(weight)), (texts, torch.ones_like(weight))]
        else:
            spaces = [(images, weight), (texts, weight)]
        image_teacher, text_teacher = self._kept("structure_teacher")
        teachers, temperature = (image_teacher[ids], text_teacher[captions]), self.relation_temperature
        if weights.structure:
            cost = texts if method.cost_gradient else texts.detach()
            results = [
                structure_distillation_loss(
                    space,
                    *teachers,
                    fusion_weight=share,
                    temperature=temperature,
                    distance=method.distance,
                    cost_features=cost,
                    centred=method.centred,
                )
                for space, share in spaces
            ]
            terms["structure"] = torch.stack([result.student for result in results]).mean()
            if weights.image_teacher_structure or weights.text_teacher_structure:
                terms["image_teacher_structure"] = results[0].image_teacher
                terms["text_teacher_structure"] = results[0].text_teacher
        if weights.mean_relation:
            terms["mean_relation"] = torch.stack(
                [
                    mean_relation_loss(space, *teachers, fusion_weight=share, temperature=temperature)
                    for space, share in spaces
                ]
            ).mean()
        if weights.rkd_angle:
            few = tuple(rows[:ANGLE_ROWS] for rows in teachers)
            terms["rkd_angle"] = torch.stack(
                [
                    structure_distillation_loss(
                        space[:ANGLE_ROWS], *few, fusion_weight=share, temperature=temperature, distance="rkd_angle"
                    ).student
                    for space, share in spaces
                ]
            ).mean()
        return terms


def warm_heads(objective: Objective, features: Features, *, ridge: float = 0.01) -> None:
    """Set the teacher heads to the ridge regression from teacher rows onto the student's features, in place.

    Args:
        objective: with representation terms; without them nothing happens.
        features: the student's of the *training* pictures and captions, unit rows, in the order of the teachers'.
        ridge: penalty as a share of the mean variance of a teacher column.

    Raises:
        ValueError: the numbers of rows differ.
    """
    if not objective.represent:
        return
    pairs = zip(("image", "text"), objective._kept("teacher"), features, strict=True)
    for name, teacher, student in pairs:
        if len(teacher) != len(student):
            raise ValueError(f"{len(student)} {name} features for {len(teacher)} teacher rows: give the training set's")
        weight, bias = ridge_map(teacher, student.to(teacher.device), ridge)
        getattr(objective, f"{name}_head").load_state_dict({"weight": weight, "bias": bias})


def shuffle_teachers(teachers: Features, caption_image: Tensor, seed: int) -> Features:
    """Give every picture, and all its captions, the teacher rows of another picture: the ``shuffled`` control.

    The permutation has no fixed point. Where the other picture has fewer captions, they repeat.

    Args:
        teachers: rows of the pictures ``[I, W]`` and captions ``[C, W]``.
        caption_image: picture of each caption, ``[C]``.
        seed: of the permutation.
    """
    owner = torch.as_tensor(caption_image, dtype=torch.long)
    count = len(teachers[0])
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    other = torch.empty(count, dtype=torch.long)
    other[order] = order.roll(1)
    by_image, counts = torch.argsort(owner, stable=True), torch.bincount(owner, minlength=count)
    starts = counts.cumsum(0) - counts
    within = torch.empty_like(owner)
    within[by_image] = torch.arange(len(owner)) - starts[owner[by_image]]
    donor = other[owner]
    return teachers[0][other], teachers[1][by_image[starts[donor] + within % counts[donor]]]


def gradient_shares(objective: Objective, inputs: Inputs) -> dict[str, float]:
    """Gradient norm of each weighted term on one batch, over all trained parameters: what each pulls at the beginning.

    The objective's weights, gradients and random states stay as they are.

    Returns:
        ``{term: norm}``; a quotient with ``contrastive`` says how a term weighs against it.
    """
    parameters = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    generators = objective.generators(inputs.image_rows.device)
    states = {name: generator.get_state() for name, generator in generators.items()}
    devices = [inputs.image_rows.device] if inputs.image_rows.is_cuda else []
    with torch.random.fork_rng(devices=devices):
        terms = objective(inputs)
        norms = {}
        for name, term in terms.items():
            if not term.requires_grad:
                norms[name] = 0.0
                continue
            found = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
            squares = [gradient.double().square().sum() for gradient in found if gradient is not None]
            norms[name] = abs(getattr(objective.weights, name)) * float(torch.stack(squares).sum().sqrt())
    for name, generator in generators.items():
        generator.set_state(states[name])
    return norms
