"""``python -m rvlr_lib.data``: count the embedded data sets into data/README.md and draw data/contact_sheet.png."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from rvlr_lib.data import ImageTextDataset, bayes_ceiling, contact_sheet, load_dataset, shown_share, told_share

BEGIN, END = "<!-- begin: written by python -m rvlr_lib.data -->", "<!-- end -->"
COLUMNS = 8


def counts_table() -> str:
    """Pictures, captions and words of every split, as Markdown."""
    lines = [
        "| data set | split | pictures | captions | captions per picture | different words | words per caption |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for name in ("emoji", "scenes"):
        for split in ("train", "val", "test"):
            dataset = load_dataset(name, split=split)
            per_picture = np.bincount(dataset.caption_image)
            words = [caption.split() for caption in dataset.captions]
            each = np.unique([per_picture.min(), per_picture.max()])
            lines.append(
                f"| {name} | {split} | {len(dataset):,} | {len(words):,} | {' to '.join(map(str, each))} "
                f"| {len(set().union(*words)):,} | {np.mean([len(w) for w in words]):.1f} |"
            )
    return "\n".join(lines)


DIALS = ((1.0, 1.0), (0.6, 1.0), (0.5, 1.0), (0.3, 1.0), (1.0, 0.5), (0.5, 0.5))  # text detail, image visibility


def ceiling_table(dials: tuple[tuple[float, float], ...] = DIALS) -> str:
    """Told and shown shares and Bayes ceilings of the scenes' test galleries at some dial points, as Markdown."""
    keys = [f"{way}/R@{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)]
    lines = [
        f"| text detail | image visibility | factors told | factors shown | {' | '.join(keys)} |",
        "|--:|--:|--:|--:|" + "--:|" * len(keys),
    ]
    for detail, visibility in dials:
        test = load_dataset("scenes", split="test", text_detail=detail, image_visibility=visibility)
        ceilings = [bayes_ceiling(gallery) for gallery in test.gallery_sets()]
        means = [f"{np.mean([c[key] for c in ceilings]):.1f}" for key in keys]
        shares = f"{100 * told_share(test):.1f} % | {100 * shown_share(test):.1f} %"
        lines.append(f"| {detail} | {visibility} | {shares} | {' | '.join(means)} |")
    return "\n".join(lines)


def sample_sheet() -> Image.Image:
    """Two rows of scenes at detail 0.6 and, below, a row of emoji to train on and a row of held-out ones."""

    def spread(dataset: ImageTextDataset) -> ImageTextDataset:
        return dataset.subset(np.linspace(40, len(dataset) - 40, COLUMNS).astype(int))

    parts = [contact_sheet(load_dataset("scenes", split="val", size=2 * COLUMNS), 2, COLUMNS)]
    parts += [contact_sheet(spread(load_dataset("emoji", split=split)), 1, COLUMNS) for split in ("train", "test")]
    sheet = Image.new("RGB", (parts[0].width, sum(part.height for part in parts)), "white")
    top = 0
    for part in parts:
        sheet.paste(part, (0, top))
        top += part.height
    return sheet


def write(folder: Path) -> None:
    """Put the tables between the marks of ``folder``/README.md and the sheet beside it."""
    readme = folder / "README.md"
    text = readme.read_text("utf-8") if readme.exists() else ""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise SystemExit(f"{readme} lacks the lines {BEGIN} and {END}; run this where the repository lies")
    before, rest = text.split(BEGIN)
    tables = f"{counts_table()}\n\n{ceiling_table()}"
    readme.write_text(f"{before}{BEGIN}\n\n{tables}\n\n{END}{rest.split(END)[1]}", "utf-8")
    sample_sheet().save(folder / "contact_sheet.png", optimize=True)


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "data"))
