"""The cut of an image in its row: the pixels of torchvision and OpenCV, and no setting changed."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from converter.cropping import libraries
from converter.cropping.crops import CenterCrop, RandomCrop, RandomResizedCrop, Resize
from converter.cropping.draws import Draws
from converter.cropping.geometry import Cut
from converter.cropping.resizing import Resizer
from converter.errors import ConverterError

torch = pytest.importorskip("torch")
FLIPS = [(False, False), (True, False), (False, True), (True, True)]


def image_of(shape, dtype=np.uint8, seed=0) -> np.ndarray:
    """Return noise in a read-only array whose rows and pixels are not side by side in memory."""
    values = np.random.default_rng(seed).random(shape) * (2 if np.dtype(dtype).kind == "b" else 250)
    wide = np.zeros((shape[0], shape[1] + 3, *shape[2:]), dtype)
    wide[:, 2:-1] = values
    wide.flags.writeable = False
    return wide[:, 2:-1]


def unaligned(image: np.ndarray) -> np.ndarray:
    """Return a read-only array that begins at an odd byte, as it may in a file."""
    data = bytearray(1 + image.nbytes)
    moved = np.ndarray(image.shape, image.dtype, data, 1)
    moved[...] = image
    moved.flags.writeable = False
    return moved


def cuts(crop, shape, count=1, seed=0) -> list[Cut]:
    sides = [np.full(count, side) for side in shape[:2]]
    return crop.geometry(*sides, Draws(seed, 0, np.arange(count))).cuts()


def row_of(crop, image, cut=None, *, antialias=True, **options) -> np.ndarray:
    cut = cut or cuts(crop, image.shape)[0]
    row = np.full((*crop.size, *image.shape[2:]), 77, image.dtype)
    box = image[cut.top : cut.top + cut.height, cut.left : cut.left + cut.width]
    Resizer(antialias).fill(row, box, cut, **options)
    return row


def as_tensor(image: np.ndarray):
    planes = image if image.ndim == 3 else image[:, :, None]
    return torch.from_numpy(planes.transpose(2, 0, 1).copy())


def as_array(tensor, like: np.ndarray) -> np.ndarray:
    array = tensor.numpy().transpose(1, 2, 0)
    return array if like.ndim == 3 else array[:, :, 0]


@pytest.fixture
def vision():
    pytest.importorskip("torchvision")
    from torchvision.transforms.v2 import functional

    return functional


@pytest.mark.parametrize("channels", [(), (1,), (2,), (3,), (4,)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_a_resized_crop_has_the_pixels_of_torchvision(vision, channels, dtype):
    image, crop = image_of((61, 83, *channels), dtype), RandomResizedCrop((24, 33))
    for n, cut in enumerate(cuts(crop, image.shape, 12)):
        hflip, vflip = FLIPS[n % 4]
        row = row_of(crop, image, cut, hflip=hflip, vflip=vflip)
        theirs = vision.resized_crop(as_tensor(image), *cut[:4], [24, 33], antialias=True)
        theirs = vision.hflip(theirs) if hflip else theirs
        theirs = vision.vflip(theirs) if vflip else theirs
        assert np.array_equal(row, as_array(theirs, image))


@pytest.mark.parametrize("has_opencv", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float16, np.float64])
def test_a_mirrored_row_is_the_row_mirrored_whoever_does_it(dtype, has_opencv, monkeypatch):
    if has_opencv:
        pytest.importorskip("cv2")
    else:
        monkeypatch.delitem(sys.modules, "cv2", raising=False)
    for n in range(12):
        image, crop = image_of((41, 53, 1 + n % 4), dtype, seed=n), Resize((17 + n, 23))
        for hflip, vflip in FLIPS:
            expected = row_of(crop, image)[:: -1 if vflip else 1, :: -1 if hflip else 1]
            assert np.array_equal(row_of(crop, image, hflip=hflip, vflip=vflip), expected)


@pytest.mark.parametrize("shape", [(37, 50, 3), (50, 37), (20, 90, 1), (3, 4, 3), (1, 1, 3)])
@pytest.mark.parametrize("resize", [None, 32, (40, 31)])
def test_a_central_crop_has_the_pixels_of_torchvision(vision, shape, resize):
    image, size = image_of(shape), [28, 29]
    theirs = as_tensor(image)
    if resize is not None:
        theirs = vision.resize(theirs, resize, antialias=True)
    theirs = vision.center_crop(theirs, size)
    for hflip, vflip in FLIPS:
        row = row_of(CenterCrop(size, resize), image, hflip=hflip, vflip=vflip)
        row = row[:, ::-1] if hflip else row
        row = row[::-1] if vflip else row
        assert np.array_equal(row, as_array(theirs, image))


def test_any_small_image_to_any_small_size(vision):
    # torch's own kernel of bytes is wrong for a width of 1: there float64 tells what is right
    random = np.random.default_rng(0)
    for n in range(400):
        *shape, height, width = random.integers(1, 6, 4).tolist()
        image, crop = image_of((*shape, 1 + n % 4), seed=n), Resize((height, width))
        theirs = as_tensor(image).to(torch.float64 if width == 1 else torch.uint8)
        theirs = vision.resize(theirs, [height, width], antialias=True)
        row = row_of(crop, image).astype(float)
        most = 0.51 if width == 1 else 0
        assert np.abs(row - as_array(theirs, image).astype(float)).max() <= most, (shape, crop.size)


@pytest.mark.parametrize("dtype", [np.uint16, np.float16])
@pytest.mark.parametrize("antialias", [True, False])
def test_other_dtypes_are_interpolated_as_float32(dtype, antialias):
    pytest.importorskip("cv2")
    image, crop = image_of((40, 50, 3), dtype), Resize((20, 30))
    if dtype == np.uint16:
        image = image * np.uint16(262)  # up to the largest value
    exact = row_of(crop, image.astype(np.float32), antialias=antialias)
    expected = np.rint(exact).clip(0, 65535) if dtype == np.uint16 else exact
    row = row_of(crop, image, antialias=antialias)
    assert row.dtype == dtype and np.array_equal(row, expected.astype(dtype))


@pytest.mark.parametrize("dtype", [np.bool_, np.int32, np.int64, np.complex64])
def test_other_dtypes_are_refused_unless_they_are_masks(dtype):
    image, crop = image_of((8, 9), dtype), Resize((4, 4))
    with pytest.raises(ConverterError, match=f"arrays of {np.dtype(dtype)} cannot be interpolated"):
        row_of(crop, image)
    row_of(crop, image, nearest=True)
    row_of(CenterCrop(4), image)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("channels", [(), (1,), (3,), (4,)])
def test_without_antialiasing_the_pixels_are_those_of_opencv(channels, dtype):
    cv2 = pytest.importorskip("cv2")
    image, crop = unaligned(image_of((61, 83, *channels), dtype)), RandomResizedCrop((24, 33))
    for n, cut in enumerate(cuts(crop, image.shape, 8)):
        hflip, vflip = FLIPS[n % 4]
        row = row_of(crop, image, cut, antialias=False, hflip=hflip, vflip=vflip)
        top, left, height, width = cut[:4]
        box = image[top : top + height, left : left + width].copy()
        theirs = cv2.resize(box, (33, 24), interpolation=cv2.INTER_LINEAR).reshape(row.shape)
        theirs = theirs[:, ::-1] if hflip else theirs
        assert np.array_equal(row, theirs[::-1] if vflip else theirs)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.bool_, np.float32])
def test_masks_have_the_pixels_of_torchvision(vision, dtype):
    tv_tensors = pytest.importorskip("torchvision.tv_tensors")
    random = np.random.default_rng(1)
    for n in range(40):
        *shape, height, width = random.integers(1, 300, 4).tolist()
        image = image_of(shape, dtype, seed=n)
        theirs = vision.resize(tv_tensors.Mask(image.copy()), [height, width])
        hflip, vflip = FLIPS[n % 4]
        row = row_of(Resize((height, width)), image, nearest=True, hflip=hflip, vflip=vflip)
        theirs = vision.hflip(theirs) if hflip else theirs
        theirs = vision.vflip(theirs) if vflip else theirs
        assert np.array_equal(row, theirs.numpy()), (shape, height, width)


def test_a_mask_and_its_image_show_the_same_window():
    # each pixel of the image says where it is; the mask too
    rows, columns = np.mgrid[:64, :64].astype(np.float32)
    image, crop = np.stack((rows, columns), axis=2), RandomCrop(40, scale=(0.3, 3), fill=-1000)
    for n, cut in enumerate(cuts(crop, image.shape, 40)):
        hflip, vflip = FLIPS[n % 4]
        shown = row_of(crop, image, cut, hflip=hflip, vflip=vflip, fill=-1000)
        mask = row_of(crop, image, cut, hflip=hflip, vflip=vflip, fill=-1000, nearest=True)
        assert np.array_equal(shown == -1000, mask == -1000)
        assert np.abs(shown - mask).max() < 3


@pytest.mark.parametrize("hflip, vflip", FLIPS)
def test_padding_is_that_of_a_padded_image(hflip, vflip):
    image, crop = image_of((10, 12, 3)), RandomCrop((14, 9), (4, 5))
    padded = np.pad(image, ((4, 4), (5, 5), (0, 0)), constant_values=9)
    for cut in cuts(crop, image.shape, 30):
        top, left = cut.top + cut.window_top + 4, cut.left + cut.window_left + 5
        expected = padded[top : top + 14, left : left + 9]
        expected = expected[:, ::-1] if hflip else expected
        row = row_of(crop, image, cut, hflip=hflip, vflip=vflip, fill=9)
        assert np.array_equal(row, expected[::-1] if vflip else expected)


def test_a_window_in_the_padding_alone_is_all_padding():
    crop = RandomCrop(2, 9)
    found = [cut for cut in cuts(crop, (1, 1), 50) if not cut.height or not cut.width]
    assert found and all((row_of(crop, image_of((1, 1)), c, fill=5) == 5).all() for c in found)


@pytest.mark.parametrize("dtype, fill", [(np.int8, 255), (np.uint8, 0.5), (np.bool_, 255)])
def test_padding_that_the_dtype_cannot_hold_is_refused(dtype, fill):
    with pytest.raises(ConverterError, match=rf"arrays of {np.dtype(dtype)} cannot hold {fill}"):
        row_of(CenterCrop(9), image_of((4, 4), dtype), fill=fill)


@pytest.mark.parametrize("crop", [Resize((5, 6)), CenterCrop((5, 6))])
def test_gray_is_given_three_channels(crop):
    gray = image_of((9, 8))
    (cut,) = cuts(crop, (9, 8))
    row = np.empty((5, 6, 3), np.uint8)
    box = gray[cut.top : cut.top + cut.height, cut.left : cut.left + cut.width]
    Resizer().fill(row, box, cut)
    assert np.array_equal(row, np.stack([row_of(crop, gray)] * 3, axis=2))


def test_no_setting_of_torch_or_opencv_changes():
    cv2 = pytest.importorskip("cv2")
    image = image_of((300, 400, 3))

    def settings():
        return (
            torch.get_num_threads(),
            torch.get_num_interop_threads(),
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            cv2.getNumThreads(),
            cv2.useOptimized(),
            cv2.ocl.useOpenCL(),
        )

    def work() -> None:
        inside = settings()
        for antialias in (True, False):
            for hflip in (True, False):
                row_of(Resize(200), image, antialias=antialias, hflip=hflip)
        seen.append((inside, settings()))

    before, seen = settings(), []
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    work()
    assert seen == [(before, before)] * 4
    assert settings() == before


IN_ONE_THREAD = """
import os, sys, threading, warnings
warnings.simplefilter("error")
import numpy as np, torch
from converter.cropping.geometry import Cut
from converter.cropping.resizing import Resizer
torch.set_num_threads(4)
cut = Cut(0, 0, 900, 900, 700, 700, 0, 0)
image = np.zeros((900, 900, 3), np.uint8)
image.flags.writeable = False

