#!/bin/sh
# Takes away the mounts and daemons of a test that was killed.
#
# usage: keeper.sh FOLDER
#
# Waits for a line on standard input: then the test has done so itself. If the input ends without
# one, the test is gone, and a daemon that it has left stopped would hold up sync(2) for everybody.

read -r _ && exit
while read -r _ _ _ _ at _; do
    case $at in
    "$1"/*) umount --force --lazy "$at" ;;
    esac
done </proc/self/mountinfo
for process in /proc/[0-9]*; do
    [ "$(cat "$process/comm" 2>/dev/null)" = gabion ] || continue
    grep -qasF "$1/" "$process/cmdline" "$process/environ" && kill -KILL "${process#/proc/}"
done
rm -rf "$1"
