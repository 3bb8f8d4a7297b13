"""Read OUT.h5 back with numpy and h5py alone."""
