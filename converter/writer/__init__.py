"""Put OUT.h5 together, and resume it after an interruption.

What travels here: `Batch`es in plan order, from workers or from an older file (`reuse`, `stored`).
`structures` gives each sample its `Extent`s in the file and puts HDF5's structures for it into the
batch; the `writer` writes the batch (`payloads`), then appends a `Row` for each of its files to the
`journal`. What is copied, kept or verified is read by `large_reads`.

Beside the output (`paths`) a run has two files:

- ``OUT.h5.partial``: a mark in place of the superblock, then the samples. When groups, index and
  superblock are written too, it is renamed to ``OUT.h5``.
- ``OUT.h5.partial.journal``: the same mark, the folder, the options (`provenance`), and the rows.

A run holds a lock on the partial file, so that two runs never write one file; where a disk has no
locks, random bytes behind the mark tell whose file it is. When a run finds both files, `resume`
believes a row if its line has the recorded checksum, its source file the recorded size and time,
and its payload the recorded checksum. What was recorded as a failure is read again. The first row
that is not believed ends what is kept, and files are read from there on. The result has the bytes
that an uninterrupted run would have written.
"""
