"""What is trained: modules that turn a batch into named loss terms.

Of several processes each encodes its own rows of a batch and gathers the others' features, so that every loss is that
of the whole batch; the mean of their gradients is the gradient of a single process (:mod:`rvlr_lib.training.gather`).
"""

import math
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from rvlr_lib.config import MethodSettings
from rvlr_lib.losses import (
    FusionWeight,
    LossWeights,
    image_text_contrastive_loss,
    image_text_matching_loss,
    intra_modal_contrastive_loss,
    pair_alignment_loss,
    representation_distillation_loss,
    sample_hard_negatives,
    structure_distillation_loss,
)
from rvlr_lib.models.student import Encoded, Student, full_precision
from rvlr_lib.models.teachers import Teacher
from rvlr_lib.similarity import unit_rows
from rvlr_lib.training.gather import gather_rows, gather_tokens, own_rows
from rvlr_lib.training.loop import Inputs

TOKEN_DROPOUT = 0.1  # makes two views of a caption that stands alone


class TeacherObjective(nn.Module):
    """Two augmented views of a picture, or two captions of one picture, attract each other."""

    two_views = True

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self.teacher = teacher

    def forward(self, inputs: Inputs, precision: AbstractContextManager) -> dict[str, Tensor]:
        """The one loss term of the teacher's modality."""
        image = self.teacher.modality == "image"
        first, second = (inputs.pixels, inputs.second_pixels) if image else (inputs.token_ids, inputs.second_token_ids)
        dropout = 0.0 if image else TOKEN_DROPOUT
        with precision:
            views = [self.teacher(view, dropout=dropout) for view in (first, second)]
        views, ids = [gather_rows(view) for view in views], gather_rows(inputs.image_rows)
        loss = intra_modal_contrastive_loss(views[0], views[1], self.teacher.temperature, ids)
        return {f"{self.teacher.modality}_intra": loss}

    def scalars(self) -> dict[str, float]:
        """Values to log."""
        return {"temperature": float(self.teacher.temperature.detach())}

    def generators(self, device: torch.device) -> dict[str, torch.Generator]:
        """Generators of its own that a checkpoint must keep: none."""
        return {}