def count():
    return len(os.listdir("/proc/self/task"))

def work():
    row = np.empty((700, 700, 3), np.uint8)
    for hflip in (True, False):
        Resizer().fill(row, image, cut, hflip=hflip)
    counts.append(count())

counts = [count() + 1]
thread = threading.Thread(target=work)
thread.start()
thread.join()
work()
assert counts == [counts[0], counts[0], counts[0] - 1], counts
child = os.fork()
if not child:
    work()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert torch.get_num_threads() == 4
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts the threads in /proc")
def test_torch_works_in_one_thread_and_survives_a_fork():
    subprocess.run([sys.executable, "-c", IN_ONE_THREAD], check=True, timeout=60)


@pytest.mark.parametrize(
    "name, antialias, message",
    [
        ("torch", True, "needs torch, or OpenCV with antialias=False: pip install torch$"),
        ("cv2", False, "needs OpenCV: pip install opencv-python-headless$"),
    ],
)
def test_without_the_library_nothing_is_resized(monkeypatch, name, antialias, message):
    monkeypatch.setitem(sys.modules, name, None)
    for library in (libraries.torch_library, libraries.opencv_library):
        library.cache_clear()
    try:
        with pytest.raises(ConverterError, match=message):
            row_of(Resize(4), image_of((9, 9)), antialias=antialias)
        row_of(CenterCrop(4), image_of((9, 9)), antialias=antialias)
        row_of(Resize(4), image_of((9, 9)), antialias=antialias, nearest=True)
    finally:
        for library in (libraries.torch_library, libraries.opencv_library):
            library.cache_clear()
