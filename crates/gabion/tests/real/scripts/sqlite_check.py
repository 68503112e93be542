"""Checks a SQLite database and prints the rows it holds, as sqlite_writer.py printed them.

usage: sqlite_check.py DATABASE
"""

import sqlite3
import sys

database = sqlite3.connect(sys.argv[1], timeout=60)
found = database.execute("PRAGMA integrity_check").fetchall()
if found != [("ok",)]:
    sys.exit(f"{sys.argv[1]}: {found}")
for writer, number in database.execute("SELECT writer, number FROM rows ORDER BY writer, number"):
    print(writer, number)
