"""Read OUT.h5 back, with numpy and h5py alone, as a mapping from paths to arrays.

`H5Folder` opens one file or several (`several_files`) in one of three ways:

- `indexed_file` finds samples by the index and reads them without HDF5, through `page_cache` and
  `chunks`. Filters that cannot be undone here are left to HDF5.
- `h5py_file` reads a file without an index through h5py: the same results, slower.
- `encoded_file` decodes image files that either of these two holds as they were.

What travels here: a key (str) becomes a position (int) in stored order; a position becomes an
array, the bytes of a file, or a batch of arrays. A `Box` is the part of an array to read.
`LoadError` says what is damaged or refused. Only `encoded_file` imports the image reader, and only
when it decodes: the rest can be copied into another project (see `h5folder`).
"""
