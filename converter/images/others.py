"""Know the formats that the default reader does not read, and who does."""

from __future__ import annotations

from typing import NamedTuple


class Other(NamedTuple):
    """A format by its extensions and first bytes, and the body of a ``my_read`` for it."""

    name: str
    extensions: tuple[str, ...]
    body: str
    package: str
    magic: tuple[tuple[int, bytes], ...] = ()  # offset and bytes, one of which is there

    @property
    def cure(self) -> str:
        """Say how such files get in."""
        body = f"write my_read and add --custom_read_func: {self.body}"
        return f"{body} (pip install {self.package})" if self.package else body


#: Behind the byte order of a CR2, which is a TIFF else.
CANON_RAW = b"\x10\0\0\0CR\x02"


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_PILLOW = "import PIL.Image, numpy; return numpy.array(PIL.Image.open(path))"
_VIDEO = "import imageio.v3; return imageio.v3.imread(path, plugin='pyav')"
_MP4 = tuple((4, b"ftyp" + brand) for brand in (b"isom", b"iso2", b"mp4", b"avc1", b"M4V", b"qt  "))
_HEIF = tuple((4, b"ftyp" + brand) for brand in (b"heic", b"heix", b"hevc", b"mif1", b"msf1"))

OTHERS = (
    Other(
        "a camera's raw file",
        _words(
            "3fr arw cr2 cr3 crw dcr dng erf fff gpr iiq k25 kdc mef mos mrw nef nrw orf pef raf "
            "raw rw2 rwl sr2 srf srw x3f"
        ),
        "import rawpy; return rawpy.imread(path).postprocess(output_bps=16)",
        "rawpy",
        (
            (0, b"IIRO"),
            (0, b"IIRS"),
            (0, b"MMOR"),
            (0, b"IIU\0"),
            (6, b"HEAPCCDR"),
            (4, b"ftypcrx"),
            (0, b"FUJIFILMCCD-RAW"),
            (0, b"FOVb"),
            (0, b"\0MRM"),
        ),
    ),
    Other(
        "FITS",
        ("fits", "fit", "fts", "fz"),
        "from astropy.io import fits; return fits.getdata(path)",
        "astropy",
        ((0, b"SIMPLE  ="),),
    ),
    Other(
        "DICOM",
        ("dcm", "dicom", "ima"),
        "import pydicom; return pydicom.dcmread(path).pixel_array",
        "pydicom",
        ((128, b"DICM"),),
    ),
    Other(
        "OpenEXR",
        ("exr",),
        "import OpenEXR; return OpenEXR.File(path).channels()['RGB'].pixels",
        "OpenEXR",
        ((0, b"\x76\x2f\x31\x01"),),
    ),
    Other(
        "Radiance HDR",
        ("hdr", "rgbe", "pic"),
        "import cv2; return cv2.imread(path, cv2.IMREAD_UNCHANGED)[:, :, ::-1]",
        "opencv-python-headless",
        ((0, b"#?RADIANCE"), (0, b"#?RGBE")),
    ),
    Other(
        "NIfTI",
        ("nii", "nii.gz", "mgh", "mgz"),
        "import nibabel, numpy; return numpy.asanyarray(nibabel.load(path).dataobj)",
        "nibabel",
        ((344, b"n+1\0"), (344, b"ni1\0"), (4, b"n+2\0")),
    ),
    Other(
        "a medical volume",
        ("nrrd", "nhdr", "mha", "mhd", "gipl", "mnc"),
        "import SimpleITK as sitk; return sitk.GetArrayFromImage(sitk.ReadImage(path))",
        "SimpleITK",
        ((0, b"NRRD0"), (0, b"ObjectType = Image")),
    ),
    Other(
        "a microscope's file",
        ("lsm", "stk", "svs", "ndpi", "scn", "qptiff", "bif", "gel", "fluoview", "btf", "tf8"),
        "import tifffile; return tifffile.imread(path)",
        "tifffile",
    ),
    Other("CZI", ("czi",), "import czifile; return czifile.imread(path)", "czifile"),
    Other(
        "MRC",
        ("mrc", "mrcs", "rec"),
        "import mrcfile; return mrcfile.read(path)",
        "mrcfile",
        ((208, b"MAP "),),
    ),
    Other("ND2", ("nd2",), "import nd2; return nd2.imread(path)", "nd2"),
    Other(
        "HEIF",
        ("heic", "heif", "hif", "heics"),
        "import pillow_heif, numpy; return numpy.asarray(pillow_heif.open_heif(path))",
        "pillow-heif",
        _HEIF,
    ),
    Other(
        "AVIF",
        ("avif", "avifs"),
        "import imagecodecs; return imagecodecs.imread(path)",
        "imagecodecs",
        ((4, b"ftypavif"), (4, b"ftypavis")),
    ),
    Other(
        "JPEG 2000",
        ("jp2", "j2k", "jpf", "jpx", "j2c", "jpc", "jpm", "jph", "jhc"),
        "import imagecodecs; return imagecodecs.imread(path)",
        "imagecodecs",
        ((0, b"\0\0\0\x0cjP  "), (0, b"\xff\x4f\xff\x51")),
    ),
    Other(
        "JPEG XL",
        ("jxl",),
        "import imagecodecs; return imagecodecs.imread(path)",
        "imagecodecs",
        ((0, b"\xff\x0a"), (0, b"\0\0\0\x0cJXL ")),
    ),
    Other(
        "JPEG XR, JPEG-LS or lossless JPEG",
        ("jxr", "wdp", "hdp", "jls", "ljpeg"),
        "import imagecodecs; return imagecodecs.imread(path)",
        "imagecodecs",
        ((0, b"II\xbc"), (0, b"\xff\xd8\xff\xf7")),
    ),
    Other(
        "a video",
        _words("mp4 m4v mov avi mkv webm mpg mpeg wmv flv 3gp ts mts m2ts ogv mjpeg"),
        _VIDEO,
        "imageio[pyav]",
        (*_MP4, (8, b"AVI "), (0, b"\x1a\x45\xdf\xa3")),
    ),
    Other(
        "sound",
        ("wav", "flac", "ogg", "mp3", "aif", "aiff", "opus"),
        "import soundfile; return soundfile.read(path)[0]",
        "soundfile",
        ((8, b"WAVE"), (0, b"fLaC"), (0, b"OggS"), (0, b"ID3")),
    ),
    Other(
        "a numpy array", ("npy",), "import numpy; return numpy.load(path)", "", ((0, b"\x93NUMPY"),)
    ),
    Other("numpy arrays", ("npz",), "import numpy; return numpy.load(path)['arr_0']", ""),
    Other(
        "HDF5",
        ("h5", "hdf5", "hdf", "he5", "nc"),
        "import h5py; return h5py.File(path)['NAME'][()]",
        "",
        ((0, b"\x89HDF\r\n\x1a\n"),),
    ),
    Other("MATLAB", ("mat",), "import scipy.io; return scipy.io.loadmat(path)['NAME']", "scipy"),
    Other("a table", ("csv", "tsv"), "import numpy; return numpy.loadtxt(path, delimiter=',')", ""),
    Other("JSON", ("json",), "import json; return json.load(open(path, encoding='utf-8'))", ""),
    Other(
        "text",
        ("txt", "md", "xml", "yaml", "yml", "html", "py"),
        "return open(path, encoding='utf-8').read()",
        "",
    ),
    Other(
        "PSD",
        ("psd", "psb"),
        "import psd_tools; return psd_tools.PSDImage.open(path).numpy()",
        "psd-tools",
        ((0, b"8BPS"),),
    ),
    Other(
        "SVG or PDF, which have no pixels",
        ("svg", "pdf", "eps", "ps", "ai"),
        "render it to pixels of a size of your choice",
        "",
        ((0, b"%PDF"), (0, b"%!PS")),
    ),
    Other(
        "a format that Pillow reads in part",
        _words(
            "ico cur icns pcx dcx dds sgi rgb rgba bw ras sun im msp xbm xpm qoi spi spider fli "
            "flc blp ftc ftu gbr pxr pcd"
        ),
        _PILLOW,
        "",
        ((0, b"qoif"), (0, b"DDS "), (0, b"\0\0\1\0"), (0, b"icns"), (0, b"\x01\xda")),
    ),
)
BY_EXTENSION = {extension: other for other in OTHERS for extension in other.extensions}
LONGEST_HEAD = 352

UNKNOWN = (
    "write my_read, which returns an array for a path, and add --custom_read_func "
    "(my_functions.py has examples)"
)


def recognise(head: bytes) -> Other | None:
    """Return the format that a file's first bytes tell."""
    for other in OTHERS:
        if any(head.startswith(magic, offset) for offset, magic in other.magic):
            return other
    return None
