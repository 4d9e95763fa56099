import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from rvlr_lib.data import dataset, pictures
from rvlr_lib.data.pictures import FileSource, check_header, decode, equal_files, find_faults, safe_path

RED, GREY, WHITE = (200, 30, 40), (128, 128, 128), (255, 255, 255)


def near(picture, colour, tolerance=3):
    assert picture.mode == "RGB"
    values = np.asarray(picture).reshape(-1, 3).astype(int)
    assert np.abs(values - colour).max() <= tolerance


def write_png(path, width, height, bits, colour_type, rows):
    """Write a PNG of a kind that Pillow cannot write."""
    header = struct.pack(">2I5B", width, height, bits, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


LEAVING = {
    "climbs out": ("../secret.jpg", "a/../../secret.jpg", "..\\secret.jpg"),
    "absolute": ("/etc/passwd", "C:\\pictures\\a.jpg", "\\\\server\\a.jpg"),
    "no file can have": ("a\0.jpg", "é" * 128 + "/a.jpg"),
    "is a URL": ("https://example.org/a.jpg",),
    "empty name": ("  ", "."),
}


@pytest.mark.parametrize(("message", "name"), [(fault, name) for fault, names in LEAVING.items() for name in names])
def test_names_that_leave_the_root_are_refused(tmp_path, name, message, refuses):
    refuses(message, safe_path, tmp_path, name)


def test_links_out_of_the_root_are_refused_and_links_inside_are_not(tmp_path, refuses):
    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder in (root, outside):
        folder.mkdir()
        Image.new("RGB", (4, 4), RED).save(folder / "a.png")
    (root / "inner.png").symlink_to(root / "a.png")
    (root / "outer.png").symlink_to(outside / "a.png")
    (root / "folder").symlink_to(outside)
    near(decode(safe_path(root, "inner.png")), RED)
    for name in ("outer.png", "folder/a.png"):
        refuses("link that leads out", safe_path, root, name)
    source = FileSource(root, ["outer.png", "later.png"])
    (root / "later.png").symlink_to(outside / "a.png")
    for row in range(2):  # also while reading, and for a link made later
        refuses("link that leads out", source.image, row)
    (tmp_path / "linked").symlink_to(root)  # the root itself may be a link
    assert safe_path(tmp_path / "linked", "a.png").is_file()


PLAIN = Image.new("RGB", (8, 6), RED)
PICTURES = {  # file -> picture, options of saving, expected colour
    "plain.webp": (PLAIN, {"quality": 100}, RED),
    "plain.bmp": (PLAIN, {}, RED),
    **{f"cmyk.{kind}": (PLAIN.convert("CMYK"), {"quality": 100}, RED) for kind in ("jpg", "tif")},
    **{f"palette.{kind}": (PLAIN.convert("P", palette=Image.Palette.ADAPTIVE), {}, RED) for kind in ("gif", "png")},
    "opaque.png": (PLAIN.convert("RGBA"), {}, RED),
    "clear.png": (Image.new("RGBA", (8, 6)), {}, WHITE),
    "clear_grey.png": (Image.new("LA", (8, 6)), {}, WHITE),
    "clear_palette.png": (Image.new("P", (8, 6)), {"transparency": 0}, WHITE),
    **{f"wide.{kind}": (Image.fromarray(np.full((6, 8), 32896, np.uint16)), {}, GREY) for kind in ("png", "tif")},
}


@pytest.mark.parametrize("name", PICTURES)
def test_every_mode_becomes_the_right_colours(tmp_path, name):
    picture, options, colour = PICTURES[name]
    picture.save(tmp_path / name, **options)
    near(decode(tmp_path / name), colour, 6 if colour == RED else 0)
    assert check_header(tmp_path / name) == (8, 6)


def test_16_bit_colour_is_scaled_and_exif_rotation_applied(tmp_path):
    rows = np.full((4, 3 * 3), 32896, ">u2")
    write_png(tmp_path / "colour.png", 3, 4, 16, 2, b"".join(b"\0" + row.tobytes() for row in rows))
    near(decode(tmp_path / "colour.png"), GREY, 0)
    picture = Image.new("RGB", (20, 10), "blue")
    picture.paste(RED, (0, 0, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side: turn by 90 degrees clockwise
    picture.save(tmp_path / "turned.png", exif=exif)
    upright = decode(tmp_path / "turned.png")
    assert upright.size == (10, 20)
    near(upright.crop((0, 0, 10, 10)), RED)


def test_faulty_files_are_named_without_pillows_warning(tmp_path, recwarn):
    (tmp_path / "zero.jpg").touch()
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "program.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")  # for Ghostscript
    for kind in (np.float32, np.int32):
        Image.fromarray(np.ones((4, 4), kind)).save(tmp_path / f"{kind.__name__}.tif")
    for side in (10_000, 20_000):
        write_png(tmp_path / f"bomb{side}.png", side, side, 1, 0, b"\0" * (side * (side // 8 + 1)))
    messages = """zero.jpg: is empty, text.jpg: no known format, program.jpg: no known format, absent.jpg: is missing,
        float32.tif: floating-point, int32.tif: 32-bit, ZERO.jpg: but 'zero.jpg' is there, bomb10000.png: 10000 x 10000,
        bomb20000.png: more than 178""".split(",")
    messages = dict(message.strip().split(": ") for message in messages)
    errors = find_faults(decode, tmp_path, [*messages, "../x.jpg"])
    assert all(message in errors[name] and str(tmp_path / name) in errors[name] for name, message in messages.items())
    assert "climbs out" in errors["../x.jpg"]
    (tmp_path / "zero.jpg").rename(tmp_path / "Absent.jpg")  # the listing is not stale
    assert "but 'Absent.jpg' is there" in find_faults(decode, tmp_path, ["absent.jpg"])["absent.jpg"]
    (tmp_path / "Absent.jpg").rename(tmp_path / "zero.jpg")
    assert find_faults(check_header, tmp_path, list(messages)).keys() == messages.keys() - {"float32.tif", "int32.tif"}
    assert not recwarn.list


def test_equal_files_are_found_by_content_and_absent_ones_skipped(tmp_path):
    start = b"1" * 4999
    contents = {"a": start + b"1", "b": start + b"1", "c": start + b"2", "d": b"2" * 5000, "e": b"1", "f": b"2" * 5000}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    assert equal_files(tmp_path, [*contents, "absent"]) == [["a", "b"], ["d", "f"]]


def test_a_source_reads_lazily_and_keeps_what_fits(tmp_path, monkeypatch):
    names = [f"{i}.png" for i in range(3)]
    for i, name in enumerate(names):
        Image.new("RGB", (10 + i, 7), (i, 2 * i, 3 * i)).save(tmp_path / name)
    reads = []
    monkeypatch.setattr(pictures, "decode", lambda path: reads.append(path) or decode(path))
    for budget, expected in ((3 * 8 * 8 * 3, 3), (3 * 8 * 8 * 3 - 1, 4)):
        monkeypatch.setattr(dataset, "MEMORY_BUDGET", budget)
        source = FileSource(tmp_path, names)
        reads.clear()
        pixels = source.pixels([2, 0], 8)
        assert torch.equal(source.pixels(np.array([0, 2]), 8), pixels.flip(0))
        assert (pixels.dtype, pixels.shape) == (torch.uint8, (2, 3, 8, 8))
        assert pixels[:, :, 0, 0].tolist() == [[2, 4, 6], [0, 0, 0]]
        assert len(reads) == expected
    assert source.pixels([], 8).shape == (0, 3, 8, 8)
    assert source.content(1) == (tmp_path / "1.png").read_bytes()
