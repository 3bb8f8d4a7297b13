"""From a stored image to the row of a batch: which part of it is shown, and how it is resized.

This folder knows numpy, torch and OpenCV, and nothing of files. `crops` has the crops that users
choose from; each gives the `Geometry` of many images at once, from their heights and widths and
from `draws`, random numbers that follow from (seed, epoch, position) alone. `resizing` writes what
a `Cut` shows of an image into its row, by the library that `libraries` calls.

What travels here: a `Geometry`, or the `Cut` of one image: a box of the image, the size it is
resized to, and a window of the result.
"""
