"""Appends lines to a file, each by one write.

usage: appender.py PATH NUMBER LINES
"""

import os
import sys

path, number, lines = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
for line in range(lines):
    text = f"{number} {line} {'.' * (line * 31 % 200)}\n".encode()
    if os.write(file, text) != len(text):
        sys.exit("a line was cut")
os.close(file)
