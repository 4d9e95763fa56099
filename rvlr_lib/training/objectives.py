"""The training objective: one module that turns a batch into named loss terms.

Each process encodes its own rows and gathers the features of the others, so every loss is that of the full batch.
"""

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rvlr_lib import losses
from rvlr_lib.config import MethodSettings
from rvlr_lib.models import CachedRows, Encoded, Student
from rvlr_lib.similarity import full_precision, ridge_map, unit_rows
from rvlr_lib.training.batches import Inputs, captions_by_image, derived_seed
from rvlr_lib.training.features import Features
from rvlr_lib.training.processes import gather_rows, local_rows

RIDGE = 0.01  # of warm teacher heads: a fraction of the mean variance of a teacher column
TOKEN_DROPOUT = 0.1  # makes the second view of a caption that a whole tower encodes
PAIR_LOSSES = {
    "alignment": losses.pair_alignment_loss,
    "cross_modal_cyclic": losses.cross_modal_cyclic_loss,
    "in_modal_cyclic": losses.in_modal_cyclic_loss,
}


class Objective(nn.Module):
    """Loss terms of all arms; computes those with a weight, and ``contrastive`` always.

    Args:
        student: trained in place; ``anchor`` pulls towards its present weights.
        weights, method: weights of the terms, and their switches.
        teachers: frozen unit features of the training pictures ``[I, W]`` and captions ``[C, W]``.
        structure_teachers: other features for the structure terms alone (the shuffled control).
        seed: for the random start of the teacher heads.

    ``two_views`` and ``tokens`` say whether batches must have second views and cached tokens. ValueError if a term with
    a weight lacks the fusion encoder.
    """

    def __init__(
        self,
        student: Student,
        weights: losses.LossWeights,
        method: MethodSettings,
        *,
        teachers: Features | None = None,
        structure_teachers: Features | None = None,
        seed: int,
    ) -> None:
        super().__init__()
        self.student, self.weights, self.method = student, weights, method
        self.has_representation = bool(weights.image_representation or weights.text_representation)
        self.has_relations = bool(weights.structure or weights.mean_relation)
        self.two_views = bool(weights.image_intra or weights.text_intra)
        self.fused_target = self.has_relations and method.structure_target == "fusion"
        self.tokens = student.fusion is not None and bool(weights.matching or self.fused_target)
        if self.fused_target and student.fusion is None:
            raise ValueError("structure_target 'fusion' needs the fusion encoder: set model.fusion_layers >= 1")
        if self.tokens:  # not compiled: the first step's seed would be built in
            self.draw_negatives = torch.compiler.disable(_draw_negatives)
        if teachers is not None:
            self._freeze("teacher", teachers)
            self._freeze("structure_teacher", structure_teachers or ())  # none: those above, held once
        if self.has_representation:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)
                self.image_head, self.text_head = (nn.Linear(rows.shape[1], student.embed_dim) for rows in teachers)
            self.log_representation_temperature = nn.Parameter(torch.tensor(math.log(0.07)))
        if self.has_relations:
            form, learnable = method.fusion_weight_form, method.learn_fusion_weight
            self.fusion_weight = losses.FusionWeight(method.fusion_weight, form, learnable)
            temperature = torch.tensor(method.relation_temperature)
            self.relation_temperature = nn.Parameter(temperature, requires_grad=method.learn_relation_temperature)
        if self.two_views:
            self.log_intra_temperature = nn.Parameter(torch.tensor(math.log(0.1)))
        if weights.anchor:
            self._freeze("start", [parameter.detach().clone() for parameter in self._trained_parameters()])

    def forward(self, inputs: Inputs, precision: AbstractContextManager | None = None) -> dict[str, Tensor]:
        """Named loss terms of one batch; towers run under ``precision``, losses in full precision."""
        weights, student, precision = self.weights, self.student, precision or nullcontext()
        with precision:
            images = student.encode_image(inputs.images, tokens=self.tokens)
            texts = student.encode_text(inputs.texts, tokens=self.tokens)
            if self.two_views:
                dropout = 0.0 if isinstance(inputs.second_texts, CachedRows) else TOKEN_DROPOUT
                second_images = student.encode_image(inputs.second_images).features
                second_texts = student.encode_text(inputs.second_texts, dropout=dropout).features
        z, w, ids = gather_rows(images.features), gather_rows(texts.features), gather_rows(inputs.image_rows)
        captions = gather_rows(inputs.caption_rows)
        terms = {"contrastive": losses.image_text_contrastive_loss(z, w, student.temperature, ids)}
        terms |= {name: loss(z, w) for name, loss in PAIR_LOSSES.items() if getattr(weights, name)}
        fused = None
        if self.tokens:
            terms["matching"], fused = self._matching_term(images, texts, (z @ w.T).detach(), ids, precision)
        if self.has_representation:
            terms |= self._representation_terms(z, w, ids, captions)
        if self.has_relations:
            terms |= self._relation_terms(z, w, fused, ids, captions)
        if self.two_views:
            temperature, intra = self.log_intra_temperature.exp(), losses.intra_modal_contrastive_loss
            terms["image_intra"] = intra(z, gather_rows(second_images), temperature, ids)
            terms["text_intra"] = intra(w, gather_rows(second_texts), temperature, ids)
        if weights.anchor:
            terms["anchor"] = losses.anchor_loss(self._trained_parameters(), self.frozen("start"))
        return terms

    def scalars(self) -> dict[str, float]:
        """Temperatures and the fusion weight, to log."""
        values = {"temperature": self.student.temperature}
        if self.has_relations:
            values |= {"fusion_weight": self.fusion_weight(), "relation_temperature": self.relation_temperature}
        if self.has_representation:
            values["representation_temperature"] = self._representation_temperature()
        return {name: float(value.detach()) for name, value in values.items()}

    def frozen(self, name: str) -> list[Any]:
        """Tensors that :meth:`_freeze` stored as ``teacher``, ``structure_teacher`` or ``start``."""
        return [buffer for key, buffer in self._buffers.items() if key.startswith(f"{name}_")]

    def _freeze(self, name: str, tensors: Iterable[Tensor]) -> None:
        """Store tensors as buffers, which follow the module to its device and are left out of checkpoints."""
        for number, tensor in enumerate(tensors):
            self.register_buffer(f"{name}_{number}", tensor, persistent=False)

    def _trained_parameters(self) -> list[Tensor]:
        return [parameter for parameter in self.student.parameters() if parameter.requires_grad]

    def _representation_temperature(self) -> Tensor:
        shared = self.method.representation_temperature == "shared"
        return self.student.temperature if shared else self.log_representation_temperature.exp()

    def _matching_term(
        self, images: Encoded, texts: Encoded, similarity: Tensor, ids: Tensor, precision: AbstractContextManager
    ) -> tuple[Tensor, Tensor]:
        """Matching loss of 3B pairs: matched, texts with hard negative images, images with hard negative texts.

        Each process scores the pairs of its own rows with negatives from the full batch, drawn with torch's seed, which
        all share; the loss is the mean over processes. Also returns the fused tokens, of all rows if they are a target.
        """
        fusion = self.student.fusion
        negative_images, negative_texts = self.draw_negatives(similarity, self.student.temperature.detach(), ids)
        local = local_rows(len(ids))
        rows = torch.arange(len(ids), device=ids.device)[local]
        image_rows = torch.cat([rows, negative_images[local], rows])
        text_rows = torch.cat([rows, rows, negative_texts[local]])
        with precision:
            image_tokens, text_tokens = fusion.image_in(images.tokens), fusion.text_in(texts.tokens)
        image_tokens, text_tokens = gather_rows(image_tokens), gather_rows(text_tokens)
        text_mask = gather_rows(texts.mask.to(torch.uint8)).bool()
        with precision:  # index_select: its backward pass is a deterministic index_add, without atomics
            pairs = image_tokens.index_select(0, image_rows), text_tokens.index_select(0, text_rows)
            logits, fused = fusion.fuse(*pairs, text_mask[text_rows])
        logits, fused = full_precision(logits), full_precision(fused[: len(rows)])
        loss = losses.image_text_matching_loss(logits[: len(rows)], logits[len(rows) :])
        return loss, gather_rows(fused) if self.fused_target else fused

    def _representation_terms(self, images: Tensor, texts: Tensor, ids: Tensor, captions: Tensor) -> dict[str, Tensor]:
        temperature, bidirectional = self._representation_temperature(), self.method.representation_bidirectional
        loss = partial(losses.representation_distillation_loss, bidirectional=bidirectional)
        image_teacher, text_teacher = self.frozen("teacher")
        image_target, text_target = self.image_head(image_teacher[ids]), self.text_head(text_teacher[captions])
        return {
            "image_representation": loss(images, unit_rows(image_target), temperature, ids),
            "text_representation": loss(texts, unit_rows(text_target), temperature, ids),
        }

    def _relation_terms(
        self, images: Tensor, texts: Tensor, fused: Tensor | None, ids: Tensor, captions: Tensor
    ) -> dict[str, Tensor]:
        """Compare the relations of the student's spaces with the teachers': each term is the mean over the spaces."""
        weights, method, share = self.weights, self.method, self.fusion_weight()
        targets: list[tuple[Any, Tensor]] = [((images, texts), share)]  # spaces, and the text share of their target
        if self.fused_target:
            targets = [((fused,), share)]
        elif method.structure_teacher == "own":
            targets = [((images,), torch.zeros_like(share)), ((texts,), torch.ones_like(share))]
        image_teacher, text_teacher = self.frozen("structure_teacher") or self.frozen("teacher")
        teachers = image_teacher[ids], text_teacher[captions]

        def for_each_target(loss: Any, **options: Any) -> list[Any]:
            options["temperature"] = self.relation_temperature
            return [loss(x, *teachers, more_features=more, fusion_weight=w, **options) for (x, *more), w in targets]

        terms = {}
        if weights.structure:
            options = {"distance": method.distance, "centred": method.centred}
            options["cost_features"] = texts if method.cost_gradient else texts.detach()
            results = for_each_target(losses.structure_distillation_loss, **options)
            terms["structure"] = torch.stack([result.student for result in results]).mean()
            if weights.image_teacher_structure or weights.text_teacher_structure:
                terms["image_teacher_structure"] = results[0].image_teacher
                terms["text_teacher_structure"] = results[0].text_teacher
        if weights.mean_relation:
            terms["mean_relation"] = torch.stack(for_each_target(losses.mean_relation_loss)).mean()
        return terms


