"""Know the formats that the default reader does not read, and who does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Other(NamedTuple):
    """A format, and the body of a ``my_read`` for it."""

    name: str
    extensions: str  # separated by spaces
    body: str
    package: str = ""
    magic: Mapping[int, tuple[bytes, ...]] = {}  # what its files hold at an offset, one of these

    @property
    def cure(self) -> str:
        """Say how to store such files."""
        body = f"write my_read and add --custom_read_func: {self.body}"
        return f"{body} (pip install {self.package})" if self.package else body


#: Behind the byte order of a CR2, which else is a TIFF.
CANON_RAW = b"\x10\0\0\0CR\x02"

_IMAGECODECS = ("import imagecodecs; return imagecodecs.imread(path)", "imagecodecs")

OTHERS = (
    Other(
        "a camera's raw file",
        "3fr arw cr2 cr3 crw dcr dng erf fff gpr iiq k25 kdc mef mos mrw nef nrw orf pef raf raw "
        "rw2 rwl sr2 srf srw x3f",
        "import rawpy; return rawpy.imread(path).postprocess(output_bps=16)",
        "rawpy",
        {
            0: (b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"FUJIFILMCCD-RAW", b"FOVb", b"\0MRM"),
            4: (b"ftypcrx",),
            6: (b"HEAPCCDR",),
        },
    ),
    Other(
        "FITS",
        "fits fit fts fz",
        "from astropy.io import fits; return fits.getdata(path)",
        "astropy",
        {0: (b"SIMPLE  =",)},
    ),
    Other(
        "DICOM",
        "dcm dicom ima",
        "import pydicom; return pydicom.dcmread(path).pixel_array",
        "pydicom",
        {128: (b"DICM",)},
    ),
    Other(
        "OpenEXR",
        "exr",
        "import OpenEXR; return OpenEXR.File(path).channels()['RGB'].pixels",
        "OpenEXR",
        {0: (b"v/1\x01",)},
    ),
    Other(
        "Radiance HDR",
        "hdr rgbe pic",
        "import cv2; return cv2.imread(path, cv2.IMREAD_UNCHANGED)[:, :, ::-1]",
        "opencv-python-headless",
        {0: (b"#?RADIANCE", b"#?RGBE")},
    ),
    Other(
        "NIfTI",
        "nii nii.gz mgh mgz",
        "import nibabel, numpy; return numpy.asanyarray(nibabel.load(path).dataobj)",
        "nibabel",
        {4: (b"n+2\0",), 344: (b"n+1\0", b"ni1\0")},
    ),
    Other(
        "a medical volume",
        "nrrd nhdr mha mhd gipl mnc",
        "import SimpleITK as sitk; return sitk.GetArrayFromImage(sitk.ReadImage(path))",
        "SimpleITK",
        {0: (b"NRRD0", b"ObjectType = Image")},
    ),
    Other(
        "a microscope's file",
        "lsm stk svs ndpi scn qptiff bif gel fluoview btf tf8",
        "import tifffile; return tifffile.imread(path)",
        "tifffile",
    ),
    Other("CZI", "czi", "import czifile; return czifile.imread(path)", "czifile"),
    Other(
        "MRC",
        "mrc mrcs rec",
        "import mrcfile; return mrcfile.read(path)",
        "mrcfile",
        {208: (b"MAP ",)},
    ),
    Other("ND2", "nd2", "import nd2; return nd2.imread(path)", "nd2"),
    Other(
        "HEIF",
        "heic heif hif heics",
        "import pillow_heif, numpy; return numpy.asarray(pillow_heif.open_heif(path))",
        "pillow-heif",
        {4: (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypmif1", b"ftypmsf1")},
    ),
    Other("AVIF", "avif avifs", *_IMAGECODECS, {4: (b"ftypavif", b"ftypavis")}),
    Other(
        "JPEG 2000",
        "jp2 j2k jpf jpx j2c jpc jpm jph jhc",
        *_IMAGECODECS,
        {0: (b"\0\0\0\x0cjP  ", b"\xffO\xffQ")},
    ),
    Other("JPEG XL", "jxl", *_IMAGECODECS, {0: (b"\xff\n", b"\0\0\0\x0cJXL ")}),
    Other(
        "JPEG XR, JPEG-LS or lossless JPEG",
        "jxr wdp hdp jls ljpeg",
        *_IMAGECODECS,
        {0: (b"II\xbc", b"\xff\xd8\xff\xf7")},
    ),
    Other(
        "a video",
        "mp4 m4v mov avi mkv webm mpg mpeg wmv flv 3gp ts mts m2ts ogv mjpeg",
        "import imageio.v3; return imageio.v3.imread(path, plugin='pyav')",
        "imageio[pyav]",
        {
            0: (b"\x1aE\xdf\xa3",),
            4: (b"ftypisom", b"ftypiso2", b"ftypmp4", b"ftypavc1", b"ftypM4V", b"ftypqt  "),
            8: (b"AVI ",),
        },
    ),
    Other(
        "sound",
        "wav flac ogg mp3 aif aiff opus",
        "import soundfile; return soundfile.read(path)[0]",
        "soundfile",
        {0: (b"fLaC", b"OggS", b"ID3"), 8: (b"WAVE",)},
    ),
    Other(
        "a numpy array", "npy", "import numpy; return numpy.load(path)", "", {0: (b"\x93NUMPY",)}
    ),
    Other("numpy arrays", "npz", "import numpy; return numpy.load(path)['arr_0']"),
    Other(
        "HDF5",
        "h5 hdf5 hdf he5 nc",
        "import h5py; return h5py.File(path)['NAME'][()]",
        "",
        {0: (b"\x89HDF\r\n\x1a\n",)},
    ),
    Other("MATLAB", "mat", "import scipy.io; return scipy.io.loadmat(path)['NAME']", "scipy"),
    Other("a table", "csv tsv", "import numpy; return numpy.loadtxt(path, delimiter=',')"),
    Other("JSON", "json", "import json; return json.load(open(path, encoding='utf-8'))"),
    Other("text", "txt md xml yaml yml html py", "return open(path, encoding='utf-8').read()"),
    Other(
        "PSD",
        "psd psb",
        "import psd_tools; return psd_tools.PSDImage.open(path).numpy()",
        "psd-tools",
        {0: (b"8BPS",)},
    ),
    Other(
        "SVG or PDF, which have no pixels",
        "svg pdf eps ps ai",
        "render it to pixels of a size of your choice",
        "",
        {0: (b"%PDF", b"%!PS")},
    ),
    Other(
        "a format that Pillow reads in part",
        "ico cur icns pcx dcx dds sgi rgb rgba bw ras sun im msp xbm xpm qoi spi spider fli flc "
        "blp ftc ftu gbr pxr pcd",
        "import PIL.Image, numpy; return numpy.array(PIL.Image.open(path))",
        "",
        {0: (b"qoif", b"DDS ", b"\0\0\x01\0", b"icns", b"\x01\xda")},
    ),
)
BY_EXTENSION = {extension: other for other in OTHERS for extension in other.extensions.split()}
LONGEST_HEAD = 352

UNKNOWN = (
    "write my_read, which returns an array for a path, and add --custom_read_func "
    "(my_functions.py has examples)"
)


def recognise(head: bytes) -> Other | None:
    """Return the format that a file's first bytes tell."""
    for other in OTHERS:
        if any(head.startswith(magic, offset) for offset, magic in other.magic.items()):
            return other
    return None
