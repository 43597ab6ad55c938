#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# aio-copy beside dd, with direct I/O at several block sizes, and cp with a cold cache: alternating
# rounds, medians. Build first: swift build -c release --product aio-copy
set -eu

size=2048 directory=/var/tmp rounds=5
here=$(cd "$(dirname "$0")/../.." && pwd)
copy=$here/.build/release/aio-copy
usage="usage: compare.sh [--size MiB] [--directory DIR] [--rounds N]"
while [ $# -gt 0 ]; do
  [ $# -ge 2 ] || { echo "$usage" >&2; exit 64; }
  case $1 in
    --size) size=$2 ;;
    --directory) directory=$2 ;;
    --rounds) rounds=$2 ;;
    *) echo "$usage" >&2; exit 64 ;;
  esac
  shift 2
done
[ -x "$copy" ] || { echo "$copy is missing: swift build -c release --product aio-copy" >&2; exit 1; }

work=$(mktemp -d "$directory/aio-copy-compare-XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
# Bytes that no disk compresses.
dd if=/dev/urandom of="$work/source" bs=1M count="$size" conv=fsync status=none

one() {
  case $1 in
    aio-copy) "$copy" --quiet "$work/source" "$work/copy" ;;
    cp) cp --reflink=never "$work/source" "$work/copy" ;;
    dd-*) dd if="$work/source" of="$work/copy" iflag=direct oflag=direct bs="${1#dd-}" status=none ;;
  esac
}

ways="aio-copy dd-64k dd-1M dd-4M dd-16M cp"
[ -w /proc/sys/vm/drop_caches ] || echo "not root: the cache is not dropped, and cp may read from it" >&2
round=0
while [ "$round" -lt "$rounds" ]; do
  round=$((round + 1))
  for way in $ways; do
    rm -f "$work/copy"
    # What came before is none of this one's business.
    sync
    [ ! -w /proc/sys/vm/drop_caches ] || echo 3 >/proc/sys/vm/drop_caches
    start=$(date +%s%N)
    one "$way"
    end=$(date +%s%N)
    echo "$way $(((end - start) / 1000))" >>"$work/times"
  done
done

echo "$size MiB in $directory, $rounds rounds, median MiB/s (cp: into the cache, not to the disk)"
for way in $ways; do
  grep "^$way " "$work/times" | sort -k2n | awk -v size="$size" '
    { t[NR] = $2 } END { m = NR % 2 ? t[(NR + 1) / 2] : (t[NR / 2] + t[NR / 2 + 1]) / 2
    print $1, size * 1e6 / m }'
done | awk '
  NR == 1 { ours = $2 }
  { printf "%-10s %8.0f", $1, $2; if (NR > 1) printf "   aio-copy is %.2f of it", ours / $2 * 1; print "" }' |
  sed 's/aio-copy is \(.*\) of it/aio-copy: \1 times that/'
