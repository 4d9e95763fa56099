"""Scenes: synthetic pictures and captions drawn from known factors, so that true similarity is known.

A scene has 1 to 4 objects (8 shapes x 8 colours x 2 sizes) on distinct cells of a 3x3 grid over one of 8 grey textures.
Position is a nuisance factor: no caption mentions it and no truth counts it, so crops and flips are harmless.
"""

from functools import lru_cache

import numpy as np
from PIL import Image, ImageColor, ImageDraw

from rvlr_lib.data.dataset import SPLITS, ArraySource, ImageTextDataset
from rvlr_lib.data.facts import BACKGROUNDS, COLOURS, OBJECTS, SHAPES, SIZES, TILES, Facts, SceneViews

SHAPE_WORDS, COLOUR_WORDS, SIZE_WORDS, BACKGROUND_WORDS = (
    tuple(tuple(words.split()) for words in table.split(","))
    for table in (
        "circle disc,square box,triangle pyramid,star spark,heart valentine,cross plus,ring hoop,diamond gem",
        "red crimson,orange amber,yellow golden lemon,green emerald,turquoise teal,blue azure,purple violet,pink rose",
        "small little tiny,large big huge",
        "plain blank,striped lined,barred slatted,checked checkered,dotted spotted,diagonal slanted,wavy rippled,"
        "grainy sandy",
    )
)
THING_WORDS = ("thing", "shape", "object")
GROUND_WORDS = ("background", "backdrop", "ground")
JOINT_WORDS = ("and", "with")
OPENINGS = ("", "there is", "a picture of", "we see", "this shows")
PREPOSITIONS = ("on", "over", "against")

PIXELS, CAPTIONS = 48, 5

_COLOURS = [ImageColor.getrgb(c) for c in "#de282c #f48010 #fad624 #289638 #20beba #2454d6 #7c34b0 #f886be".split()]
_RADII = (4.0, 6.8)
_COVER = 104.0  # grey of covered tiles, darker than every texture
_SPRITE, _TEXTURE, _FINE = 15, 64, 16  # sides of sprites and textures in pixels; supersampling factor of sprites


def load_scenes(
    *,
    split: str,
    text_detail: float = 0.6,
    image_visibility: float = 1.0,
    size: int | None = None,
    galleries: int = 10,
    gallery_size: int = 500,
    seed: int = 0,
) -> ImageTextDataset:
    """Draw one split: pictures of 48 x 48 pixels with five captions each, and the factors that each view shows.

    Args:
        split: ``train``, ``val`` or ``test``, drawn from independent random streams.
        text_detail: chance that a caption mentions a factor, 0..1; if no object is drawn to be mentioned, one is named
            by its shape. Nested: what is mentioned at 0.3 is also mentioned at 0.6.
        image_visibility: average share of the nine tiles left uncovered, 0..1. An object on a covered tile is not
            drawn; the background is hidden only if all tiles are covered. Also nested. Which tiles are covered depends
            on the number of pictures.
        size: number of pictures in ``train`` (default 4,000) or ``val`` (500); fewer are the first of more.
        galleries, gallery_size: number and size of the galleries of ``test``.
        seed: of all draws; another seed is another world. ValueError for any argument out of range.
    """
    if split == "test" and size is not None:
        raise ValueError(f"size={size} is for train and val; the size of test is galleries x gallery_size")
    images = {"train": 4_000, "val": 500, "test": galleries * gallery_size}[split] if size is None else size
    shares = {"text_detail": text_detail, "image_visibility": image_visibility}
    counts = {"galleries": galleries, "gallery_size": gallery_size, "size": images, "seed": seed}
    for name, value in (shares | counts).items():
        least, most = int(name in counts and name != "seed"), 2**32 if name in counts else 1
        if not least <= value <= most:
            raise ValueError(f"{name}={value} lies outside {least} to {most}")

    streams = np.random.SeedSequence([seed, SPLITS.index(split)]).spawn(2)
    scene, shown, covered, pixels = _draw_pictures(images, image_visibility, streams[0])
    text, forced, captions = _describe(scene, text_detail, streams[1])
    owner = np.repeat(np.arange(images), CAPTIONS)
    return ImageTextDataset(
        name="scenes",
        split=split,
        image_ids=[f"{split}-{seed}-{i:05d}" for i in range(images)],
        captions=captions,
        caption_image=owner,
        source=ArraySource(pixels),
        galleries=np.arange(images) // gallery_size if split == "test" else None,
        scene=SceneViews(scene, shown, text, owner, forced, text_detail, covered, scene[owner]),
        info={**shares, "seed": seed, "images": images, "captions_per_image": CAPTIONS},
    )


