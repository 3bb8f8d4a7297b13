"""The default reader gives every format whole: values, depth, channels, pages and frames.

What is expected is what was written, by `written_images`, tifffile or Pillow's lossless
modes; JPEG alone is compared with OpenCV.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import PIL.Image
import pytest
import tifffile

from converter import H5Folder, read_image
from converter.errors import UnreadableError
from converter.images import formats, others
from helpers.check import assert_refused, failures, stored
from helpers.run import ROOT, Finished, command, run, write_functions
from helpers.written_images import apng, bmp, gif, png, png_chunk, tga

H, W = 11, 13


def noise(shape: tuple[int, ...], most: int = 255, seed: int = 0) -> np.ndarray:
    dtype = np.uint8 if most < 256 else np.uint16
    return np.random.default_rng(seed).integers(0, most + 1, shape).astype(dtype)


def check(array: np.ndarray, expected: np.ndarray) -> None:
    """Compare dtype, shape and values; bool by truth."""
    assert array.shape == expected.shape
    if expected.dtype == bool:
        assert np.array_equal(array != 0, expected)
        return
    assert array.dtype == expected.dtype
    np.testing.assert_array_equal(array, expected)


def read(data: bytes, name: str, folder: Path) -> np.ndarray:
    path = folder / name
    path.write_bytes(data)
    return read_image(path)


# PNG

PNG_KINDS = [
    (0, 1),
    (0, 2),
    (0, 4),
    (0, 8),
    (0, 16),
    (2, 8),
    (2, 16),
    (4, 8),
    (4, 16),
    (6, 8),
    (6, 16),
]
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def as_read(samples: np.ndarray, depth: int) -> np.ndarray:
    """Return what PNG samples become: gray of few bits is scaled to 0..255."""
    if depth < 8:
        samples = samples * (255 // (2**depth - 1))
    samples = samples.astype(np.uint16 if depth == 16 else np.uint8)
    return samples[..., 0] if samples.shape[2] == 1 else samples


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("colour_type", "depth"), PNG_KINDS)
def test_a_png_of_any_type_and_depth_is_whole(colour_type, depth, interlaced, tmp_path):
    samples = noise((H, W, CHANNELS[colour_type]), 2**depth - 1)
    array = read(png(samples, colour_type, depth, interlaced=interlaced), "a.png", tmp_path)
    expected = as_read(samples, depth)
    check(array, expected != 0 if depth == 1 else expected)


@pytest.mark.parametrize(
    ("colour_type", "depth"), [kind for kind in PNG_KINDS if kind[0] in (0, 2)]
)
def test_the_colour_key_of_a_png_becomes_alpha(colour_type, depth, tmp_path):
    samples = noise((H, W, CHANNELS[colour_type]), 2**depth - 1)
    key = samples[3, 4]
    data = png(samples, colour_type, depth, trns=key.astype(">u2").tobytes())
    most = 65535 if depth == 16 else 255
    alpha = np.where((samples == key).all(axis=2), 0, most)
    colours = as_read(samples, depth)
    expected = np.dstack((colours, alpha.astype(colours.dtype)))
    assert expected.shape[2] in (2, 4)
    check(read(data, "a.png", tmp_path), expected)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("has_alpha", [False, True])
def test_the_palette_of_a_png_is_expanded_with_its_alpha(depth, has_alpha, tmp_path):
    indices, table = noise((H, W, 1), 2**depth - 1), noise((2**depth, 3), seed=1)
    alpha = noise((2**depth, 1), seed=2)
    alpha[-1] = 255
    trns = alpha[:-1].tobytes() if has_alpha else b""
    data = png(indices, 3, depth, palette=table.tobytes(), trns=trns)
    colours = np.concatenate((table, alpha), axis=1) if has_alpha else table
    check(read(data, "a.png", tmp_path), colours[indices[..., 0]])


def over(below: np.ndarray, above: np.ndarray, most: int) -> np.ndarray:
    """Draw RGBA over RGBA, as APNG's reference does."""
    above, below = above.astype(object), below.astype(object)
    u, v = above[..., 3:] * most, (most - above[..., 3:]) * below[..., 3:]
    total = u + v
    colours = (above[..., :3] * u + below[..., :3] * v) // np.where(total == 0, 1, total)
    return np.concatenate((np.where(u == 0, below[..., :3], colours), total // most), axis=-1)


@pytest.mark.parametrize("depth", [8, 16])
def test_the_frames_of_an_apng_are_composed(depth, tmp_path):
    most = 2**depth - 1
    first, second, third, fourth = (
        noise(shape, most, seed)
        for seed, shape in enumerate(((H, W, 4), (5, 6, 4), (4, 3, 4), (H, W, 4)))
    )
    frames = [(first, 0, 0, 0, 0), (second, 2, 3, 1, 1), (third, 6, 1, 2, 0), (fourth, 0, 0, 0, 1)]
    canvas = first.astype(object)
    expected = [canvas.copy()]
    canvas[2:7, 3:9] = over(canvas[2:7, 3:9], second, most)
    expected.append(canvas.copy())
    canvas[2:7, 3:9] = 0
    before = canvas.copy()
    canvas[6:10, 1:4] = third
    expected.append(canvas.copy())
    expected.append(over(before, fourth, most))
    array = read(apng(frames, (H, W), 6, depth), "a.png", tmp_path)
    check(array, np.array(expected).astype(first.dtype))


@pytest.mark.parametrize(("colour_type", "depth"), [kind for kind in PNG_KINDS if kind[1] > 1])
def test_an_apng_of_any_type_has_all_frames(colour_type, depth, tmp_path):
    shape, most = (H, W, CHANNELS[colour_type]), 2**depth - 1
    arrays = [noise(shape, most, seed) for seed in range(3)]
    frames = [(array, 0, 0, 0, 0) for array in arrays]
    expected = np.stack([as_read(array, depth) for array in arrays])
    check(read(apng(frames, (H, W), colour_type, depth), "a.png", tmp_path), expected)


def test_the_still_of_an_apng_comes_before_its_frames(tmp_path):
    arrays = [noise((H, W, 3), seed=seed) for seed in range(3)]
    frames = [(array, 0, 0, 0, 0) for array in arrays[1:]]
    data = apng(frames, (H, W), 2, 8, still=arrays[0])
    check(read(data, "a.png", tmp_path), np.stack(arrays))


def test_an_apng_with_fewer_frames_than_it_says_is_a_failure(tmp_path):
    frames = [(noise((H, W, 3), seed=seed), 0, 0, 0, 0) for seed in range(3)]
    data = apng(frames, (H, W), 2, 8)
    cut = data[: data.rindex(b"fcTL") - 4] + png_chunk(b"IEND", b"")
    with pytest.raises(UnreadableError, match="3 frames and holds 2"):
        read(cut, "a.png", tmp_path)


def test_a_png_of_an_iphone_app_is_a_failure_with_the_cure(tmp_path):
    data = png(noise((H, W, 4)), 6, 8)
    changed = data[:8] + png_chunk(b"CgBI", b"P\0 \2") + data[8:]
    with pytest.raises(UnreadableError, match="pngcrush"):
        read(changed, "a.png", tmp_path)


# GIF

TABLE = noise((256, 3), seed=7)
RAMP = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)


def test_the_frames_of_a_gif_are_composed_with_their_own_palettes(tmp_path):
    first, second, third = noise((H, W)), noise((5, 6), seed=1), noise((4, 3), seed=2)
    own = noise((256, 3), seed=8)
    second[0] = 9
    frames = [(first, 0, 0, 1, None), (second, 2, 3, 3, 9), (third, 6, 1, 0, None)]
    data = gif(frames, (H, W), TABLE, tables=[None, own, None])
    expected = np.repeat(TABLE[first][None], 3, axis=0)
    expected[1, 2:7, 3:9] = np.where((second == 9)[..., None], expected[1, 2:7, 3:9], own[second])
    expected[2, 6:10, 1:4] = TABLE[third]
    check(read(data, "a.gif", tmp_path), expected)


def test_a_gif_is_cleared_to_transparency_where_it_has_any(tmp_path):
    first, second = noise((H, W)), noise((2, 2), seed=1)
    first[first == 5] = 6
    data = gif([(first, 0, 0, 2, 5), (second, 1, 1, 0, None)], (H, W), TABLE)
    expected = np.zeros((2, H, W, 4), np.uint8)
    expected[0] = np.dstack((TABLE[first], np.full((H, W), 255)))
    expected[1, 1:3, 1:3] = np.dstack((TABLE[second], np.full((2, 2), 255)))
    check(read(data, "a.gif", tmp_path), expected)


def test_a_gif_is_cleared_to_its_background_where_nothing_is_transparent(tmp_path):
    first, second = noise((H, W)), noise((2, 2), seed=1)
    frames = [(first, 0, 0, 2, None), (second, 1, 1, 0, None)]
    expected = np.stack((TABLE[first], np.broadcast_to(TABLE[17], (H, W, 3))))
    expected[1, 1:3, 1:3] = TABLE[second]
    check(read(gif(frames, (H, W), TABLE, background=17), "a.gif", tmp_path), expected)


@pytest.mark.parametrize("count", [1, 3])
def test_a_gif_of_grays_stays_gray(count, tmp_path):
    arrays = np.stack([noise((H, W), seed=seed) for seed in range(count)])
    data = gif([(array, 0, 0, 0, None) for array in arrays], (H, W), RAMP)
    check(read(data, "a.gif", tmp_path), arrays)


def test_the_transparency_of_a_still_gif_is_kept(tmp_path):
    indices = noise((H, W))
    data = gif([(indices, 0, 0, 0, int(indices[2, 3]))], (H, W), TABLE)
    alpha = np.where(indices == indices[2, 3], 0, 255).astype(np.uint8)
    array = read(data, "a.gif", tmp_path)
    assert array.shape == (1, H, W, 4)
    check(array[0, ..., 3], alpha)
    check(array[0][alpha == 255][:, :3], TABLE[indices[alpha == 255]])


def test_an_interlaced_gif_has_its_rows_in_order(tmp_path):
    arrays = [noise((H, W)), noise((5, 6), seed=1)]
    frames = [(arrays[0], 0, 0, 0, None), (arrays[1], 2, 3, 0, None)]
    expected = np.stack((TABLE[arrays[0]], TABLE[arrays[0]]))
    expected[1, 2:7, 3:9] = TABLE[arrays[1]]
    check(read(gif(frames, (H, W), TABLE, interlaced=True), "a.gif", tmp_path), expected)


def test_a_gif_with_a_frame_beyond_its_screen_grows(tmp_path):
    arrays = [noise((H, W)), noise((5, 6), seed=1)]
    frames = [(arrays[0], 0, 0, 0, None), (arrays[1], H - 1, W - 1, 0, None)]
    array = read(gif(frames, (H, W), TABLE, background=3), "a.gif", tmp_path)
    assert array.shape == (2, H + 4, W + 5, 3)
    check(array[0, :H, :W], TABLE[arrays[0]])
    check(array[1, H - 1 :, W - 1 :], TABLE[arrays[1]])
    assert (array[:, H + 4 - 1, 0] == TABLE[3]).all()


@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_a_truncated_gif_is_a_failure(part, tmp_path):
    data = gif([(noise((H, W), seed=n), 0, 0, 0, None) for n in range(4)], (H, W), TABLE)
    with pytest.raises(UnreadableError, match="GIF"):
        read(data[: int(len(data) * part)], "a.gif", tmp_path)


# WebP, BMP, TGA


def webp(frames: np.ndarray) -> bytes:
    file, images = io.BytesIO(), [PIL.Image.fromarray(frame) for frame in frames]
    images[0].save(file, "WEBP", save_all=True, append_images=images[1:], lossless=True, exact=True)
    return file.getvalue()


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("count", [1, 5])
def test_a_webp_has_all_frames(count, channels, tmp_path):
    frames = np.stack([noise((H, W, channels), seed=seed) for seed in range(count)])
    if channels == 4:
        frames[..., 3] = np.where(frames[..., 3] > 99, 255, 0)  # none that is mixed with another
        frames[frames[..., 3] == 0] = 0
    array = read(webp(frames), "a.webp", tmp_path)
    check(array, frames if count > 1 else frames[0])


def test_half_an_animated_webp_is_a_failure(tmp_path):
    data = webp(np.stack([noise((60, 70, 3), seed=seed) for seed in range(5)]))
    with pytest.raises((UnreadableError, OSError, EOFError)):
        read(data[: len(data) // 2], "a.webp", tmp_path)


def bmp_rows(lines: np.ndarray) -> bytes:
    """Return rows from the lowest, padded to 4 bytes."""
    lines = lines.reshape(len(lines), -1)
    return np.pad(lines, ((0, 0), (0, -lines.shape[1] % 4)))[::-1].tobytes()


def bmp_table(table: np.ndarray) -> bytes:
    return np.pad(table[:, ::-1], ((0, 0), (0, 1))).tobytes()


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_the_palette_of_a_bmp_is_expanded(bits, tmp_path):
    table, indices = noise((2**bits, 3), seed=3), noise((H, W), 2**bits - 1)
    lines = np.packbits(
        np.unpackbits(indices[..., None], axis=2)[..., 8 - bits :].reshape(H, -1), axis=1
    )
    data = bmp(bmp_rows(lines), W, H, bits, table=bmp_table(table))
    check(read(data, "a.bmp", tmp_path), table[indices])


def test_a_bmp_of_24_and_32_bits_and_of_rows_from_the_top(tmp_path):
    colours = noise((H, W, 3))
    lines = np.dstack((colours[..., ::-1], np.full((H, W), 0, np.uint8)))
    check(read(bmp(bmp_rows(colours[..., ::-1]), W, H, 24), "a.bmp", tmp_path), colours)
    check(read(bmp(bmp_rows(lines), W, H, 32), "b.bmp", tmp_path), colours)
    check(read(bmp(bmp_rows(lines[::-1]), W, -H, 32), "c.bmp", tmp_path), colours)


def test_a_bmp_with_values_in_the_byte_that_is_not_used_is_a_failure(tmp_path):
    with pytest.raises(UnreadableError, match="fourth channel"):
        read(bmp(bmp_rows(noise((H, W, 4))), W, H, 32), "a.bmp", tmp_path)


def test_a_bmp_of_16_bits_has_its_five_bits_scaled(tmp_path):
    samples = noise((H, W, 3), 31).astype(np.uint16)
    lines = samples[..., 0] << 10 | samples[..., 1] << 5 | samples[..., 2]
    data = bmp(bmp_rows(lines.astype("<u2").view(np.uint8)), W, H, 16)
    array = read(data, "a.bmp", tmp_path)
    check(array, (samples * 255 // 31).astype(np.uint8))


@pytest.mark.parametrize("flags", [0x00, 0x20])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_tga_is_whole_from_either_end(channels, flags, tmp_path):
    array = noise((H, W) if channels == 1 else (H, W, channels))
    lines = array if channels == 1 else array[..., [2, 1, 0, 3][:channels]]
    pixels = (lines if flags else lines[::-1]).tobytes()
    alpha = 8 if channels == 4 else 0
    data = tga(pixels, W, H, 8 * channels, 3 if channels == 1 else 2, flags=flags | alpha)
    check(read(data, "a.tga", tmp_path), array)


@pytest.mark.parametrize("kind", [2, 10])
def test_a_tga_of_16_bits_a_colour_is_a_failure_with_the_cure(kind, tmp_path):
    data = tga(bytes(2 * H * W), W, H, 16, kind)
    with pytest.raises(UnreadableError, match=r"16 bits.*my_read"):
        read(data, "a.tga", tmp_path)


def test_the_palette_of_a_tga_is_expanded(tmp_path):
    table, indices = noise((256, 3), seed=4), noise((H, W))
    data = tga(indices.tobytes(), W, H, 8, 1, flags=0x20, table=table[:, ::-1].tobytes())
    check(read(data, "a.tga", tmp_path), table[indices])


# PNM


@pytest.mark.parametrize("most", [1, 100, 255, 256, 1023, 65535])
@pytest.mark.parametrize("kind", [2, 3, 5, 6, 7])
def test_a_pnm_has_its_values_as_they_are_written(kind, most, tmp_path):
    shape = {3: (H, W, 3), 6: (H, W, 3), 7: (H, W, 4)}.get(kind, (H, W))
    array = noise(shape, most)
    if kind == 7:
        head = f"P7\nWIDTH {W}\nHEIGHT {H}\nDEPTH 4\nMAXVAL {most}\nTUPLTYPE RGB_ALPHA\nENDHDR\n"
    else:
        head = f"P{kind}\n# made by hand\n{W} {H}\n{most}\n"
    if kind in (2, 3):
        body = " ".join(str(value) for value in array.ravel()).encode()
    else:
        body = array.astype(">u2" if most > 255 else np.uint8).tobytes()
    check(read(head.encode() + body, "a.pnm", tmp_path), array)


@pytest.mark.parametrize("kind", [1, 4])
def test_a_bitmap_is_true_where_it_is_white(kind, tmp_path):
    black = noise((H, W), 1)
    body = np.packbits(black, axis=1).tobytes()
    if kind == 1:
        body = "\n".join("".join(str(bit) for bit in row) for row in black).encode()
    check(read(f"P{kind} {W} {H}\n".encode() + body, "a.pbm", tmp_path), black == 0)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_pfm_has_its_floats_the_first_row_on_top(channels, sign, tmp_path):
    array = np.random.default_rng(0).normal(0, 1e5, (H, W, channels)).astype(np.float32)
    array = array if channels == 3 else array[..., 0]
    head = f"{'PF' if channels == 3 else 'Pf'}\n{W} {H}\n{sign}.0\n".encode()
    data = head + array[::-1].astype("<f4" if sign < 0 else ">f4").tobytes()
    check(read(data, "a.pfm", tmp_path), array)


def test_a_pfm_with_a_scale_is_a_failure_with_the_cure(tmp_path):
    data = f"Pf\n{W} {H}\n-0.5\n".encode() + bytes(4 * H * W)
    with pytest.raises(UnreadableError, match=r"scale of 0.5.*my_read"):
        read(data, "a.pfm", tmp_path)


def test_several_images_in_a_pnm_are_all_there_or_a_failure(tmp_path):
    arrays = np.stack([noise((H, W), seed=seed) for seed in range(3)])
    parts = [f"P5 {W} {H} 255\n".encode() + array.tobytes() for array in arrays]
    check(read(b"".join(parts), "a.pgm", tmp_path), arrays)
    with pytest.raises(UnreadableError, match="4 images of different"):
        read(b"".join(parts) + b"P5 1 1 255\n\0", "b.pgm", tmp_path)


def test_a_truncated_pnm_is_a_failure(tmp_path):
    for head in (b"P5 13 11 255\n", b"P2 13 11 255\n", b"P4 13 11\n", b"Pf\n13 11\n-1\n"):
        with pytest.raises(UnreadableError, match="truncated"):
            read(head + b"1 2 3", "a.pnm", tmp_path)


# TIFF

DTYPES = ["u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8", "c8"]


def values(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    bits = np.random.default_rng(1).normal(0, 90, shape)
    return bits.astype(dtype) if dtype[0] in "fci" else abs(bits).astype(dtype)


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tiff_has_its_depth(dtype, byteorder, tmp_path):
    array, path = values((H, W), dtype), tmp_path / "a.tif"
    tifffile.imwrite(path, array, photometric="minisblack", byteorder=byteorder)
    check(read_image(path), array)


TIFF_KINDS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "rgb": ((H, W, 3), {"photometric": "rgb"}),
    "planar": ((3, H, W), {"photometric": "rgb", "planarconfig": "separate"}),
    "alpha": ((H, W, 4), {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
    "premultiplied": ((H, W, 4), {"photometric": "rgb", "extrasamples": ["assocalpha"]}),
    "gray alpha": (
        (H, W, 2),
        {"photometric": "minisblack", "extrasamples": ["unassalpha"], "planarconfig": "contig"},
    ),
    "min is white": ((H, W), {"photometric": "miniswhite"}),
    "cmyk": ((H, W, 4), {"photometric": "separated"}),
    "tiles": ((64, 80), {"tile": (16, 32), "photometric": "minisblack"}),
    "strips": ((64, 80), {"rowsperstrip": 5, "photometric": "minisblack"}),
    "big": ((H, W), {"bigtiff": True, "photometric": "minisblack"}),
    "deflate": ((H, W), {"compression": "zlib", "predictor": True, "photometric": "minisblack"}),
    "pages": ((5, H, W), {"photometric": "minisblack"}),
    "pages without metadata": ((5, H, W), {"photometric": "minisblack", "metadata": None}),
    "pages of colours": ((5, H, W, 3), {"photometric": "rgb"}),
    "volume": ((2, 3, H, W), {"photometric": "minisblack"}),
    "imagej": ((2, 3, H, W), {"imagej": True, "metadata": {"axes": "TZYX"}}),
    "ome": ((2, 3, H, W), {"ome": True, "metadata": {"axes": "TCYX"}, "photometric": "minisblack"}),
}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("kind", TIFF_KINDS)
def test_a_tiff_of_any_kind_is_as_it_was_written(kind, dtype, tmp_path):
    shape, options = TIFF_KINDS[kind]
    array, path = noise(shape, 255 if dtype == np.uint8 else 65535), tmp_path / "a.tif"
    tifffile.imwrite(path, array, **options)
    check(read_image(path), array)


def test_a_tiff_of_one_bit_and_one_of_a_palette(tmp_path):
    bits = noise((H, W), 1) != 0
    tifffile.imwrite(tmp_path / "bits.tif", bits)
    check(read_image(tmp_path / "bits.tif"), bits)
    indices, colours = noise((H, W)), noise((3, 256), 65535, seed=1)
    tifffile.imwrite(tmp_path / "palette.tif", indices, photometric="palette", colormap=colours)
    check(read_image(tmp_path / "palette.tif"), indices)


def append_pages(path: Path, arrays: list[np.ndarray], **options: Any) -> None:
    for array in arrays:
        tifffile.imwrite(path, array, append=path.exists(), photometric="minisblack", **options)


def test_pages_in_several_series_are_all_there(tmp_path):
    video = noise((20, H, W), 65535)
    append_pages(tmp_path / "stacks.tif", list(video.reshape(4, 5, H, W)))
    check(read_image(tmp_path / "stacks.tif"), video)
    append_pages(tmp_path / "single.tif", list(video[:4]))
    check(read_image(tmp_path / "single.tif"), video[:4])
    append_pages(tmp_path / "plain.tif", list(video[:4]), metadata=None)
    check(read_image(tmp_path / "plain.tif"), video[:4])


@pytest.mark.parametrize(
    "other", [noise((H + 1, W)), noise((H, W), 65535), noise((2, 3, H, W + 2))]
)
def test_pages_that_differ_are_a_failure_with_the_cure(other, tmp_path):
    append_pages(tmp_path / "a.tif", [noise((H, W)), noise((H, W), seed=1), other])
    with pytest.raises(UnreadableError, match=r"pages differ.*import tifffile"):
        read_image(tmp_path / "a.tif")


def test_smaller_copies_are_left_out_of_a_tiff_and_counted(folder, output, convert):
    picture = noise((64, 80))
    for name, options in {"below.tif": {"subifds": 1}, "behind.tif": {}}.items():
        with tifffile.TiffWriter(folder / name) as file:
            file.write(picture, photometric="minisblack", **options)
            file.write(picture[::2, ::2], photometric="minisblack", subfiletype=1)
    ended = convert(folder, output, "--ext=tif")
    assert ended.status == 0, ended.err
    for array in stored(output).values():
        check(array, picture)
    assert "2 TIFFs with smaller copies" in ended.out


def write_raw(path: Path, **options: Any) -> None:
    with tifffile.TiffWriter(path) as file:
        thumbnail = np.full((6, 8, 3), 9, np.uint8)
        first = {"photometric": "rgb", "metadata": None, **options}
        file.write(thumbnail, subifds=1, **first)
        file.write(
            noise((60, 80), 65535), photometric=first.pop("below", "minisblack"), metadata=None
        )


def test_a_picture_below_a_thumbnail_is_a_failure_with_the_cure(tmp_path):
    write_raw(tmp_path / "unflagged.tif")
    write_raw(tmp_path / "flagged.tif", subfiletype=1)
    with tifffile.TiffWriter(tmp_path / "behind.tif") as file:
        file.write(noise((6, 8)), photometric="minisblack", subfiletype=1)
        file.write(noise((60, 80)), photometric="minisblack")
    with tifffile.TiffWriter(tmp_path / "cfa.tif") as file:
        tags = [(33421, "H", 2, (2, 2)), (33422, "B", 4, bytes([0, 1, 1, 2]))]
        file.write(noise((60, 80), 65535), photometric="cfa", extratags=tags, metadata=None)
    tifffile.imwrite(
        tmp_path / "dng.tif", noise((H, W)), extratags=[(50706, "B", 4, bytes([1, 4, 0, 0]))]
    )
    for name in ("unflagged", "flagged", "behind", "cfa", "dng"):
        with pytest.raises(UnreadableError, match="rawpy"):
            read_image(tmp_path / f"{name}.tif")


def test_another_picture_below_the_first_page_is_a_failure(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(noise((H, W)), photometric="minisblack", subifds=1)
        file.write(noise((H, W), seed=1), photometric="minisblack")
    with pytest.raises(UnreadableError, match="another picture below"):
        read_image(tmp_path / "a.tif")


def test_a_scale_or_an_offset_in_the_header_of_a_tiff_is_a_failure_with_the_cure(tmp_path):
    text = '<GDALMetadata><Item name="SCALE" sample="0" role="scale">0.25</Item></GDALMetadata>'
    tifffile.imwrite(
        tmp_path / "gdal.tif", noise((H, W)), extratags=[(42112, "s", 0, text)], metadata=None
    )
    with pytest.raises(UnreadableError, match=r"tifffile.imread\(path\) \* 0.25"):
        read_image(tmp_path / "gdal.tif")
    signed = {"cf": 0, "c0": -32768.0, "c1": 1.0}  # as ImageJ writes int16
    tifffile.imwrite(tmp_path / "imagej.tif", noise((H, W), 65535), imagej=True, metadata=signed)
    with pytest.raises(UnreadableError, match="-32768"):
        read_image(tmp_path / "imagej.tif")


def test_a_tiff_that_was_cut_between_its_pages_is_a_failure(tmp_path):
    path = tmp_path / "a.tif"
    append_pages(path, [noise((H, W), seed=seed) for seed in range(4)], metadata=None)
    with tifffile.TiffFile(path) as file:
        last = file.pages[3].offset
    path.write_bytes(path.read_bytes()[: last + 1])
    with pytest.raises(UnreadableError, match="truncated"):
        read_image(path)


# JPEG


def test_jpegs_are_those_of_opencv_but_for_rounding(tmp_path):
    cv2 = pytest.importorskip("cv2")
    smooth = np.indices((64, 80)).sum(0)[..., None] + np.array([0, 40, 90])
    for name, options in {
        "a.jpg": {},
        "b.jpg": {"progressive": True},
        "c.jpg": {"subsampling": 0},
    }.items():
        PIL.Image.fromarray(smooth.astype(np.uint8)).save(tmp_path / name, quality=95, **options)
        found = read_image(tmp_path / name).astype(int)
        expected = cv2.imread(str(tmp_path / name))[:, :, ::-1]
        assert found.shape == (64, 80, 3)
        assert abs(found - expected).max() <= 2
    PIL.Image.fromarray(smooth[..., 0].astype(np.uint8)).save(tmp_path / "gray.jpg", quality=95)
    assert read_image(tmp_path / "gray.jpg").shape == (64, 80)


def test_a_cmyk_jpeg_has_its_four_channels(tmp_path):
    inks = np.full((32, 40, 4), (10, 80, 160, 240), np.uint8)
    PIL.Image.fromarray(inks, "CMYK").save(tmp_path / "a.jpg", quality=100)
    array = read_image(tmp_path / "a.jpg")
    assert array.shape == inks.shape
    assert abs(array.astype(int) - inks).max() <= 2


def test_a_jpeg_of_12_bits_is_a_failure_with_the_cure(tmp_path):
    file = io.BytesIO()
    PIL.Image.fromarray(noise((H, W))).save(file, "JPEG")
    data = bytearray(file.getvalue())
    data[data.index(b"\xff\xc0") + 4] = 12
    with pytest.raises(UnreadableError, match=r"12 bits.*imagecodecs"):
        read(bytes(data), "a.jpg", tmp_path)


def test_the_first_picture_of_a_multi_picture_jpeg_is_counted(folder, output, convert):
    pictures = [PIL.Image.fromarray(noise((H, W, 3), seed=seed)) for seed in range(2)]
    pictures[0].save(folder / "a.jpg", "MPO", save_all=True, append_images=pictures[1:])
    ended = convert(folder, output)
    assert stored(output)["a.jpg"].shape == (H, W, 3)
    assert "1 JPEGs with several pictures (MPF), of which the first is stored" in ended.out


# The contents decide


def save_as(kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(noise((H, W, 3))).save(file, kind, **options)
    return file.getvalue()


LOSSLESS: dict[str, Callable[[], bytes]] = {
    "webp": lambda: save_as("WEBP", lossless=True),
    "png": lambda: save_as("PNG"),
    "bmp": lambda: save_as("BMP"),
    "ppm": lambda: save_as("PPM"),
    "tif": lambda: save_as("TIFF"),
}


@pytest.mark.parametrize("extension", ["jpg", "png", "tif", "gif", "bmp", "tga", "pgm", "webp"])
@pytest.mark.parametrize("kind", LOSSLESS)
def test_a_file_is_what_its_contents_are_whatever_it_is_called(kind, extension, tmp_path):
    check(read(LOSSLESS[kind](), f"a.{extension}", tmp_path), noise((H, W, 3)))


FITS = b"SIMPLE  =                    T" + b" " * 2850 + bytes(2880)
FOREIGN = {
    "FITS": (FITS, "astropy"),
    "DICOM": (bytes(128) + b"DICM" + bytes(300), "pydicom"),
    "OpenEXR": (b"\x76\x2f\x31\x01" + bytes(300), "OpenEXR"),
    "CR2": (b"II*\0\x10\0\0\0CR\x02\0" + bytes(300), "rawpy"),
    "RAF": (b"FUJIFILMCCD-RAW 0201" + bytes(300), "rawpy"),
    "HEIF": (b"\0\0\0\x18ftypheic" + bytes(300), "pillow-heif"),
    "JPEG 2000": (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(300), "imagecodecs"),
    "NIfTI": (bytes(344) + b"n+1\0" + bytes(300), "nibabel"),
    "MP4": (b"\0\0\0\x18ftypisom" + bytes(300), "imageio"),
    "NRRD": (b"NRRD0004\n" + bytes(300), "SimpleITK"),
}


@pytest.mark.parametrize("extension", ["png", "jpg", "tif"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_another_format_under_the_name_of_an_image_is_a_failure_with_the_cure(
    kind, extension, tmp_path
):
    data, package = FOREIGN[kind]
    with pytest.raises(UnreadableError, match=rf"my_read.*pip install {package}"):
        read(data, f"a.{extension}", tmp_path)


TRUNCATED: dict[str, Callable[[], bytes]] = {
    "a.png": lambda: png(noise((H, W, 3)), 2, 8),
    "deep.png": lambda: png(noise((H, W, 3), 65535), 2, 16),
    "frames.png": lambda: apng(
        [(noise((H, W, 3), seed=n), 0, 0, 0, 0) for n in range(3)], (H, W), 2, 8
    ),
    "a.gif": lambda: gif([(noise((H, W), seed=n), 0, 0, 0, None) for n in range(3)], (H, W), TABLE),
    "a.webp": lambda: webp(np.stack([noise((H, W, 3), seed=n) for n in range(3)])),
    "a.bmp": lambda: save_as("BMP"),
    "a.tga": lambda: save_as("TGA"),
    "a.tif": lambda: save_as("TIFF"),
    "a.ppm": lambda: save_as("PPM"),
    "a.jpg": lambda: save_as("JPEG"),
}


@pytest.mark.parametrize("name", TRUNCATED)
def test_a_file_cut_anywhere_is_a_failure_or_still_whole(name, tmp_path):
    data = TRUNCATED[name]()
    whole = read(data, name, tmp_path)
    for end in {*range(0, len(data), 1 + len(data) // 60), *range(len(data) - 20, len(data))}:
        try:
            array = read(data[:end], name, tmp_path)
        except Exception:
            continue
        check(array, whole)


# Extensions that cannot be read


def test_an_extension_with_a_typo_is_told_what_it_may_have_meant(folder, output, convert):
    ended = convert(folder, output, "--ext=png,jpgg")
    assert_refused(ended, "--ext=jpgg", "did you mean --ext=jpg?")


@pytest.mark.parametrize(
    ("ext", "word"),
    [
        ("fits", "astropy"),
        ("cr2", "rawpy"),
        ("jpg,.NEF", "rawpy"),
        ("mp4", "imageio"),
        ("dcm", "pydicom"),
        ("exr", "OpenEXR"),
        ("jp2", "imagecodecs"),
        ("npy", "numpy.load"),
        ("png,nii.gz", "--custom_read_func"),
        ("xyz", "--custom_read_func"),
    ],
)
def test_an_extension_that_is_not_read_is_refused_with_the_cure(ext, word, folder, output, convert):
    (folder / "a.jpg").write_bytes(save_as("JPEG"))
    for flags in ((), ("--store=encoded",), ("--dry_run",)):
        ended = convert(folder, output, f"--ext={ext}", *flags)
        assert ended.status == 2
        bad = ext.rpartition(",")[2].lower().removeprefix(".")
        assert f"--ext={bad} " in ended.err
        cure = "--skip_decode_check" if "--store=encoded" in flags else word
        assert cure in ended.err
        assert not output.exists()


def test_any_extension_goes_where_the_default_reader_does_not_read(
    folder, output, tmp_path, convert
):
    (folder / "a.fits").write_bytes(FITS)
    functions = write_functions(
        tmp_path / "functions.py",
        "def my_read(path): return 1\ndef my_prune(name, ext): return True\n",
    )
    flags = f"--path_functions={functions}"
    ended = convert(folder, output, "--ext=fits", "--custom_read_func", flags)
    assert ended.status == 0, ended.err
    ended = convert(
        folder, output, "--ext=fits", "--store=encoded", "--skip_decode_check", "--overwrite"
    )
    assert ended.status == 0, ended.err
    (folder / "a.jpg").write_bytes(save_as("JPEG"))
    ended = convert(folder, output, "--ext=fits", "--custom_prune_func", flags, "--overwrite")
    assert set(stored(output)) == {"a.jpg"}
    assert "astropy" in failures(output)["a.fits"]


def test_opencv_is_asked_for_no_format_that_it_does_not_read(folder, output, convert):
    pytest.importorskip("cv2")
    (folder / "a.jpg").write_bytes(save_as("JPEG"))
    assert convert(folder, output, "--ext=fits", "--reader=opencv").status == 2
    assert convert(folder, output, "--ext=jpg,jp2,exr", "--reader=opencv").status == 0


# What is said


def test_what_opencv_leaves_out_is_counted(folder, output, convert):
    pytest.importorskip("cv2")
    (folder / "deep.png").write_bytes(png(noise((H, W, 3), 65535), 2, 16))
    (folder / "alpha.png").write_bytes(png(noise((H, W, 4)), 6, 8))
    tifffile.imwrite(folder / "pages.tif", noise((3, H, W), 65535), photometric="minisblack")
    (folder / "plain.png").write_bytes(png(noise((H, W, 3)), 2, 8))
    ended = convert(folder, output, "--ext=png,tif", "--reader=opencv")
    assert ended.status == 0, ended.err
    assert "1 files with several frames or pages, of which OpenCV reads the first" in ended.out
    assert "2 files of more than 8 bits, cut to 8 by OpenCV" in ended.out
    assert "1 files with alpha, left out by OpenCV" in ended.out


def test_palettes_are_counted_as_they_are_stored(folder, output, convert):
    data = png(noise((H, W, 1)), 3, 8, palette=TABLE.tobytes())
    (folder / "a.png").write_bytes(data)
    (folder / "b.gif").write_bytes(gif([(noise((H, W)), 0, 0, 0, None)], (H, W), TABLE))
    colours = noise((3, 256), 65535)
    tifffile.imwrite(folder / "c.tif", noise((H, W)), photometric="palette", colormap=colours)
    ended = convert(folder, output, "--ext=png,gif,tif")
    assert "2 palette images expanded" in ended.out
    assert "1 palette TIFFs stored as indices" in ended.out


def test_h5folder_decodes_by_the_same_table(folder, output, convert):
    arrays = np.stack([noise((H, W, 3), seed=seed) for seed in range(3)])
    files = {
        "a.png": png(noise((H, W, 3), 65535), 2, 16, trns=bytes(6)),
        "b.webp": webp(arrays),
        "c.jpg": save_as("PNG"),
        "d.pgm": f"P5 {W} {H} 1023\n".encode() + noise((H, W), 1023).astype(">u2").tobytes(),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "e.png").write_bytes(FITS)
    append_pages(folder / "f.tif", list(arrays[..., 0]))
    ended = convert(folder, output, "--ext=png,webp,jpg,pgm,tif", "--store=encoded")
    assert set(failures(output)) == {"e.png"}, ended.err
    with H5Folder(output) as found:
        assert set(found) == {*files, "f.tif"}
        for name in found:
            check(found[name], read_image(folder / name))


# The revision


OLDER = """
import sys
sys.path.insert(0, {root!r})
from converter.writer import provenance

name = provenance.REVISION_NAME
provenance.ATTRIBUTES = tuple(known for known in provenance.ATTRIBUTES if known != name)
describe = provenance.describe


def without_revision(**options):
    found = describe(**options)
    del found[name]
    return found


provenance.describe = without_revision
from converter.cli import main

if __name__ == "__main__":
    sys.exit(main())
"""


def convert_as_before(folder: Path, output: Path, *flags: str) -> None:
    """Convert as a version did that had no table of formats."""
    driver = write_functions(output.parent.parent / "driver.py", OLDER.format(root=str(ROOT)))
    ended = run([sys.executable, str(driver), *command(folder, output, "--ext=png", *flags)[2:]])
    assert ended.status == 0, ended.err


@pytest.fixture
def keyed(folder: Path) -> Path:
    for n in range(2):
        (folder / f"{n}.png").write_bytes(png(noise((H, W, 1), seed=n), 0, 8, trns=b"\0\7"))
    return folder


def update(folder: Path, output: Path) -> Finished:
    flags = ["--update", f"--path_images={folder}", f"--path_output={output}"]
    return run([*command(folder, output)[:2], *flags])


def test_the_revision_is_recorded_and_its_own_files_are_kept(keyed, output, convert):
    convert(keyed, output, "--ext=png")
    with h5py.File(output) as file:
        assert int(file.attrs["reader_revision"]) == formats.REVISION
    assert "nothing changed" in update(keyed, output).out


@pytest.mark.slow
def test_all_of_an_older_file_is_read_again_though_the_folder_is_as_it_was(keyed, output):
    convert_as_before(keyed, output)
    with h5py.File(output) as file:
        assert "reader_revision" not in file.attrs
    ended = update(keyed, output)
    assert ended.status == 0, ended.err
    assert "the default reader has changed (revision 0" in ended.err
    assert "2 changed" in ended.out
    with h5py.File(output) as file:
        assert int(file.attrs["reader_revision"]) == formats.REVISION


@pytest.mark.slow
def test_shards_of_another_revision_are_not_joined(keyed, output, convert):
    parts = [output.with_name(f"{n}.h5") for n in (1, 2)]
    convert_as_before(keyed, parts[0], "--shard=1/2")
    convert(keyed, parts[1], "--ext=png", "--shard=2/2")
    flags = ["--merge", *map(str, parts), f"--path_output={output}"]
    ended = run([*command(keyed, output)[:2], *flags])
    assert ended.status == 2
    assert "reader_revision" in ended.err
    assert not output.exists()


def test_the_table_names_each_extension_once():
    names = [name for kind in formats.FORMATS for name in kind.extensions]
    names += [name for other in others.OTHERS for name in other.extensions.split()]
    assert len(names) == len(set(names))
    for other in others.OTHERS:
        ends = (offset + len(one) for offset, magic in other.magic.items() for one in magic)
        assert all(end <= formats.LONGEST_HEAD for end in ends)
        compile(
            other.body.replace("render it to pixels of a size of your choice", "pass").replace(
                "return ", "x = "
            ),
            "my_read",
            "exec",
        )
