"""Start the command line, as ``python converter``, ``python -m converter`` or by a path."""

import gc
import signal

if __name__ == "__main__":
    gc.disable()  # until a mode begins: modules stay, and looking through them takes 30 ms
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback out of the imports below

import sys
from pathlib import Path

if not __package__:  # python puts this folder first: its modules would be top-level ones
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from converter.cli import main

if __name__ == "__main__":
    gc.freeze()  # nor at the end
    sys.exit(main())
