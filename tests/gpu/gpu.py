#!/usr/bin/env python3
"""Everything that needs a GPU, in one run: `./dev gpu`.

Each part is a process with a time limit of its own and fails alone; the run goes on. The last thing
printed is a table; gpu.json in $OUT (or the folder of --out) holds the same with every measurement,
and gpu.log what the parts printed. Exit status 0: every part passed or was skipped with a reason.

The programs come from --programs, flat: what `./dev gpu-pack` leaves. The whole budget is --budget
seconds; a part that would begin after it is skipped.
"""
import argparse
import glob
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))
TESTS = os.path.dirname(HERE)
TRAIN = {"name": "tiny", "patch_size": 64,
         "architecture": {"variant": "lean", "n_filters": 16, "z_dims": [8, 8, 8, 8]},
         "training": {"batch": 4, "max_epochs": 1, "max_steps": 12, "checkpoint_steps": 4}}


class Skip(Exception):
    pass


class Failure(Exception):
    pass


def find_cudnn():
    """Where cuDNN 9 lies if not where the loader looks: beside CUDA, or in PyTorch's packages."""
    patterns = ["/usr/local/cuda*/lib*/libcudnn.so.9", "/usr/lib/*/libcudnn.so.9"]
    for python in ("python3", sys.executable):
        got = subprocess.run([python, "-c", "import sys; print('\\n'.join(sys.path))"],
                             capture_output=True, text=True)
        patterns += [p + "/nvidia/cudnn/lib/libcudnn.so.9" for p in got.stdout.split() if p]
    for pattern in patterns:
        for path in sorted(glob.glob(pattern)):
            return path
    return None


class Run:
    def __init__(self, args):
        self.args = args
        self.backend = "cpu" if args.rehearse else "cuda"
        self.gpu = {} if args.rehearse else {"US_TEST_GPU": "1"}
        self.began = time.monotonic()
        self.rows = []
        self.tmp = tempfile.mkdtemp(prefix="usplit-gpu-")
        os.makedirs(args.out, exist_ok=True)
        self.log = open(os.path.join(args.out, "gpu.log"), "w")
        self.env = dict(os.environ, USPLIT_CACHE=os.path.join(self.tmp, "cache"))
        libs = os.path.join(args.programs, "lib")
        paths = [libs] if os.path.isdir(libs) else []
        cudnn = find_cudnn()
        if cudnn is not None:
            self.env["USPLIT_CUDNN"] = cudnn
            # cuDNN's parts look for each other and for cuBLAS and NVRTC this way.
            folder = os.path.dirname(cudnn)
            paths += [folder, *glob.glob(os.path.join(folder, "../../*/lib"))]
        if paths:
            self.env["LD_LIBRARY_PATH"] = ":".join(paths + [os.environ.get("LD_LIBRARY_PATH", "")])
        self.cudnn = cudnn

    def program(self, name):
        path = os.path.join(self.args.programs, name)
        if not os.access(path, os.X_OK):
            raise Skip(f"{name} was not built")
        return path

    def run(self, command, timeout, env=None, cwd=None, ours=True):
        """stdout and stderr together; Failure with the last line where the status is not 0."""
        self.log.write("$ " + " ".join(map(str, command)) + "\n")
        self.log.flush()
        base = self.env if ours else os.environ
        p = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT, text=True, errors="replace",
                             env={**base, **(env or {})}, cwd=cwd or self.tmp, start_new_session=True)
        try:
            out = p.communicate(timeout=timeout)[0]
        except subprocess.TimeoutExpired:
            os.killpg(p.pid, signal.SIGKILL)
            out = p.communicate()[0]
            self.log.write(out)
            raise Failure(f"longer than {timeout} s") from None
        self.log.write(out)
        if p.returncode == 77:
            raise Skip(last_line(out))
        if p.returncode != 0:
            raise Failure(f"status {p.returncode}: {last_line(out)}")
        return out

    def part(self, name, function, *args):
        if self.args.only and not any(x in name for x in self.args.only):
            return
        began = time.monotonic()
        result, words, data = "pass", "", None
        try:
            if began - self.began > self.args.budget:
                raise Skip("no time left")
            words, data = function(self, *args)
        except Skip as e:
            result, words = "skip", str(e)
        except (Failure, OSError, ValueError, KeyError) as e:
            result, words = "FAIL", str(e) or type(e).__name__
        self.rows.append({"part": name, "result": result, "words": words, "data": data,
                          "seconds": round(time.monotonic() - began, 1)})
        print(f"{result:4}  {name:28}  {words[:100]}", flush=True)

    def finish(self):
        with open(os.path.join(self.args.out, "gpu.json"), "w") as f:
            json.dump({"cudnn": self.cudnn, "parts": self.rows}, f, indent=1)
        self.log.close()
        shutil.rmtree(self.tmp, ignore_errors=True)
        print("\n| part | result | s | |\n|---|---|---:|---|")
        for r in self.rows:
            print(f"| {r['part']} | {r['result']} | {r['seconds']} | {r['words'][:140]} |")
        return 1 if any(r["result"] == "FAIL" for r in self.rows) else 0


