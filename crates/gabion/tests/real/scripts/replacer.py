"""Replaces files by renames, without any sync. Prints the number of each. Never ends by itself.

usage: replacer.py FOLDER

Every version of a file has 2,000 lines that say its number.
"""

import os
import sys

number = 0
while True:
    path = os.path.join(sys.argv[1], str(number % 5))
    with open(path + "-new", "w") as file:
        file.write(f"{number}\n" * 2000)
    os.rename(path + "-new", path)
    print(number, flush=True)
    number += 1
