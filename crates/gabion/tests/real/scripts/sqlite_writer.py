"""Inserts rows into a SQLite database, and prints the number of each after its commit.

usage: sqlite_writer.py DATABASE wal|delete WRITER FIRST COUNT
"""

import sqlite3
import sys

path, journal, writer, first, count = sys.argv[1:]
writer, first, count = int(writer), int(first), int(count)
database = sqlite3.connect(path, timeout=120, isolation_level=None)
database.execute(f"PRAGMA journal_mode={journal}")
# Where the commit is the deletion of the journal, FULL leaves it to the filesystem when that is kept.
database.execute("PRAGMA synchronous=EXTRA")
database.execute("CREATE TABLE IF NOT EXISTS rows (writer, number, filling, PRIMARY KEY (writer, number))")
for number in range(first, first + count):
    database.execute("BEGIN IMMEDIATE")
    filling = bytes([number % 251]) * (number * 37 % 5000)
    database.execute("INSERT INTO rows VALUES (?, ?, ?)", (writer, number, filling))
    if number % 3 == 0:
        database.execute("UPDATE rows SET filling = x'00' WHERE writer = ? AND number = ?", (writer, number - 2))
    database.execute("COMMIT")
    print(writer, number, flush=True)