def _draw_pictures(
    images: int, visibility: float, stream: np.random.SeedSequence
) -> tuple[Facts, Facts, np.ndarray, np.ndarray]:
    """All factors, those shown, the number of covered tiles [I], and the pictures, uint8 [I, 48, 48, 3]."""
    # one generator per quantity, so that a smaller data set is the beginning of a larger one
    number, kinds, ground, cell, shift, phase, light, cover = map(np.random.default_rng, stream.spawn(8))
    present = np.arange(OBJECTS) < number.integers(1, OBJECTS + 1, size=(images, 1))
    objects = kinds.integers(0, (SHAPES, COLOURS, SIZES), size=(images, OBJECTS, 3), dtype=np.int8)
    objects[~present] = -1
    background = ground.integers(0, BACKGROUNDS, size=images, dtype=np.int8)
    cells = cell.random((images, 9)).argsort(1)[:, :OBJECTS]
    corners = 2 + 15 * np.stack(np.divmod(cells, 3), -1) + shift.integers(-1, 2, size=(images, OBJECTS, 2))
    phases = phase.integers(0, _TEXTURE - PIXELS, size=(images, 2))
    lights = light.integers(-12, 13, size=images).astype(np.float32)
    covered = np.floor(TILES * (1 - visibility) + cover.random(images)).astype(np.int64)
    hidden = cover.random((images, TILES)).argsort(1).argsort(1) < covered[:, None]  # [I, tile]
    drawn = present & ~np.take_along_axis(hidden, cells, 1)
    shown = Facts(np.where(drawn[:, :, None], objects, -1), np.where(covered < TILES, background, -1).astype(np.int8))

    sprites, textures = _sprites(), _textures()
    pixels = np.empty((images, PIXELS, PIXELS, 3), dtype=np.uint8)
    for i in range(images):
        y, x = phases[i]
        canvas = np.repeat(textures[background[i], y : y + PIXELS, x : x + PIXELS, None] + lights[i], 3, axis=2)
        for tile in np.flatnonzero(hidden[i]):  # before the objects, so that no tile cuts off its neighbours' edges
            y, x = (16 * k for k in divmod(int(tile), 3))
            canvas[y : y + 16, x : x + 16] = _COVER
        for (shape, colour, size), (y, x) in zip(objects[i][drawn[i]], corners[i][drawn[i]], strict=True):
            sprite = sprites[shape, colour, size]
            patch = canvas[y : y + _SPRITE, x : x + _SPRITE]
            patch *= 1 - sprite[:, :, 3:]
            patch += sprite[:, :, :3]
        pixels[i] = canvas + 0.5
    return Facts(objects, background), shown, covered, pixels


@lru_cache(maxsize=1)
def _sprites() -> np.ndarray:
    """Every object, anti-aliased with a darker rim: [shape, colour, size, 15, 15, (premultiplied RGB, alpha)]."""
    sprites = np.empty((SHAPES, COLOURS, SIZES, _SPRITE, _SPRITE, 4), dtype=np.float32)
    fills = np.array(_COLOURS, dtype=np.float32)[:, None, None]
    for shape, contours in enumerate(_contours()):
        for size, radius in enumerate(_RADII):
            outer, inner = (_mask(contours, radius, rim) for rim in (0.0, 0.12 * radius))
            sprites[shape, :, size, ..., :3] = fills * (inner + 0.55 * (outer - inner))
            sprites[shape, :, size, ..., 3:] = outer
    return sprites


def _contours() -> list[list[np.ndarray]]:
    """Contours of radius 1, [points, (x, y)], outer and for the ring also inner; every shape is mirror-symmetric."""
    turn = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    circle = np.stack([np.sin(turn), -np.cos(turn)], axis=-1)
    tips = np.arange(10) * np.pi / 5
    star = np.stack([np.sin(tips), -np.cos(tips)], axis=-1) * np.where(np.arange(10) % 2, 0.48, 1.08)[:, None]
    wave = 13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)
    heart = np.stack([16 * np.sin(turn) ** 3, -wave - 2.5], axis=-1) / 15.5
    arm = np.array([(-0.34, -1), (0.34, -1), (0.34, -0.34), (1, -0.34)])
    cross = np.concatenate([arm, arm[::-1] * (1, -1), -arm, arm[::-1] * (-1, 1)])
    return [
        [circle],
        [np.array([(-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)])],
        [np.array([(0, -1), (1.02, 0.84), (-1.02, 0.84)])],
        [star + np.array((0, 0.06))],
        [heart],
        [cross],
        [circle, circle * 0.46],
        [np.array([(0, -1.06), (0.76, 0), (0, 1.06), (-0.76, 0)])],
    ]


