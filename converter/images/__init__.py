"""Image files to arrays, and back: what is read, by what, and what is refused with which cure.

`formats` is the table. A file's first bytes choose a row of it, whose decoder returns a
`picture.Image`: the array, whole, and a `Note` of what its user may not expect. Its encoder makes
a file of the same format of an array that was resized. `others` knows what is not in the table, and
who reads it.
"""
