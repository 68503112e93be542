"""Two processes share a mapped file; both also read and write it by system calls.

usage: mappings.py PATH
"""

import mmap
import os
import sys

PAGES = 300
path = sys.argv[1]
file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
os.ftruncate(file, PAGES * mmap.PAGESIZE)
memory = mmap.mmap(file, PAGES * mmap.PAGESIZE)
asked, answered = os.pipe(), os.pipe()

child = os.fork()
if child == 0:
    other = os.open(path, os.O_RDWR)
    mine = mmap.mmap(other, PAGES * mmap.PAGESIZE)
    for page in range(PAGES):
        os.read(asked[0], 1)
        place = page * mmap.PAGESIZE
        if mine[place:place + 5] != b"child":
            os._exit(1)
        if page % 3 == 0:
            os.pwrite(other, b"written", place + 100)
        mine[place + 200:place + 206] = b"parent"
        if page % 50 == 0:
            mine.flush()
        os.write(answered[1], b".")
    os._exit(0)

for page in range(PAGES):
    place = page * mmap.PAGESIZE
    memory[place:place + 5] = b"child"
    os.write(asked[1], b".")
    if os.read(answered[0], 1) != b".":
        sys.exit("the child sees other bytes")
    if memory[place + 200:place + 206] != b"parent":
        sys.exit(f"page {page}: the child's store is not seen in the mapping")
    if os.pread(file, 6, place + 200) != b"parent":
        sys.exit(f"page {page}: the child's store is not seen by read")
    if page % 3 == 0 and memory[place + 100:place + 107] != b"written":
        sys.exit(f"page {page}: the child's write is not seen in the mapping")
if os.waitpid(child, 0)[1] != 0:
    sys.exit("the child sees other bytes")
# A store behind a new end is not kept; what is before it is.
os.ftruncate(file, 10 * mmap.PAGESIZE + 100)
os.ftruncate(file, PAGES * mmap.PAGESIZE)
if os.pread(file, 300, 10 * mmap.PAGESIZE)[100:] != bytes(200):
    sys.exit("bytes behind the end came back")
memory[50 * mmap.PAGESIZE:50 * mmap.PAGESIZE + 4] = b"last"
memory.flush()