def _draw_negatives(similarity: Tensor, temperature: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    generator = torch.Generator(ids.device).manual_seed(derived_seed(torch.initial_seed(), "negatives"))
    return losses.sample_hard_negatives(similarity, temperature, ids, generator)


def warm_heads(objective: Objective, features: Features) -> None:
    """Set the teacher heads to the ridge regression from teacher rows onto the student's features, in place.

    ``features`` are the student's unit rows of the *training* pictures and captions, in the teachers' order.
    """
    heads = objective.image_head, objective.text_head
    for head, teacher, student in zip(heads, objective.frozen("teacher"), features, strict=True):
        weight, bias = ridge_map(teacher, student.to(teacher.device), RIDGE)
        head.load_state_dict({"weight": weight, "bias": bias})


def shuffle_teachers(teachers: Features, caption_image: Tensor, seed: int) -> Features:
    """Give every picture, and all its captions, the teacher rows of another picture: the ``shuffled`` control.

    The permutation of ``seed`` has no fixed point. If the other picture has fewer captions, their rows repeat.
    ``teachers`` are rows of the pictures ``[I, W]`` and captions ``[C, W]``, ``caption_image`` each caption's picture.
    """
    owner = torch.as_tensor(caption_image, dtype=torch.long)
    order = torch.randperm(len(teachers[0]), generator=torch.Generator().manual_seed(seed))
    donor = torch.empty_like(order)
    donor[order] = order.roll(1)
    by_image, counts, starts, within = captions_by_image(owner)
    caption_donor = donor[owner]
    return teachers[0][donor], teachers[1][by_image[starts[caption_donor] + within % counts[caption_donor]]]


def gradient_shares(objective: Objective, inputs: Inputs) -> dict[str, float]:
    """Gradient norm of each weighted term on one batch; weights, gradients and random states are left unchanged.

    Its ratio to the norm of ``contrastive`` says how much a term weighs.
    """
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    device, norms = inputs.image_rows.device, {}
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        terms = objective(inputs)
    for name, term in terms.items():
        grads = torch.autograd.grad(term, trained, retain_graph=True, allow_unused=True) if term.requires_grad else ()
        squares = sum(float(grad.double().square().sum()) for grad in grads if grad is not None)
        norms[name] = abs(getattr(objective.weights, name)) * math.sqrt(squares)
    return norms