def _mask(contours: list[np.ndarray], radius: float, rim: float) -> np.ndarray:
    """Coverage of each pixel, 0..1 [15, 15, 1], by a shape without its rim of ``rim`` pixels."""
    fine = Image.new("L", (_SPRITE * _FINE,) * 2)
    draw = ImageDraw.Draw(fine)
    for fill, contour in zip((255, 0), contours, strict=False):
        points = [tuple(point) for point in ((contour * radius + _SPRITE / 2) * _FINE).tolist()]
        draw.polygon(points, fill=fill)
        if rim:
            draw.line([*points, *points[:2]], fill=0, width=round(2 * rim * _FINE), joint="curve")
    mask = np.asarray(fine.resize((_SPRITE,) * 2, Image.Resampling.BOX), dtype=np.float32)[:, :, None] / 255
    return (mask + mask[:, ::-1]) / 2  # rasterising is symmetric only to a fraction of a pixel


@lru_cache(maxsize=1)
def _textures() -> np.ndarray:
    """Every background, larger than a picture so that its phase can vary: float32 grey [background, 64, 64]."""
    dark, bright, step = 166, 218, 8
    y, x = np.mgrid[: _TEXTURE * 4, : _TEXTURE * 4] / 4
    wave = np.abs((x % 16) - 8) / 8  # a triangle wave: exact on every machine
    grains = np.kron(np.random.default_rng(7).random((_TEXTURE // 2, _TEXTURE // 2)) < 0.5, np.ones((8, 8)))
    patterns = (
        np.zeros_like(x),
        y % step < step / 2,
        x % step < step / 2,
        (y % 16 < 8) != (x % 16 < 8),
        (x % step - 4) ** 2 + (y % step - 4) ** 2 < 2.3**2,
        (x + y) % 12 < 5,
        (y + 6 * wave**2 * (3 - 2 * wave)) % 12 < 4,
        grains,
    )
    fine = np.where(np.stack(patterns), dark, bright).astype(np.float32)
    return fine.reshape(BACKGROUNDS, _TEXTURE, 4, _TEXTURE, 4).mean((2, 4))


def _describe(scene: Facts, detail: float, stream: np.random.SeedSequence) -> tuple[Facts, np.ndarray, list[str]]:
    """Draw five captions per scene: their facts [5I], whether an object was forced [5I], and their texts."""
    mention, mention_ground, rank, spare, words, form = map(np.random.default_rng, stream.spawn(6))
    present, ground = np.repeat(scene.objects, CAPTIONS, axis=0), np.repeat(scene.background, CAPTIONS)
    objects = np.where(mention.random(present.shape) < detail, present, -1)
    ground = np.where(mention_ground.random(len(ground)) < detail, ground, -1).astype(np.int8)

    forced = np.all(objects < 0, axis=(1, 2))
    chosen = (spare.random(len(ground)) * (present[:, :, 0] >= 0).sum(1)).astype(np.int64)
    objects[forced, chosen[forced], 0] = present[forced, chosen[forced], 0]

    mentioned = (objects >= 0).any(2)
    order = np.where(mentioned, rank.random(mentioned.shape), 2.0).argsort(1)[:, :, None]
    objects, draws = (np.take_along_axis(x, order, 1) for x in (objects, words.random(objects.shape)))
    forms = form.random((len(ground), 6))
    choices = zip(objects.tolist(), ground.tolist(), draws.tolist(), forms.tolist(), strict=True)
    return Facts(objects, ground), forced, [_sentence(*choice) for choice in choices]


def _sentence(objects: list[list[int]], ground: int, draws: list[list[float]], form: list[float]) -> str:
    """Sentence that mentions the facts; ``draws`` and ``form``, all in 0..1, choose synonyms and templates."""
    phrases = []
    for (shape, colour, size), draw in zip(objects, draws, strict=True):
        if max(shape, colour, size) < 0:
            break
        adjectives = ((SIZE_WORDS, size, draw[2]), (COLOUR_WORDS, colour, draw[1]))
        words = [_pick(table[value], u) for table, value, u in adjectives if value >= 0]
        words.append(_pick(SHAPE_WORDS[shape] if shape >= 0 else THING_WORDS, draw[0]))
        phrases.append(_article(" ".join(words)))
    things = f" {_pick(JOINT_WORDS, form[0])} ".join(phrases)
    if ground < 0:
        return f"{_pick(OPENINGS, form[1])} {things}".strip()
    place = _article(f"{_pick(BACKGROUND_WORDS[ground], form[2])} {_pick(GROUND_WORDS, form[3])}")
    if form[4] < 0.2:
        return f"{place} with {things}"
    return f"{_pick(OPENINGS, form[1])} {things} {_pick(PREPOSITIONS, form[5])} {place}".strip()


def _pick(choices: tuple[str, ...], draw: float) -> str:
    return choices[int(draw * len(choices))]


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
