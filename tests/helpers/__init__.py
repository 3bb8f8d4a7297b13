"""What tests share: run the converter, make files, damage them, compare."""
