"""Makes files and syncs each; prints their numbers when that is done. Never ends by itself.

usage: syncer.py FOLDER ROUND

File N is made by name, or renamed into place, or linked, or lies in a folder of its own; its
content follows from N: see promise.py.
"""

import os
import sys

from promise import content, path_of


def sync(path):
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


folder, first = sys.argv[1], int(sys.argv[2]) * 1_000_000
number = first
while True:
    path = path_of(folder, number)
    if number % 4 == 3:
        os.mkdir(os.path.dirname(path))
        sync(folder)
    made = path + ".new" if number % 4 in (1, 2) else path
    with open(made, "wb") as file:
        file.write(content(number))
        file.flush()
        os.fsync(file.fileno())
    if number % 4 == 1:
        os.rename(made, path)
    if number % 4 == 2:
        os.link(made, path)
        os.unlink(made)
    sync(os.path.dirname(path))
    print(number, flush=True)
    number += 1
