"""Takes a lock on a file, says how that went, and keeps it until killed.

usage: locker.py PATH flock|lockf hold|wait|try
"""

import fcntl
import signal
import sys

path, kind, mode = sys.argv[1:]
lock = fcntl.flock if kind == "flock" else fcntl.lockf
file = open(path, "r+")
try:
    if mode == "wait":
        print("waits", flush=True)
        lock(file, fcntl.LOCK_EX)
    else:
        lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("refused", flush=True)
    sys.exit()
print("held", flush=True)
signal.pause()
