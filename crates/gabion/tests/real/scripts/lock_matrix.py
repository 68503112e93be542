"""Checks which locks of two processes exclude each other.

usage: lock_matrix.py PATH
"""

import fcntl
import os
import struct
import sys

path = sys.argv[1]
SH, EX, UN, NB = fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN, fcntl.LOCK_NB


def tries(action):
    """Whether another process could take the lock."""
    child = os.fork()
    if child == 0:
        try:
            action(open(path, "r+"))
        except BlockingIOError:
            os._exit(1)
        except BaseException:
            os._exit(2)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == 2:
        sys.exit("the lock call failed")
    return status == 0


def expect(what, wanted, action):
    if tries(action) != wanted:
        sys.exit(f"{what}: {'refused' if wanted else 'granted'}")


open(path, "w").write("x" * 1000)
file = open(path, "r+")

fcntl.flock(file, SH)
expect("flock: shared beside shared", True, lambda other: fcntl.flock(other, SH | NB))
expect("flock: exclusive beside shared", False, lambda other: fcntl.flock(other, EX | NB))
fcntl.flock(file, EX)
expect("flock: shared beside exclusive", False, lambda other: fcntl.flock(other, SH | NB))
expect("fcntl beside flock", True, lambda other: fcntl.lockf(other, EX | NB))
duplicate = os.dup(file.fileno())
file.close()
expect("flock: kept by a duplicate", False, lambda other: fcntl.flock(other, EX | NB))
os.close(duplicate)
expect("flock: gone with the last descriptor", True, lambda other: fcntl.flock(other, EX | NB))

file = open(path, "r+")
fcntl.lockf(file, EX, 100, 100)
expect("fcntl: inside", False, lambda other: fcntl.lockf(other, SH | NB, 1, 150))
expect("fcntl: over the edge", False, lambda other: fcntl.lockf(other, EX | NB, 10, 95))
expect("fcntl: just before", True, lambda other: fcntl.lockf(other, EX | NB, 100, 0))
expect("fcntl: just behind", True, lambda other: fcntl.lockf(other, EX | NB, 0, 200))
fcntl.lockf(file, UN, 20, 140)
expect("fcntl: in the middle that was given back", True, lambda other: fcntl.lockf(other, EX | NB, 20, 140))
expect("fcntl: left of it", False, lambda other: fcntl.lockf(other, EX | NB, 1, 139))
fcntl.lockf(file, SH, 100, 100)
expect("fcntl: shared beside what is shared now", True, lambda other: fcntl.lockf(other, SH | NB, 100, 100))


def asks(other):
    # struct flock: type, whence, start, length, pid
    asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    kind, _, start, length, pid = struct.unpack("hhqqi4x", fcntl.fcntl(other, fcntl.F_GETLK, asked))
    if (kind, start, length, pid) != (fcntl.F_RDLCK, 100, 100, os.getppid()):
        sys.stderr.write(f"F_GETLK says {kind, start, length, pid}\n")
        os._exit(2)


expect("fcntl: whose lock it is", True, asks)
# Closing any descriptor of the file gives all of a process's locks back.
open(path).close()
expect("fcntl: after any close", True, lambda other: fcntl.lockf(other, EX | NB))

# Locks of descriptions do not mind closes, and do exclude the same process.
F_OFD_SETLK = 37
first, second = open(path, "r+"), open(path, "r+")
exclusive = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 10, 0)
fcntl.fcntl(first, F_OFD_SETLK, exclusive)
open(path).close()
try:
    fcntl.fcntl(second, F_OFD_SETLK, exclusive)
    sys.exit("two descriptions hold the same exclusive lock")
except BlockingIOError:
    pass
first.close()
fcntl.fcntl(second, F_OFD_SETLK, exclusive)

# Two that wait for each other: one is told.
file, other = open(path, "r+"), os.pipe()
second.close()
fcntl.lockf(file, EX, 1, 0)
child = os.fork()
if child == 0:
    mine = open(path, "r+")
    fcntl.lockf(mine, EX, 1, 1)
    os.write(other[1], b".")
    try:
        fcntl.lockf(mine, EX, 1, 0)
    except OSError:
        os._exit(35)
    os._exit(0)
os.read(other[0], 1)
try:
    fcntl.lockf(file, EX, 1, 1)
    told = False
except OSError as error:
    told = error.errno == 35
fcntl.lockf(file, UN)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
if not told and code != 35:
    sys.exit("nobody was told of the deadlock")
