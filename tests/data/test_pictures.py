import io
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from rvlr_lib.data import dataset, pictures
from rvlr_lib.data.pictures import FileSource, check_header, check_name, decode, equal_files, faults, safe_path

RED = (200, 30, 40)


def near(picture, colour, tolerance=3):
    assert picture.mode == "RGB"
    values = np.asarray(picture).reshape(-1, 3).astype(int)
    assert np.abs(values - colour).max() <= tolerance


def write_png(path, width, height, bits, colour_type, rows):
    """Write a PNG that Pillow cannot write."""
    header = struct.pack(">2I5B", width, height, bits, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../secret.jpg", "climbs out"),
        ("a/../../secret.jpg", "climbs out"),
        ("..\\secret.jpg", "climbs out"),
        ("a\0.jpg", "climbs out"),
        ("/etc/passwd", "absolute"),
        ("C:\\pictures\\a.jpg", "absolute"),
        ("\\\\server\\a.jpg", "absolute"),
        ("https://example.org/a.jpg", "is an address"),
        ("  ", "empty name"),
        (".", "empty name"),
    ],
)
def test_names_that_leave_the_root_are_refused(tmp_path, name, message):
    for check in (check_name, lambda text: safe_path(tmp_path, text)):
        with pytest.raises(ValueError, match=message):
            check(name)


def test_links_out_of_the_root_are_refused_and_links_inside_are_not(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    for folder in (root, outside):
        Image.new("RGB", (4, 4), RED).save(folder / "a.png")
    (root / "inner.png").symlink_to(root / "a.png")
    (root / "outer.png").symlink_to(outside / "a.png")
    (root / "folder").symlink_to(outside)
    near(decode(safe_path(root, "inner.png")), RED)
    for name in ("outer.png", "folder/a.png"):
        with pytest.raises(ValueError, match="link that leads out"):
            safe_path(root, name)
    (tmp_path / "linked").symlink_to(root)  # the root itself may be a link
    assert safe_path(tmp_path / "linked", "a.png").is_file()


def test_every_mode_becomes_the_right_colours(tmp_path):
    plain = Image.new("RGB", (8, 6), RED)
    files = {
        "plain.png": plain,
        "cmyk.jpg": plain.convert("CMYK"),
        "cmyk.tif": plain.convert("CMYK"),
        "palette.gif": plain.convert("P", palette=Image.Palette.ADAPTIVE),
        "palette.png": plain.convert("P", palette=Image.Palette.ADAPTIVE),
        "opaque.png": plain.convert("RGBA"),
        "plain.webp": plain,
        "plain.bmp": plain,
    }
    for name, picture in files.items():
        picture.save(tmp_path / name, **({"quality": 100} if "." in name and not name.endswith("gif") else {}))
        near(decode(tmp_path / name), RED, 6)
        assert check_header(tmp_path / name) == (8, 6)


def test_16_bits_are_scaled_not_clipped(tmp_path):
    for name in ("grey.png", "grey.tif"):
        Image.fromarray(np.full((5, 4), 32896, np.uint16)).save(tmp_path / name)  # 128 of 255
        near(decode(tmp_path / name), (128, 128, 128), 0)
    rows = np.full((4, 3 * 3), 32896, ">u2")  # 16-bit colour, which Pillow cannot write
    write_png(tmp_path / "colour.png", 3, 4, 16, 2, b"".join(b"\0" + row.tobytes() for row in rows))
    near(decode(tmp_path / "colour.png"), (128, 128, 128), 0)


def test_transparency_lies_on_white(tmp_path):
    clear = Image.new("RGBA", (6, 6), (0, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    Image.new("LA", (6, 6), (0, 0)).save(tmp_path / "grey.png")
    Image.new("P", (6, 6), 0).save(tmp_path / "palette.png", transparency=0)
    for name in ("clear.png", "grey.png", "palette.png"):
        near(decode(tmp_path / name), (255, 255, 255), 0)


def test_exif_rotation_is_applied(tmp_path):
    picture = Image.new("RGB", (20, 10), "blue")
    picture.paste(RED, (0, 0, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side: turn by 90 degrees clockwise
    picture.save(tmp_path / "turned.png", exif=exif)
    upright = decode(tmp_path / "turned.png")
    assert upright.size == (10, 20)
    near(upright.crop((0, 0, 10, 10)), RED)


def test_faulty_files_are_named(tmp_path, monkeypatch):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for name in ("short.jpg", "short.png"):
        noise.save(tmp_path / name)
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        check_header(tmp_path / name)  # a header alone cannot tell
        with pytest.raises(ValueError, match=rf"{name.replace('.', '[.]')} is damaged or truncated"):
            decode(tmp_path / name)
    (tmp_path / "zero.jpg").touch()
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "program.jpg").write_text(
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
    )  # would start Ghostscript
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "float.tif")
    messages = {
        "zero.jpg": "is empty",
        "text.jpg": "none of a known kind",
        "program.jpg": "none of a known kind",
        "absent.jpg": "is missing",
        "float.tif": "floating-point",
    }
    for name, message in messages.items():
        with pytest.raises(ValueError, match=message) as error:
            decode(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)
        assert message in faults(decode, tmp_path, [name])[name]
    assert "climbs out" in faults(decode, tmp_path, ["../x.jpg"])["../x.jpg"]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("side", "message"), [(10_000, "10000 x 10000"), (20_000, "more than 178,956,970")])
def test_decompression_bombs_are_refused_before_they_are_decoded(tmp_path, side, message):
    write_png(tmp_path / "bomb.png", side, side, 1, 0, b"\0" * (side * (side // 8 + 1)))
    assert (tmp_path / "bomb.png").stat().st_size < 100_000
    for look in (decode, check_header):
        with pytest.raises(ValueError, match=message):
            look(tmp_path / "bomb.png")


def test_equal_files_are_found_by_content_and_absent_ones_passed_over(tmp_path):
    contents = {
        "a": b"1" * 5000,
        "b": b"1" * 5000,
        "c": b"1" * 4999 + b"2",
        "d": b"2" * 5000,
        "e": b"1",
        "f": b"2" * 5000,
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    assert equal_files(tmp_path, [*contents, "absent"]) == [["a", "b"], ["d", "f"]]


def test_faults_of_many_files_come_without_pillows_warning(tmp_path, recwarn):
    write_png(tmp_path / "bomb.png", 10_000, 10_000, 1, 0, b"\0" * (10_000 * 1251))
    assert "make it smaller" in faults(decode, tmp_path, ["bomb.png"])["bomb.png"]
    assert not recwarn.list


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
        found = source.pixels([2, 0], 8)
        assert torch.equal(source.pixels(np.array([0, 2]), 8), found.flip(0))
        assert (found.dtype, found.shape) == (torch.uint8, (2, 3, 8, 8))
        assert found[:, :, 0, 0].tolist() == [[2, 4, 6], [0, 0, 0]]
        assert len(reads) == expected
    assert source.pixels([], 8).shape == (0, 3, 8, 8)
    assert source.content(1) == (tmp_path / "1.png").read_bytes()


def test_a_link_made_later_is_refused_when_read(tmp_path):
    (tmp_path / "root").mkdir()
    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, "PNG")
    (tmp_path / "out.png").write_bytes(stream.getvalue())
    source = FileSource(tmp_path / "root", ["a.png"])
    os.symlink(tmp_path / "out.png", tmp_path / "root" / "a.png")
    with pytest.raises(ValueError, match="link that leads out"):
        source.image(0)
