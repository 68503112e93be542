#!/bin/sh
# Takes away the mounts and daemons of a test that was killed.
#
# usage: keeper.sh PROCESS FOLDER
#
# A daemon that a killed test has left stopped would hold up sync(2) for everybody. Who ends in
# order has cleaned up and kills this. That a process has ended is seen in its status: what it
# leaves open may be held by children that hang, and most other files in /proc wait for those.

while
    state=$(sed -n 's/^State:[[:space:]]*\(.\).*/\1/p' "/proc/$1/status" 2>/dev/null)
    [ -n "$state" ] && [ "$state" != Z ]
do
    sleep 1
done
while read -r _ _ _ _ at _; do
    case $at in
    "$2"/*) umount --force --lazy --no-canonicalize "$at" ;;
    esac
done </proc/self/mountinfo
for process in /proc/[0-9]*; do
    [ "$(cat "$process/comm" 2>/dev/null)" = gabion ] || continue
    grep -qasF "$2/" "$process/cmdline" "$process/environ" && kill -KILL "${process#/proc/}"
done
rm -rf "$2"
