#!/bin/bash
# The demo: a daemon on a free loopback port, a model, an image, and plain curl and zstd as client.
# usage: demo.sh BUILD-DIR [OUTPUT-DIR]. Called by `./dev demo`, which builds first. The model here is
# freshly initialised, not trained: the reply shows the whole path, and its channels mean nothing yet.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

build=${1:?usage: demo.sh BUILD-DIR [OUTPUT-DIR]}
out=${2:-demo-out}
usplit=$build/usplit
usplitd=$build/usplitd
for program in "$usplit" "$usplitd"; do
    [ -x "$program" ] || { echo "demo: $program is not built" >&2; exit 1; }
done

mkdir -p "$out"
work=$(mktemp -d)
daemon=
# Whatever happens, the daemon ends and its folder goes.
cleanup() {
    if [ -n "$daemon" ]; then
        kill -TERM "$daemon" 2>/dev/null || true
        wait "$daemon" 2>/dev/null || true
    fi
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

show() { printf '\n$ %s\n' "$*"; "$@"; }

# await SECONDS COMMAND...: until the command succeeds, the daemon has died or the time is over.
await() {
    local tries=$((10 * $1))
    shift
    until "$@" >/dev/null 2>&1; do
        kill -0 "$daemon" 2>/dev/null || { cat "$out/usplitd.log" >&2; return 1; }
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || { echo "demo: no answer: $*" >&2; return 1; }
        sleep 0.1
    done
}

echo "== data and a model"
show "$usplit" dataset critters --size 256 --join 0 --frames 3 --seed 1 "$out/critters.tif"
show "$usplit" model init --variant lean --patch 64 --seed 1 --stats-from "$out/critters.tif" \
    --stats-channels 0,1 --channels "low frequency,high frequency" "$out/critters.safetensors"

echo
echo "== the daemon, on a port that the system chooses"
"$usplitd" --listen 127.0.0.1:0 --port-file "$work/port" --data-dir "$work/data" >"$out/usplitd.log" 2>&1 &
daemon=$!
await 20 test -s "$work/port"
url=http://127.0.0.1:$(cat "$work/port")
await 20 curl -fsS "$url/readyz"
echo "$url is ready"

echo
echo "== a model goes in, an image goes in as zstd, the split image comes out"
show curl -fsS -T "$out/critters.safetensors" "$url/v1/models/critters"
echo
zstd -q -f "$out/critters.tif" -o "$work/critters.tif.zst"
show curl -fsS -D "$out/reply-headers.txt" -o "$out/split.ome.tif" \
    -H 'Content-Type: image/tiff' -H 'Content-Encoding: zstd' \
    --data-binary "@$work/critters.tif.zst" \
    "$url/v1/models/critters/predict?padding=16&seed=1&mix=0,1"
tr -d '\r' <"$out/reply-headers.txt"

echo "== the same from the command line gives the same pixels"
show "$usplit" predict --model "$out/critters.safetensors" --padding 16 --seed 1 --mix 0,1 \
    "$out/critters.tif" "$out/split-cli.ome.tif"
show "$usplit" metrics "$out/split.ome.tif" "$out/split-cli.ome.tif"

kill -TERM "$daemon"
wait "$daemon" && status=0 || status=$?
daemon=
echo
echo "the daemon stopped with status $status; the results are in $out/"
exit "$status"
