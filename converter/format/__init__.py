"""Lay out OUT.h5 from its first to its last byte, and read it."""
