"""What each mode of the command line does, step by step: one module a mode.

A command takes paths, a `Request` or other plain values, and `Callbacks`; it returns counts, and
raises a `ConverterError` for what cannot be done. It prints nothing and knows no exit status.
"""
