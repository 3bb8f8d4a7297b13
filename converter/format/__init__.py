"""OUT.h5 from its first to its last byte, written and read.

It is an ordinary HDF5 file, followed by an index that HDF5 ignores::

    superblock        48 bytes, version 3: where the root group is and where HDF5's part ends
    samples           in stored order, each of them
        payload       the array's bytes (contiguous), or its chunks one behind the other
        chunk tree    a version 1 B-tree that finds the chunks, where there are several
        header        the dataset's object header, version 2: shape, dtype, filters, address;
                      of larger colour and gray images also what tells viewers to show them
    groups            each folder behind those within it; the root group is the last
        links         in the group's header up to 32, else local heap, B-tree, symbol table nodes
        texts         before the root group: a global heap with the texts of its attributes
    (0 to 7 zeros)    HDF5's part has ended; the index begins at a multiple of 8
    sources           16 bytes a sample: size and time of its source file; a CRC-32
    index             rows, chunks, paths, layouts, a hash table of the keys
    footer            sizes, version, a CRC-32 over the index, a magic number; the file ends

`superblock`, `headers`, `chunk_tree`, `groups` and `checksum` make what the HDF5 File Format
Specification, version 3.0, describes, and HDF5 1.10 and newer read. `index` gives the sections of
the index byte by byte, `index_reader` looks samples up in them and believes nothing unchecked.

What travels here: a `Layout` says how one array lies in the file, an `Extent` where one payload
does. Nothing in this folder opens a file for writing or knows where arrays come from.
"""
