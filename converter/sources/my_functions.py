"""Your own reader and file selection. Edit, then add the flag.

A copy of this file in the current folder is found before the one beside ``converter/``.
"""

import json


def my_read(path_sample):
    """Read one file: used with ``--custom_read_func``.

    Parameters
    ----------
    path_sample : str
        The path of the file, to be opened as it is.

    Returns
    -------
    numpy.ndarray, or anything ``numpy.asarray`` makes one of
        Any shape (also a single number) and any dtype of numbers: bool, integers, floats,
        complex, structured. A str or bytes is stored as its bytes, 1-D uint8. For images
        that need no special treatment: ``from converter import read_image`` and return
        ``read_image(path_sample)``.

    An exception leaves this file out and is reported with the file's name.

    As shipped: JSON files that hold numbers or nested lists of numbers.
    """
    with open(path_sample, encoding="utf-8") as file:
        return json.load(file)


def my_prune(filename_str, ext_str):
    """Tell whether a file goes in: used with ``--custom_prune_func``.

    Parameters
    ----------
    filename_str : str
        The bare name of the file, such as ``image_0001.jpg``.
    ext_str : str
        ``--ext`` as it was typed.

    Returns
    -------
    bool

    As shipped: the name contains ``--ext`` anywhere, so that ``--ext=foo`` finds ``.FoO0345``.
    """
    return ext_str in filename_str.lower()
