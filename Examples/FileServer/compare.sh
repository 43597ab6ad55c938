#!/usr/bin/env bash
# Compares aio-httpd with nginx (sendfile), each with one worker, by wrk on the same machine: 4 KiB
# ranges of a cached file, and whole files of 64 KiB, one server after the other in each round. Prints
# medians: answers per second, and the server's processor time for each in microseconds.
#
#   Examples/FileServer/compare.sh [--rounds N] [--seconds N]
#
# Needs nginx and wrk, and a release build of aio-httpd, which it makes.
set -euo pipefail
cd "$(dirname "$0")/../.."

rounds=3 seconds=2
while [ $# -gt 0 ]; do
  case "$1" in
    --rounds) rounds=$2 ;;
    --seconds) seconds=$2 ;;
    *) echo "unknown option $1: --rounds N, --seconds N" >&2; exit 2 ;;
  esac
  shift 2
done
for tool in nginx wrk; do
  command -v "$tool" >/dev/null || { echo "$tool is missing: apt-get install $tool" >&2; exit 1; }
done
swift build -c release --product aio-httpd >&2

work=$(mktemp -d /var/tmp/aio-httpd.XXXXXX)
chmod 755 "$work"
trap 'kill $(jobs -p) 2>/dev/null; wait 2>/dev/null; rm -rf "$work"' EXIT
mkdir "$work/www" "$work/www/small"
head -c 1073741824 /dev/zero >"$work/www/big"
for number in $(seq 0 1999); do head -c 65536 /dev/zero >"$work/www/small/$number"; done
cat "$work"/www/big "$work"/www/small/* >/dev/null

cat >"$work/nginx.conf" <<CONF
worker_processes 1; daemon off; pid $work/nginx.pid; error_log $work/nginx.log;
user root;
events { worker_connections 1024; }
http {
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000000;
  client_body_temp_path $work/body; proxy_temp_path $work/proxy; fastcgi_temp_path $work/fastcgi;
  uwsgi_temp_path $work/uwsgi; scgi_temp_path $work/scgi;
  server { listen 127.0.0.1:18080; root $work/www; }
}
CONF
cat >"$work/ranges.lua" <<'LUA'
request = function()
  local first = math.random(0, 262143) * 4096
  return wrk.format("GET", "/big", {["Range"] = "bytes=" .. first .. "-" .. first + 4095})
end
LUA
cat >"$work/small.lua" <<'LUA'
request = function() return wrk.format("GET", "/small/" .. math.random(0, 1999)) end
LUA

nginx -p "$work" -c "$work/nginx.conf" &
.build/release/aio-httpd "$work/www" --port 18081 >"$work/aio.log" 2>&1 &
aio=$!
until curl -s -o /dev/null http://127.0.0.1:18080/small/0 &&
  curl -s -o /dev/null http://127.0.0.1:18081/small/0; do :; done
worker=$(pgrep -P "$(cat "$work/nginx.pid")")

# Ticks of a process, user and system.
ticks() { awk '{print $14 + $15}' "/proc/$1/stat"; }
per_second=$(getconf CLK_TCK)

# measure PORT PID CONNECTIONS SCRIPT: "rate microseconds"
measure() {
  local before after rate
  before=$(ticks "$2")
  rate=$(wrk -t1 -c"$3" -d"${seconds}s" -s "$work/$4.lua" "http://127.0.0.1:$1/" |
    awk '/requests in/{split($0, part, " "); count=part[1]} /Requests\/sec/{print $2, count}')
  after=$(ticks "$2")
  awk -v rate="$rate" -v ticks="$((after - before))" -v hz="$per_second" \
    'BEGIN{split(rate, part, " "); printf "%.0f %.1f\n", part[1], ticks / hz * 1e6 / part[2]}'
}
median() { sort -g | awk '{all[NR]=$1} END{print all[int((NR + 1) / 2)]}'; }

printf '%-34s %16s %16s %7s\n' "" "aio-httpd" "nginx" "ratio"
for job in "ranges 1" "ranges 32" "small 1" "small 32"; do
  read -r script connections <<<"$job"
  : >"$work/a"; : >"$work/n"
  for _ in $(seq "$rounds"); do
    measure 18081 "$aio" "$connections" "$script" >>"$work/a"
    measure 18080 "$worker" "$connections" "$script" >>"$work/n"
  done
  a=$(cut -d' ' -f1 "$work/a" | median); n=$(cut -d' ' -f1 "$work/n" | median)
  printf '%-34s %8s, %5s us %8s, %5s us %7.2f\n' "$script, $connections connections" \
    "$a" "$(cut -d' ' -f2 "$work/a" | median)" "$n" "$(cut -d' ' -f2 "$work/n" | median)" \
    "$(awk -v a="$a" -v n="$n" 'BEGIN{print a / n}')"
done
