"""Checks that a file made by syncer.py is there, with all of its bytes.

usage: promise.py FOLDER NUMBER...
"""

import os
import sys


def path_of(folder, number):
    if number % 4 == 3:
        return os.path.join(folder, f"folder {number}", "file")
    return os.path.join(folder, f"file {number}")


def content(number):
    return (f"{number:09d}\n" * (number * 7919 % 3000)).encode()


if __name__ == "__main__":
    for number in map(int, sys.argv[2:]):
        path = path_of(sys.argv[1], number)
        with open(path, "rb") as file:
            if file.read() != content(number):
                sys.exit(f"{path} does not hold what was synced")
        if os.path.exists(path + ".new"):
            sys.exit(f"{path}.new is back")
