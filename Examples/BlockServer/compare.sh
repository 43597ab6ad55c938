#!/usr/bin/env bash
# aio-nbd beside qemu-nbd (--aio=native --cache=none), in one run: fio's nbd engine, the same file,
# one server after the other within each round. Prints the medians over the rounds: requests per
# second of each, the ratio, and the processor time of each server per request, in microseconds.
#
#   swift build -c release --product aio-nbd
#   Examples/BlockServer/compare.sh [--rounds 5] [--seconds 3] [--size 1g] [--directory /var/tmp]
#                                   [--connections 1] [--before PATH] [OPTION-OF-AIO-NBD VALUE…]
#                                   [JOB…]
#
# With --before, beside another build of aio-nbd, as of an older version, and not qemu-nbd.
# With more connections than one, each has the job's depth; `--loops 4` is an option of aio-nbd.
#
# Jobs: randread-1 randread-32 randwrite-1 randwrite-32 flush-32 read-64k write-64k
set -euo pipefail
cd "$(dirname "$0")/../.."

rounds=5 seconds=3 size=1g directory=/var/tmp connections=1 jobs=() options=()
other=qemu-nbd before=
while [ $# -gt 0 ]; do
  case $1 in
    --rounds) rounds=$2; shift 2 ;;
    --seconds) seconds=$2; shift 2 ;;
    --size) size=$2; shift 2 ;;
    --directory) directory=$2; shift 2 ;;
    --connections) connections=$2; shift 2 ;;
    --before) other=before before=$(realpath "$2"); shift 2 ;;
    --*) options+=("$1" "$2"); shift 2 ;;
    *) jobs+=("$1"); shift ;;
  esac
done
[ ${#jobs[@]} -gt 0 ] ||
  jobs=(randread-1 randread-32 randwrite-1 randwrite-32 flush-32 read-64k write-64k)
for program in qemu-nbd fio; do
  command -v $program >/dev/null || { echo "$program is not installed" >&2; exit 1; }
done
aio_nbd=$(swift build -c release --show-bin-path)/aio-nbd
[ -x "$aio_nbd" ] || { echo "first: swift build -c release --product aio-nbd" >&2; exit 1; }

work=$(mktemp -d "$directory/aio-nbd-compare-XXXXXX")
trap 'kill -9 ${server:-} 2>/dev/null || true; rm -rf "$work"' EXIT
# Written blocks, no holes: what is measured is the servers, not the filesystem's allocator.
fio --name=fill --filename="$work/disk" --size="$size" --rw=write --bs=1m --direct=1 \
  --ioengine=libaio --iodepth=4 --output=/dev/null

ticks() { awk '{ print $14 + $15 }' "/proc/$1/stat"; }

# start SERVER: sets $server
start() {
  rm -f "$work/socket"
  local program=$aio_nbd
  if [ "$1" = before ]; then program=$before; fi
  if [ "$1" != qemu-nbd ]; then
    "$program" serve "$work/disk" --unix "$work/socket" --log-level error "${options[@]}" \
      >/dev/null &
  else
    qemu-nbd --aio=native --cache=none --format=raw --persistent --shared=0 \
      --export-name=disk --socket="$work/socket" "$work/disk" >/dev/null &
  fi
  server=$!
  for _ in $(seq 250); do [ -S "$work/socket" ] && return; sleep 0.02; done
  echo "$1 does not start" >&2
  exit 1
}

# run SERVER JOB: appends "requests/s us/request" to a file
run() {
  local parameters
  case $2 in
    randread-1) parameters="--rw=randread --bs=4k --iodepth=1" ;;
    randread-32) parameters="--rw=randread --bs=4k --iodepth=32" ;;
    randwrite-1) parameters="--rw=randwrite --bs=4k --iodepth=1" ;;
    randwrite-32) parameters="--rw=randwrite --bs=4k --iodepth=32" ;;
    flush-32) parameters="--rw=randwrite --bs=4k --iodepth=32 --fsync=32" ;;
    read-64k) parameters="--rw=read --bs=64k --iodepth=8" ;;
    write-64k) parameters="--rw=write --bs=64k --iodepth=8" ;;
    *) echo "no job '$2'" >&2; exit 1 ;;
  esac
  start "$1"
  local before after
  before=$(ticks $server)
  # shellcheck disable=SC2086
  timeout $((seconds + 30)) fio --name="$2" --ioengine=nbd --uri="nbd+unix:///disk?socket=$work/socket" --size="$size" \
    --numjobs="$connections" --group_reporting --time_based --runtime="$seconds" $parameters --output-format=terse --output="$work/fio"
  after=$(ticks $server)
  # Terse: fields 8 and 49 are reads and writes per second, 9 and 50 the milliseconds.
  awk -F';' -v cpu=$((after - before)) -v tick="$(getconf CLK_TCK)" '
    { requests = ($8 * $9 + $49 * $50) / 1000
      printf("%.0f %.2f\n", $8 + $49, (requests > 0) ? cpu / tick * 1e6 / requests : 0) }' \
    "$work/fio" >>"$work/$1.$2"
  kill $server
  wait $server || true
}

median() { sort -g "$1" | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }

for round in $(seq "$rounds"); do
  for job in "${jobs[@]}"; do
    # Whoever is first in one round is second in the next.
    if [ $((round % 2)) = 1 ]; then run aio-nbd "$job"; run "$other" "$job"
    else run "$other" "$job"; run aio-nbd "$job"; fi
  done
done

printf '| %-12s | %8s | %8s | %5s | %13s | %14s |\n' \
  job aio-nbd "$other" ratio "aio-nbd us" "$other us"
echo '| --- | ---: | ---: | ---: | ---: | ---: |'
for job in "${jobs[@]}"; do
  for server_name in aio-nbd "$other"; do
    cut -d' ' -f1 "$work/$server_name.$job" >"$work/rate"
    cut -d' ' -f2 "$work/$server_name.$job" >"$work/cpu"
    rates+=("$(median "$work/rate")") cpus+=("$(median "$work/cpu")")
  done
  printf '| %-12s | %8s | %8s | %5s | %13s | %14s |\n' "$job" "${rates[0]}" "${rates[1]}" \
    "$(awk "BEGIN { printf \"%.2f\", ${rates[0]} / ${rates[1]} }")" "${cpus[0]}" "${cpus[1]}"
  rates=() cpus=()
done
