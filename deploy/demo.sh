#!/bin/bash
# The demo: a daemon on a free loopback port, a training, an image, and plain curl and zstd as client.
# usage: demo.sh BUILD-DIR [OUTPUT-DIR]. Called by `./dev demo`, which builds first. It trains a small
# network on synthetic data through the API, in a few minutes on two cores, and splits a frame with it.
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

echo "== data: two channels of critters, and one frame that training never sees"
# One kind of curve per channel (--pairs 1): half of each curve tells its channel by its frequency,
# the other half looks alike in both and needs context. The paper's two kinds take hours to learn.
show "$usplit" dataset critters --size 128 --pairs 1 --frames 300 --seed 1 "$out/train.tif"
show "$usplit" dataset critters --size 128 --pairs 1 --frames 1 --seed 2 "$out/truth.tif"

echo
echo "== the daemon, on a port that the system chooses"
"$usplitd" --listen 127.0.0.1:0 --port-file "$work/port" --data-dir "$work/data" >"$out/usplitd.log" 2>&1 &
daemon=$!
await 20 test -s "$work/port"
url=http://127.0.0.1:$(cat "$work/port")
await 20 curl -fsS "$url/readyz"
echo "$url is ready"

echo
echo
echo "== training through the API"
show curl -fsS -T "$out/train.tif" "$url/v1/datasets/critters/images/train.tif"
echo
cat >"$out/job.json" <<'EOF'
{"type": "train", "dataset": "critters", "model": "critters",
 "config": {"patch_size": 64, "data": {"padding": "zero"},
            "architecture": {"variant": "lean", "n_filters": 16, "z_dims": [16, 16, 16], "lc_scales": 3},
            "training": {"batch": 8, "lr": 0.004, "max_steps": 1500, "val_patches_max": 16, "seed": 1}}}
EOF
cat "$out/job.json"
show curl -fsS -o "$work/job.json" --data-binary "@$out/job.json" -H 'Content-Type: application/json' \
    "$url/v1/jobs"
job=$(sed 's/.*"id":"\([^"]*\)".*/\1/' "$work/job.json")
show curl -fsSN -o - "$url/v1/jobs/$job/events" | {
    # One line per epoch; the stream ends with the job.
    kind=
    while IFS= read -r line; do
        case $line in
        'event: '*) kind=${line#event: } ;;
        'data: '*) [ "$kind" != epoch ] || printf '%s\n' "$line" | sed -E \
            's/.*"epoch":([0-9]+),"step":([0-9]+).*"patches_per_s":([0-9.]+),"seconds_left":([0-9]+)?.*"loss":([-0-9.]+).*"val_psnr":([-0-9.]+).*/epoch \1  step \2  loss \5  validation PSNR \6 dB  \3 patches\/s  \4 s left/' ;;
        esac
    done
}
curl -fsS -o "$work/job.json" "$url/v1/jobs/$job"
grep -q '"state":"succeeded"' "$work/job.json" || { cat "$work/job.json" >&2; exit 1; }
curl -fsS -o "$out/history.jsonl" "$url/v1/jobs/$job/metrics"
curl -fsS -o "$out/critters.safetensors" "$url/v1/jobs/$job/result"

echo
echo "== the held-out frame, its channels mixed, goes in as zstd; the split image comes out"
zstd -q -f "$out/truth.tif" -o "$work/truth.tif.zst"
show curl -fsS -D "$out/reply-headers.txt" -o "$work/split.ome.tif.zst" \
    -H 'Content-Type: image/tiff' -H 'Content-Encoding: zstd' -H 'Accept-Encoding: zstd' \
    --data-binary "@$work/truth.tif.zst" \
    "$url/v1/models/critters/predict?padding=16&samples=8&seed=1&mix=0,1"
zstd -q -d -f "$work/split.ome.tif.zst" -o "$out/split.ome.tif"
tr -d '\r' <"$out/reply-headers.txt"

echo "== how well: the split, and the guess that knows nothing (the input as both channels)"
python3 deploy/demo_pictures.py guess "$out/truth.tif" "$work/guess.npy"
show "$usplit" metrics "$out/truth.tif" "$out/split.ome.tif"
show "$usplit" metrics "$out/truth.tif" "$work/guess.npy"
python3 deploy/demo_pictures.py picture "$out/truth.tif" "$out/split.ome.tif" "$out/split.png"
echo "$out/split.png: input, then truth and split of each channel"

kill -TERM "$daemon"
wait "$daemon" && status=0 || status=$?
daemon=
echo
echo "the daemon stopped with status $status; the results are in $out/"
exit "$status"
