"""Batches for training, read and cropped ahead of the loop that asks for them.

`H5Loader` (`loader`) is what a user sees. It asks `orders` which samples come next, and `labels`
for their labels. `plans` says what becomes of each sample of a batch, and `rows` makes it a row: a
view out of `loader/`, the box that `cropping` drew, resized into memory of `buffers`. `batches`
cuts that into parts, which `readers` does in threads of this process or in other processes; `runs`
reads ahead from a slow disk.

What travels here: a position (int) in the file; an index (int) into the selected samples; a
`Request`, the positions of one batch and its epoch; a `Filling`, the batch in the making, whose
parts any thread may fill. Random numbers follow from (seed, epoch, position) alone.
"""
