"""From the folder to payloads: which files go in, how each is read, how it is encoded.

`walk` makes a `Plan` of keys. For each key the `encoder` has a reader (`images`, `opencv` or the
user's ``my_read``) return an array, has `storable` check that HDF5 can hold it bit for bit, and
puts its payload into a `Buffer`: what comes out is an `Encoded`, or a `Failure` with its reason.
With ``--resize``, `resizing` says which size an image gets, and `resampling` makes it so large.
"""
