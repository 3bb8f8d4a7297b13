"""Read every file as the number 1, without looking at it."""


def my_read(path_sample):
    return 1
