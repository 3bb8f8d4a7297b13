"""Put OUT.h5 together, and go on after an interruption."""