def last_line(text):
    lines = [x for x in text.strip().splitlines() if x.strip()]
    return lines[-1] if lines else "(no output)"


def digest(path):
    with open(path, "rb") as f:
        return hashlib.sha256(f.read()).hexdigest()


# ---- parts ---------------------------------------------------------------------------------------

def cmocka(run, name, limit, *args):
    """A test program of ours, on the GPU; what failed, by name."""
    try:
        out = run.run([run.program(name), *args], limit, run.gpu)
    except Failure as e:
        run.log.flush()
        with open(run.log.name) as f:
            text = f.read()
        text = text[text.rfind("$ "):]
        failed = sorted({x.split("]")[1].strip() for x in text.splitlines()
                         if x.startswith("[  FAILED  ]") and "test(s)" not in x})
        raise Failure(f"{len(failed)} failed: {', '.join(failed)}" if failed else str(e)) from None
    passed = sum(x.startswith("[       OK ]") for x in out.splitlines())
    if passed == 0:
        raise Failure("no test ran")
    return f"{passed} passed", {"passed": passed}


def device(run):
    out = run.run(["nvidia-smi", "--query-gpu=name,driver_version,memory.total",
                   "--format=csv,noheader"], 30, ours=False)
    return f"{last_line(out)}; cuDNN {run.cudnn}", None


def sanitizer(run, tool, name, *args):
    if shutil.which("compute-sanitizer") is None:
        raise Skip("no compute-sanitizer here")
    run.run(["compute-sanitizer", "--tool", tool, "--error-exitcode", "1", run.program(name), *args],
            90, {**run.gpu, "USPLIT_CUDNN_TUNE": "0"})
    return "clean", None


def make_inputs(run):
    """A dataset, a picture to split, a model: what the parts after this one use."""
    usplit = run.program("usplit")
    with open(os.path.join(run.tmp, "t.json"), "w") as f:
        json.dump(TRAIN, f)
    run.run([usplit, "dataset", "critters", "--size", 128, "--frames", 12, "--mixed", "in.tif",
             "--quiet", "c.tif"], 60)
    filters = "8" if run.args.rehearse else "64"
    run.run([usplit, "model", "init", "--variant", "regular", "--filters", filters,
             "m.safetensors"], 60)
    return "", None


def predict(run, out, *args):
    run.run([run.program("usplit"), "predict", "--model", "m.safetensors", "--samples", 2, "--seed",
             7, "--quiet", *args, "in.tif", out], 120)
    return os.path.join(run.tmp, out)


def predict_twice(run):
    a = digest(predict(run, "a.ome.tif", "--backend", run.backend))
    b = digest(predict(run, "b.ome.tif", "--backend", run.backend))
    if a != b:
        raise Failure("two runs, two results")
    return "the same bytes twice", None


def predict_like_cpu(run):
    for name, backend in (("g.ome.tif", run.backend), ("h.ome.tif", "cpu")):
        predict(run, name, "--backend", backend, "--precision", "f32")
    out = run.run([run.program("usplit"), "metrics", "--json", "g.ome.tif", "h.ome.tif"], 60)
    found = json.loads(out)
    # null: no difference at all.
    psnr = min(float("inf") if c["psnr"] is None else c["psnr"]
               for f in found["frames"] for c in f["channels"])
    if psnr <= 60:
        raise Failure(f"PSNR of f32 against the cpu backend: {psnr:.1f} dB")
    return f"{psnr:.1f} dB against the cpu backend, f32", found


def train(run, name, *args, timeout=180):
    folder = os.path.join(run.tmp, name)
    os.makedirs(folder, exist_ok=True)
    run.run([run.program("usplit"), "train", "--config", "../t.json", "--data", "../c.tif", "--out",
             "m.safetensors", "--backend", run.backend, "--quiet", *args], timeout, cwd=folder)
    return digest(os.path.join(folder, "m.safetensors"))


def train_twice(run):
    if train(run, "t1") != train(run, "t2"):
        raise Failure("two runs, two models")
    return "the same model twice", None


def kill_and_resume(run):
    script = os.path.join(TESTS, "cli", "test_durability.py")
    out = run.run([sys.executable, script, run.program("usplit"), 2], 150,
                  {"US_TEST_BACKEND": run.backend})
    return last_line(out), None


