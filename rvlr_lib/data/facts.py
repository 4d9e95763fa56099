"""Factors of scenes: what a scene contains, what its picture and captions show of it, and true similarity."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

SHAPES, COLOURS, SIZES, BACKGROUNDS = 8, 8, 2, 8
OBJECTS = 4
TILES = 9  # per picture; each object is on one, and each can be covered


@dataclass(frozen=True, eq=False)
class Facts:
    """Factors shown by N views: ``objects`` [N, 4, 3] (shape, colour, size), ``background`` [N]; -1 if not shown."""

    objects: np.ndarray
    background: np.ndarray

    def __getitem__(self, rows: np.ndarray) -> "Facts":
        return Facts(self.objects[rows], self.background[rows])

    def counts(self) -> np.ndarray:
        """Weighted factor counts, float32 [N, 90]: 8 backgrounds and 64 shape-colour pairs count 1, the rest 1/2.

        A pair counts only if the view shows both the shape and the colour of an object.
        """
        shape, colour, size = np.moveaxis(self.objects.astype(np.int64), -1, 0)
        pair = np.where((shape >= 0) & (colour >= 0), shape * COLOURS + colour, -1)
        blocks = [(self.background[:, None], BACKGROUNDS, 1.0), (pair, SHAPES * COLOURS, 1.0)]
        blocks += [(shape, SHAPES, 0.5), (colour, COLOURS, 0.5), (size, SIZES, 0.5)]
        columns = [weight * (values[..., None] == np.arange(kinds)).sum(1) for values, kinds, weight in blocks]
        return np.concatenate(columns, axis=1).astype(np.float32)


@dataclass(frozen=True)
class Relevance:
    """Graded relevance of one gallery: ``[C, I]``, and ``[I, I]`` and ``[C, C]`` unless they are derived from it."""

    caption_to_image: np.ndarray
    image_to_image: np.ndarray | None = None
    text_to_text: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class SceneViews:
    """Factors of I scenes, and what their pictures and C captions show of them."""

    scene: Facts  # [I], all factors; an absent object is -1 throughout
    image: Facts  # [I], what each picture shows
    text: Facts  # [C], what each caption mentions, objects in order of mention
    caption_image: np.ndarray  # [C], scene of each caption
    forced: np.ndarray  # bool [C], captions given one object because none was drawn to be mentioned
    text_detail: float  # chance that a caption mentions a factor
    covered: np.ndarray  # [I], number of covered tiles of each picture
    described: Facts  # [C], complete scene that each caption describes; another picture's if pairs are mixed

    def subset(self, image_rows: np.ndarray, caption_rows: np.ndarray, caption_image: np.ndarray) -> "SceneViews":
        """Views of some scenes and captions; ``caption_image``: new scene row of each kept caption."""
        images = {name: getattr(self, name)[image_rows] for name in ("scene", "image", "covered")}
        texts = {name: getattr(self, name)[caption_rows] for name in ("text", "forced", "described")}
        return replace(self, caption_image=caption_image, **images, **texts)

    def counts(self, kind: Literal["latent", "shown"]) -> tuple[np.ndarray, np.ndarray]:
        """Factor counts of pictures and captions: of complete scenes (``latent``) or of what views show (``shown``)."""
        if kind not in ("latent", "shown"):
            raise ValueError(f"truth {kind!r} is unknown; valid: 'latent' (complete scenes), 'shown' (what views show)")
        images, texts = (self.scene, self.described) if kind == "latent" else (self.image, self.text)
        return images.counts(), texts.counts()

    def truth(self, kind: Literal["latent", "shown"]) -> Relevance:
        """Cosines between :meth:`counts`; a view that shows nothing has similarity 0 with everything."""
        counts = self.counts(kind)
        norms = [np.linalg.norm(count, axis=1, keepdims=True) for count in counts]
        images, texts = (count / np.where(norm > 0, norm, 1) for count, norm in zip(counts, norms, strict=True))
        return Relevance(texts @ images.T, images @ images.T, texts @ texts.T)

    def content(self) -> bytes:
        """All fields that define the views, as bytes for a fingerprint."""
        views = (self.scene, self.image, self.text, self.described)
        arrays = [a for facts in views for a in (facts.objects, facts.background)] + [self.forced]
        return b"".join(a.astype("<i1").tobytes() for a in arrays) + f"{self.text_detail}".encode()
