"""Hands locks of single bytes on, round and round, among processes that do the same.

usage: ping_pong.py PATH SLOTS FIRST ROUNDS

Each process holds one slot's lock, takes that of the next one, and gives the first back; with one
slot more than processes somebody can always go on. Whoever has taken a slot counts in it.
"""

import fcntl
import os
import struct
import sys

path, slots, slot, rounds = sys.argv[1], *map(int, sys.argv[2:])
file = os.open(path, os.O_RDWR)
fcntl.lockf(file, fcntl.LOCK_EX, 1, slot)
print("holds", flush=True)
sys.stdin.readline()
for number in range(rounds):
    next = (slot + 1) % slots
    fcntl.lockf(file, fcntl.LOCK_EX, 1, next)
    (value,) = struct.unpack("<q", os.pread(file, 8, 8 * next))
    os.pwrite(file, struct.pack("<q", value + 1), 8 * next)
    fcntl.lockf(file, fcntl.LOCK_UN, 1, slot)
    slot = next
