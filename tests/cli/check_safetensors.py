"""Our model files against the safetensors package, both ways. Usage: check_safetensors.py USPLIT

The package opens what we write: names, shapes, types, values in range, our metadata. We accept what
the package writes, which orders tensors its own way; also in BF16 and F16 where torch is there.
Exit status 77: no safetensors package.
"""
import json
import os
import subprocess
import sys
import tempfile

try:
    import numpy as np
    import safetensors
    import safetensors.numpy
except ImportError as e:
    print("skipped:", e)
    sys.exit(77)
try:
    import safetensors.torch
    import torch
except ImportError:
    torch = None

# State-dict entries by variant (model-spec 11.1).
ENTRIES = {"vanilla": 309, "lean": 445, "regular": 445, "deep": 829}


def run(*args):
    done = subprocess.run(args, capture_output=True, text=True)
    assert done.returncode == 0, (args, done.stdout, done.stderr)
    return done.stdout


def refused(*args):
    done = subprocess.run(args, capture_output=True, text=True)
    assert done.returncode != 0, args
    return done.stderr


def package_reads_ours(usplit, path, variant):
    run(usplit, "model", "init", "--variant", variant, "--filters", "8", "--quiet", path)
    with safetensors.safe_open(path, "numpy") as f:
        meta = f.metadata()
        assert meta["format"] == "usplit-model", meta
        arch = json.loads(meta["usplit"])["architecture"]
        assert arch["family"] == "lvae" and arch["n_filters"] == 8, arch
        tensors = {name: f.get_tensor(name) for name in f.keys()}
    assert len(tensors) == ENTRIES[variant], len(tensors)
    for name, t in tensors.items():
        counter = name.endswith(".num_batches_tracked")
        assert t.dtype == (np.int64 if counter else np.float32), (name, t.dtype)
        assert counter == (t.shape == ()), (name, t.shape)
        assert np.isfinite(t).all(), name
    first = tensors["first_bottom_up.0.weight"]
    assert first.shape == (8, 1, 3, 3) and 0.3 < abs(first).max() <= 1 / 3 + 1e-6, first
    return tensors, meta


def torch_reads_ours(path, tensors):
    """torch views the file's bytes, so every tensor must lie at a multiple of its element size."""
    for name, t in safetensors.torch.load_file(path).items():
        assert (t.numpy() == tensors[name]).all(), name


def we_read_the_package(usplit, folder, tensors, meta):
    path = os.path.join(folder, "theirs.safetensors")
    safetensors.numpy.save_file(tensors, path, metadata=meta)
    run(usplit, "model", "check", path)
    safetensors.numpy.save_file(tensors, path)
    assert "__metadata__" in refused(usplit, "model", "check", path)
    short = {k: v for k, v in tensors.items() if k != "likelihood.parameter_net.bias"}
    safetensors.numpy.save_file(short, path, metadata=meta)
    assert "likelihood.parameter_net.bias is missing" in refused(usplit, "model", "check", path)


def we_read_narrow_types(usplit, folder, tensors, meta):
    path = os.path.join(folder, "narrow.safetensors")
    for dtype in (torch.bfloat16, torch.float16):
        narrow = {k: torch.from_numpy(v.copy()) for k, v in tensors.items()}
        narrow = {k: v.to(dtype) if v.is_floating_point() else v for k, v in narrow.items()}
        safetensors.torch.save_file(narrow, path, metadata=meta)
        run(usplit, "model", "check", path)


def main():
    usplit = os.path.abspath(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        for variant in ENTRIES:
            path = os.path.join(folder, variant + ".safetensors")
            tensors, meta = package_reads_ours(usplit, path, variant)
            if torch is not None:
                torch_reads_ours(path, tensors)
        we_read_the_package(usplit, folder, tensors, meta)
        if torch is not None:
            we_read_narrow_types(usplit, folder, tensors, meta)
    print("safetensors", safetensors.__version__, "and torch" if torch is not None else "")


main()
