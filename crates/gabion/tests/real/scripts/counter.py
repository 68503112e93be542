"""Counts in a file that others count in, too, each time under a lock of the whole file.

usage: counter.py PATH flock|fcntl|ofd COUNT
"""

import fcntl
import os
import struct
import sys

path, kind, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
F_OFD_SETLKW = 38


def ofd(file, type):
    # struct flock: type, whence, start, length, pid
    fcntl.fcntl(file, F_OFD_SETLKW, struct.pack("hhqqi4x", type, os.SEEK_SET, 0, 0, 0))


def lock(file):
    if kind == "ofd":
        ofd(file, fcntl.F_WRLCK)
    else:
        (fcntl.flock if kind == "flock" else fcntl.lockf)(file, fcntl.LOCK_EX)


def unlock(file):
    if kind == "ofd":
        ofd(file, fcntl.F_UNLCK)
    else:
        (fcntl.flock if kind == "flock" else fcntl.lockf)(file, fcntl.LOCK_UN)


file = os.open(path, os.O_RDWR)
for number in range(count):
    lock(file)
    value = int(os.pread(file, 20, 0))
    os.pwrite(file, f"{value + 1:019d}\n".encode(), 0)
    unlock(file)
