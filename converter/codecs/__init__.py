"""Arrays to payloads and back: what each compression of ``--compression`` does to the bytes.

This folder knows HDF5's filters and nothing of files: which there are and at which levels
(`compression`, the table of `gzip`, `zstd` and `blosc2`), how an array is cut into `chunks`, how a
chunk becomes a payload and a payload a chunk, and what each decoder notices of damage.

What travels here: an array and its chunk shape go in, one payload (bytes) for each chunk comes
out. A `FilterPipeline` says which HDF5 filters made it: numbers and values, in the order in which
they are applied, as HDF5 records them. The way back takes a payload, the pipeline and the array to
fill, and raises ValueError for a payload that does not give exactly that array.
"""