class StudentObjective(nn.Module):
    """All loss terms of the method; only those with a weight are computed.

    Args:
        student: trained in place.
        weights: of the terms; a term of weight 0 costs nothing.
        method: the switches.
        teacher_features: frozen unit features of the training pictures ``[I, D]`` and captions ``[C, D]``.
        seed: of the teacher heads and the hard negatives.
    """

    def __init__(
        self,
        student: Student,
        weights: LossWeights,
        method: MethodSettings,
        teacher_features: tuple[Tensor, Tensor] | None,
        embed_dim: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.student, self.weights, self.method = student, weights, method
        self.seed, self.negatives = seed, torch.Generator().manual_seed(seed)
        self.represent = bool(weights.image_representation or weights.text_representation)
        self.two_views = bool(weights.image_intra or weights.text_intra)
        self.structured = bool(weights.structure)
        if (self.represent or self.structured) and teacher_features is None:
            raise ValueError("distillation terms have a weight, but there are no teacher features")
        if self.structured and method.structure_target == "fusion" and student.fusion is None:
            raise ValueError("structure_target 'fusion' needs the fusion encoder: set model.fusion_layers >= 1")
        if teacher_features is not None:
            self.register_buffer("image_teacher", teacher_features[0], persistent=False)
            self.register_buffer("text_teacher", teacher_features[1], persistent=False)
        if self.represent and teacher_features is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.image_head = nn.Linear(teacher_features[0].shape[1], embed_dim)
                self.text_head = nn.Linear(teacher_features[1].shape[1], embed_dim)
            self.log_representation_temperature = nn.Parameter(torch.tensor(math.log(0.07)))
        if self.structured:
            self.fusion_weight = FusionWeight(
                method.fusion_weight, form=method.fusion_weight_form, learnable=method.learn_fusion_weight
            )
            temperature = torch.tensor(method.relation_temperature)
            self.relation_temperature = nn.Parameter(temperature, requires_grad=method.learn_relation_temperature)
        if self.two_views:
            self.log_intra_temperature = nn.Parameter(torch.tensor(math.log(0.1)))

    def forward(self, inputs: Inputs, precision: AbstractContextManager) -> dict[str, Tensor]:
        """Named terms of one batch; towers run under ``precision``, losses in full precision."""
        weights, student = self.weights, self.student
        matching = student.fusion is not None and bool(weights.matching or self._fusion_structure)
        with precision:
            images = student.encode_image(inputs.pixels, tokens=matching)
            texts = student.encode_text(inputs.token_ids, tokens=matching)
        own, (image_features, text_features) = inputs, (gather_rows(images.features), gather_rows(texts.features))
        inputs = inputs._replace(image_rows=gather_rows(own.image_rows), caption_rows=gather_rows(own.caption_rows))
        terms = {"contrastive": image_text_contrastive_loss(image_features, text_features, student.temperature,
                                                            inputs.image_rows)}  # fmt: skip
        if weights.alignment:
            terms["alignment"] = pair_alignment_loss(image_features, text_features)
        fused = None
        if matching:
            similarity = (image_features @ text_features.T).detach()
            terms["matching"], fused = self._matching(images, texts, similarity, inputs.image_rows, precision)
        if self.represent:
            terms |= self._representation(image_features, text_features, inputs)
        if self.structured:
            terms |= self._structure(image_features, text_features, fused, inputs)
        if self.two_views:
            terms |= self._intra(image_features, text_features, inputs, precision)
        return terms

    def generators(self, device: torch.device) -> dict[str, torch.Generator]:
        """Generators of its own that a checkpoint must keep: that of the hard negatives, on the device of the draw."""
        if self.negatives.device.type != device.type:
            self.negatives = torch.Generator(device).manual_seed(self.seed)
        return {"negatives": self.negatives}

    def scalars(self) -> dict[str, float]:
        """Values to log: temperatures and the fusion weight."""
        values = {"temperature": self.student.temperature}
        if self.structured:
            values |= {"fusion_weight": self.fusion_weight(), "relation_temperature": self.relation_temperature}
        if self.represent:
            values["representation_temperature"] = self._representation_temperature
        return {name: float(value.detach()) for name, value in values.items()}

    @property
    def _fusion_structure(self) -> bool:
        return self.structured and self.method.structure_target == "fusion"

    @property
    def _representation_temperature(self) -> Tensor:
        shared = self.method.representation_temperature == "shared"
        return self.student.temperature if shared else self.log_representation_temperature.exp()

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
        return loss, gather_rows(first) if self._fusion_structure else first

    def _representation(self, images: Tensor, texts: Tensor, inputs: Inputs) -> dict[str, Tensor]:
        temperature, both = self._representation_temperature, self.method.representation_bidirectional
        image_teacher = unit_rows(self.image_head(self.image_teacher[inputs.image_rows]))
        text_teacher = unit_rows(self.text_head(self.text_teacher[inputs.caption_rows]))
        return {
            f"{name}_representation": representation_distillation_loss(
                student, teacher, temperature, inputs.image_rows, bidirectional=both
            )
            for name, student, teacher in (("image", images, image_teacher), ("text", texts, text_teacher))
        }

    def _structure(self, images: Tensor, texts: Tensor, fused: Tensor | None, inputs: Inputs) -> dict[str, Tensor]:
        """Geometry of the target space against the fused relations of the teachers."""
        weight = self.fusion_weight()
        if self._fusion_structure:
            assert fused is not None
            spaces = [(fused, weight)]
        elif self.method.structure_teacher == "own":
            spaces = [(images, torch.zeros_like(weight)), (texts, torch.ones_like(weight))]
        else:
            spaces = [(images, weight), (texts, weight)]
        results = [
            structure_distillation_loss(
                space,
                self.image_teacher[inputs.image_rows],
                self.text_teacher[inputs.caption_rows],
                fusion_weight=share,
                temperature=self.relation_temperature,
                distance=self.method.distance,
                cost_features=texts if self.method.cost_gradient else texts.detach(),
            )
            for space, share in spaces
        ]
        terms = {"structure": torch.stack([result.student for result in results]).mean()}
        if self.weights.image_teacher_structure or self.weights.text_teacher_structure:
            terms["image_teacher_structure"] = results[0].image_teacher
            terms["text_teacher_structure"] = results[0].text_teacher
        return terms

    def _intra(
        self, images: Tensor, texts: Tensor, inputs: Inputs, precision: AbstractContextManager
    ) -> dict[str, Tensor]:
        assert inputs.second_pixels is not None
        assert inputs.second_token_ids is not None
        with precision:
            second_images = self.student.encode_image(inputs.second_pixels).features
            second_texts = self.student.encode_text(inputs.second_token_ids, dropout=TOKEN_DROPOUT).features
        temperature = self.log_intra_temperature.exp()
        return {
            f"{name}_intra": intra_modal_contrastive_loss(first, gather_rows(second), temperature, inputs.image_rows)
            for name, first, second in (("image", images, second_images), ("text", texts, second_texts))
        }
