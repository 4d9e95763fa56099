"""Factors of scenes: what a scene holds, what its picture and its captions show of it, and true similarity."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

SHAPES, COLOURS, SIZES, BACKGROUNDS = 8, 8, 2, 8
OBJECTS = 4
TILES = 9  # of a picture: an object stands on one, and one can be covered


@dataclass(frozen=True, eq=False)
class Facts:
    """Factors shown by N views: ``objects`` [N, 4, 3] (shape, colour, size), ``background`` [N]; -1: not shown."""

    objects: np.ndarray
    background: np.ndarray

    def __getitem__(self, rows: np.ndarray) -> Facts:
        return Facts(self.objects[rows], self.background[rows])

    def counts(self) -> np.ndarray:
        """Weighted counts of factors, float32 [N, 90]: 8 backgrounds and 64 shape-colour pairs weigh 1, the rest 1/2.

        A pair counts only where the view shows both of an object.
        """
        shape, colour, size = np.moveaxis(self.objects.astype(np.int64), -1, 0)
        pair = np.where((shape >= 0) & (colour >= 0), shape * COLOURS + colour, -1)
        blocks = (
            (self.background[:, None], BACKGROUNDS, 1.0),
            (pair, SHAPES * COLOURS, 1.0),
            (shape, SHAPES, 0.5),
            (colour, COLOURS, 0.5),
            (size, SIZES, 0.5),
        )
        counted = [weight * (values[..., None] == np.arange(kinds)).sum(1) for values, kinds, weight in blocks]
        return np.concatenate(counted, axis=1).astype(np.float32)


@dataclass(frozen=True)
class Truth:
    """True similarities in 0..1, float32: captions against pictures [C, I], pictures [I, I], captions [C, C]."""

    caption_to_image: np.ndarray
    image_to_image: np.ndarray
    text_to_text: np.ndarray


@dataclass(frozen=True, eq=False)
class SceneViews:
    """The factors of I scenes and what their pictures and their C captions show of them.

    Attributes:
        scene: All factors of each scene, [I]; an absent object is -1 throughout.
        image: What each picture shows, [I].
        text: What each caption tells, [C]: the objects it mentions in the order of mention.
        caption_image: Scene of each caption, [C].
        forced: Captions [C] whose one object is told only because none was drawn to be told.
        text_detail: Chance of each factor to be told.
        covered: How many of the nine tiles of each picture are covered, [I]; None: none.
        text_scene: The whole scene that each caption tells of, [C]; None: that of the picture it stands with.
    """

    scene: Facts
    image: Facts
    text: Facts
    caption_image: np.ndarray
    forced: np.ndarray
    text_detail: float
    covered: np.ndarray | None = None
    text_scene: Facts | None = None

    @property
    def told_of(self) -> Facts:
        """The whole scene that each caption tells of, [C]."""
        return self.scene[self.caption_image] if self.text_scene is None else self.text_scene

    @property
    def covered_tiles(self) -> np.ndarray:
        """How many tiles of each picture are covered, [I]."""
        return np.zeros(len(self.scene.background), dtype=np.int64) if self.covered is None else self.covered

    def with_texts(self, source: np.ndarray) -> SceneViews:
        """The caption ``source[c]`` in place of caption c, with what it tells and the scene it tells of."""
        text, forced = self.text[source], self.forced[source]
        return replace(self, text=text, forced=forced, text_scene=self.told_of[source])

    def subset(self, image_rows: np.ndarray, caption_rows: np.ndarray, caption_image: np.ndarray) -> SceneViews:
        """Views of some scenes and captions; ``caption_image`` is the new row of each kept caption's scene."""
        return SceneViews(
            self.scene[image_rows],
            self.image[image_rows],
            self.text[caption_rows],
            caption_image,
            self.forced[caption_rows],
            self.text_detail,
            self.covered_tiles[image_rows],
            self.told_of[caption_rows],
        )

    def truth(self, kind: Literal["latent", "shown"]) -> Truth:
        """Cosines of factor counts: of the whole scenes (``latent``) or of what each view shows (``shown``).

        A view that shows nothing has similarity 0 to everything.

        Raises:
            ValueError: If ``kind`` is unknown.
        """
        if kind not in ("latent", "shown"):
            raise ValueError(f"truth {kind!r} is unknown; choose 'latent' (whole scene) or 'shown' (what a view shows)")
        if kind == "latent":
            images, texts = _unit(self.scene.counts()), _unit(self.told_of.counts())
        else:
            images, texts = _unit(self.image.counts()), _unit(self.text.counts())
        return Truth(texts @ images.T, images @ images.T, texts @ texts.T)

    def content(self) -> bytes:
        """All of it as bytes, for a fingerprint."""
        parts = (self.scene, self.image, self.text, self.told_of)
        arrays = [a for part in parts for a in (part.objects, part.background)] + [self.forced]
        return b"".join(a.astype("<i1").tobytes() for a in arrays) + f"{self.text_detail}".encode()


def _unit(counts: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(counts, axis=1, keepdims=True)
    return counts / np.where(norms > 0, norms, 1)
