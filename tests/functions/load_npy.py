"""Read arrays of numpy, and text."""

import numpy as np


def my_read(path_sample):
    if path_sample.endswith(".txt"):
        with open(path_sample, encoding="utf-8") as file:
            return file.read()
    return np.load(path_sample)