def daemon(run):
    """Serves the picture; the same bytes as the command line gives."""
    data = os.path.join(run.tmp, "data")
    os.makedirs(os.path.join(data, "models"))
    shutil.copy(os.path.join(run.tmp, "m.safetensors"), os.path.join(data, "models", "m.safetensors"))
    port_file = os.path.join(run.tmp, "port")
    p = subprocess.Popen([run.program("usplitd"), "--data-dir", data, "--listen", "127.0.0.1:0",
                          "--port-file", port_file, "--backend", run.backend],
                         stderr=run.log, env=run.env)
    try:
        for _ in range(300):
            if os.path.exists(port_file) and os.path.getsize(port_file) > 0:
                break
            if p.poll() is not None:
                raise Failure(f"usplitd ended with status {p.returncode}")
            time.sleep(0.1)
        with open(port_file) as f:
            url = f"http://127.0.0.1:{f.read().strip()}"
        with open(os.path.join(run.tmp, "in.tif"), "rb") as f:
            body = f.read()
        request = urllib.request.Request(f"{url}/v1/models/m/predict?samples=2&seed=7", body,
                                         {"Content-Type": "image/tiff"})
        with urllib.request.urlopen(request, timeout=120) as reply:
            got, server_time = reply.read(), reply.headers.get("Server-Timing", "")
    finally:
        p.send_signal(signal.SIGTERM)
        p.wait(timeout=30)
    if hashlib.sha256(got).hexdigest() != digest(predict(run, "d.ome.tif", "--backend", run.backend)):
        raise Failure("the daemon's bytes differ from the command line's")
    return f"the command line's bytes; {server_time}", None


def bench(run, name, seconds, *args):
    out = run.run([run.program(name), "--backend", run.backend, *args], seconds)
    rows = [json.loads(x) for x in out.splitlines() if x.startswith("{")]
    if not rows:
        raise Failure(last_line(out))
    return "; ".join(f"{r.get('mode', r.get('batch', ''))}: {r['patches_per_s']:.0f} patches/s"
                     if "patches_per_s" in r else f"{r['ms_per_step']:.2f} ms/step"
                     for r in rows), rows


def torch_bench(run, *args):
    out = run.run(["python3", os.path.join(HERE, "torch_gpu.py"), *args], 120, ours=False)
    row = json.loads(last_line(out))
    return (f"{row['patches_per_s']:.0f} patches/s" if "patches_per_s" in row
            else f"{row['ms_per_step']:.2f} ms/step"), row


# ---- all of them ---------------------------------------------------------------------------------

def all_parts(run):
    run.part("device", device)
    run.part("formulas", cmocka, "test_cuda_math", 60)
    run.part("convolutions", cmocka, "test_conv", 120, "cuda_*")
    run.part("ops", cmocka, "test_ops", 120, "*cuda_serial*")
    run.part("training ops", cmocka, "test_train_ops", 120, "*cuda_serial*")
    run.part("tiled prediction", cmocka, "test_cuda_predict", 60)
    run.part("parity 20.2", cmocka, "test_parity", 120, "cuda_*")
    run.part("parity 20.3", cmocka, "test_train_parity", 120, "cuda_*")
    run.part("inputs", make_inputs)
    run.part("predict twice", predict_twice)
    run.part("predict like the cpu", predict_like_cpu)
    run.part("usplitd", daemon)
    run.part("train twice", train_twice)
    for precision in ("f32", "bf16"):
        common = ["--variant", "regular", "--precision", precision]
        run.part(f"bench predict {precision}", bench, "bench_predict", 90, *common, "--batch", "0",
                 "--seconds", "3")
        run.part(f"torch predict {precision}", torch_bench, "predict", *common)
        run.part(f"bench train {precision}", bench, "bench_train", 90, *common, "--batch", "32",
                 "--steps", "20")
        run.part(f"torch train {precision}", torch_bench, "train", *common)
    run.part("kill and resume", kill_and_resume)
    for tool in ("memcheck", "racecheck", "initcheck"):
        run.part(f"sanitizer {tool}", sanitizer, tool, "test_conv", "cuda_*")
    run.part("sanitizer memcheck, frames", sanitizer, "memcheck", "test_cuda_predict")


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--programs", required=True)
    p.add_argument("--out", default=os.environ.get("OUT", "gpu-out"))
    p.add_argument("--budget", type=float, default=400.0)
    p.add_argument("--only", action="append", help="parts whose name contains this; repeatable")
    p.add_argument("--rehearse", action="store_true",
                   help="the same parts on the processor, to try this script without a GPU")
    args = p.parse_args()
    args.programs = os.path.abspath(args.programs)
    args.out = os.path.abspath(args.out)
    run = Run(args)
    all_parts(run)
    return run.finish()


if __name__ == "__main__":
    sys.exit(main())
