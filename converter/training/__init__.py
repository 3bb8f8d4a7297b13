"""Batches for training, read and cropped by threads of the training process.

- `orders` decides which samples come when, on which rank, and where to go on after a stop.
- `labels` selects the samples and gives each its label.

What travels here: an *index* counts the selected samples from 0, a *position* counts the samples
of the file in stored order. A *place* is an epoch and how many of its samples all ranks have had.
"""
