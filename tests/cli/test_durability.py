"""Training that is killed, or finds its disk full, and goes on: through the real program, on the
`cpu` backend or that of US_TEST_BACKEND. It must end with the same bytes as a run that nobody disturbed.

usage: test_durability.py USPLIT [ROUNDS]. ROUNDS (3) kills at random moments, spread over the whole
length of a run: while data are read, in steps, in validation, while a checkpoint or the model is
written. What was killed is begun again or resumed by the line that a user would type. `./dev
durability` runs more of them. A disk that fills is a small tmpfs in a mount namespace of our own;
where the machine does not allow one, that part is skipped and says so.
"""
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

USPLIT = ""
BACKEND = os.environ.get("US_TEST_BACKEND", "cpu")
ROUNDS = 3
SEED = 20
# 4 filters, a checkpoint every second step: many moments at which something is half written.
CONFIG = {"name": "tiny", "patch_size": 64,
          "architecture": {"variant": "lean", "n_filters": 4, "z_dims": [4, 4, 4, 4]},
          "data": {"padding": "zero", "augment": True, "mixing": [[0.3, 0.7], [0.3, 0.7]]},
          "training": {"batch": 2, "max_epochs": 8, "precision": "f32", "threads": 2,
                       "checkpoint_steps": 2}}
LEFT = ["m.safetensors", "m.history.jsonl", "m.ckpt/last.usplit-ckpt",
        "m.ckpt/previous.usplit-ckpt"]
NAMESPACE = ["unshare", "--mount", "--map-root-user"]


def digests(folder):
    found = {}
    for name in LEFT:
        with open(os.path.join(folder, name), "rb") as f:
            found[name] = hashlib.sha256(f.read()).hexdigest()
    return found


class Durability(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.tmp = tempfile.TemporaryDirectory(prefix="usplit-durability-")
        cls.data = os.path.join(cls.tmp.name, "c.tif")
        cls.config = os.path.join(cls.tmp.name, "t.json")
        subprocess.run([USPLIT, "dataset", "critters", "--size", "96", "--frames", "12", "--quiet",
                        cls.data], check=True, timeout=60)
        with open(cls.config, "w") as f:
            json.dump(CONFIG, f)
        cls.whole = cls.folder("whole")
        began = time.monotonic()
        subprocess.run(cls.line(), cwd=cls.whole, check=True, timeout=300)
        cls.lasts_s = time.monotonic() - began
        cls.want = digests(cls.whole)

    @classmethod
    def tearDownClass(cls):
        cls.tmp.cleanup()

    @classmethod
    def folder(cls, name):
        path = os.path.join(cls.tmp.name, name)
        os.makedirs(path)
        return path

    @classmethod
    def line(cls, *more, out="m.safetensors"):
        return [USPLIT, "train", "--config", cls.config, "--data", cls.data, "--out", out,
                "--backend", BACKEND, "--quiet", *more]

    def next_line(self, folder):
        """What a user types after a kill: resume if there is anything to resume."""
        if any(os.path.exists(os.path.join(folder, name)) for name in LEFT[2:]):
            return self.line("--resume", LEFT[2])
        return self.line()

    def killed_until_done(self, folder, moments):
        """Runs, killed after each of the moments (s) in turn, then to the end. Returns how many
        kills came before the end, and how many runs began from a checkpoint."""
        kills = resumed = 0
        for moment in moments:
            line = self.next_line(folder)
            resumed += "--resume" in line
            p = subprocess.Popen(line, cwd=folder, stderr=subprocess.PIPE)
            try:
                err = p.communicate(timeout=moment)[1]
            except subprocess.TimeoutExpired:
                p.send_signal(signal.SIGKILL)
                err = p.communicate()[1]
            if p.returncode == 0:
                break
            self.assertEqual(p.returncode, -signal.SIGKILL, err.decode(errors="replace"))
            kills += 1
        line = self.next_line(folder)
        resumed += "--resume" in line
        done = subprocess.run(line, cwd=folder, capture_output=True, timeout=300)
        self.assertEqual(done.returncode, 0, done.stderr.decode(errors="replace"))
        return kills, resumed

    def test_runs_killed_at_random_moments_end_with_the_same_bytes(self):
        rng = random.Random(SEED)
        kills = resumed = 0
        for i in range(ROUNDS):
            folder = self.folder("killed%d" % i)
            # One early or late kill, and some that each leave a part of the run.
            moments = [rng.uniform(0.01, 1.1) * self.lasts_s]
            moments += [rng.uniform(0.1, 0.6) * self.lasts_s for _ in range(rng.randrange(3))]
            k, r = self.killed_until_done(folder, moments)
            self.assertEqual(digests(folder), self.want,
                             "round %d, seed %d, killed after %s s" % (i, SEED, moments))
            kills += k
            resumed += r
            shutil.rmtree(folder)
        print("%d rounds of %.1f s: %d kills, %d runs resumed" %
              (ROUNDS, self.lasts_s, kills, resumed), file=sys.stderr)
        self.assertGreater(kills, 0)
        self.assertGreater(resumed, 0)

    def on_a_small_disk(self, script, out="m.safetensors"):
        """Runs a shell script in a folder that is a tmpfs of its own; skips where none can be."""
        disk = tempfile.mkdtemp(dir=self.tmp.name)
        if shutil.which("unshare") is None:
            self.skipTest("unshare is not installed: no disk of our own to fill")
        mount = 'mount -t tmpfs -o size="$SIZE" none "$1" || exit 99; cd "$1" || exit 99\n'
        files = [os.path.join(self.whole, name) for name in LEFT]
        room = sum(map(os.path.getsize, files[2:]))
        # Room for the checkpoints and half of the one that is written beside them.
        env = dict(os.environ, SIZE=str(room + os.path.getsize(files[2]) // 2))
        done = subprocess.run([*NAMESPACE, "sh", "-c", mount + script, "sh", disk,
                               *self.line(out=out)],
                              capture_output=True, timeout=300, env=env)
        err = done.stderr.decode(errors="replace")
        if done.returncode == 99 or "unshare" in err.split("\n")[0]:
            self.skipTest("no mount namespace on this machine: " + err.strip())
        return done.returncode, done.stdout.decode(), err

    def test_full_disk_keeps_the_last_checkpoint_and_resumes_once_there_is_room(self):
        script = '''shift
"$@"
echo "first $?"
ls m.ckpt >&2
mount -o remount,size=64m . || exit 99
"$@" --resume m.ckpt/last.usplit-ckpt || exit 1
sha256sum m.safetensors m.history.jsonl m.ckpt/last.usplit-ckpt
'''
        status, out, err = self.on_a_small_disk(script)
        self.assertEqual(status, 0, err)
        lines = out.strip().split("\n")
        self.assertEqual(lines[0], "first 1", err)
        self.assertIn("m.ckpt/last.usplit-ckpt.writing: writing: No space left on device", err)
        self.assertIn("make room, then resume", err)
        self.assertIn("continue with:", err)
        self.assertEqual({line.split()[1]: line.split()[0] for line in lines[1:]},
                         {name: self.want[name] for name in LEFT[:3]})

    def run_with_little_room_for_the_model(self, others):
        """Checkpoints have room, the folder of model and history has 64 KiB, of which others take
        some. stderr of the run."""
        script = '''shift
mkdir full out || exit 99
mount -t tmpfs -o size=64k none full || exit 99
head -c %d /dev/zero >full/.others
mount -o remount,size=64m . || exit 99
"$@" --checkpoint-dir out
echo "first $?"
ls full
mount -o remount,size=64m full || exit 99
"$@" --checkpoint-dir out --resume out/last.usplit-ckpt || exit 1
sha256sum full/m.safetensors full/m.history.jsonl out/last.usplit-ckpt | cut -d " " -f 1
''' % others
        status, out, err = self.on_a_small_disk(script, "full/m.safetensors")
        self.assertEqual(status, 0, err)
        lines = out.split("\n")
        self.assertEqual(lines[:2], ["first 1", "m.history.jsonl"], err)
        self.assertEqual(lines[2:-1], [self.want[name] for name in LEFT[:3]])
        self.assertIn("No space left on device", err)
        self.assertIn("continue with:", err)
        return err

    def test_full_disk_under_the_model_loses_nothing_of_the_run(self):
        err = self.run_with_little_room_for_the_model(0)
        self.assertIn("full/m.safetensors", err.split("continue with:")[0])

    def test_full_disk_under_the_history_loses_nothing_of_the_run(self):
        err = self.run_with_little_room_for_the_model(65536)
        self.assertIn("full/m.history.jsonl: No space left on device; the last checkpoint is kept",
                      err)


if __name__ == "__main__":
    USPLIT = os.path.abspath(sys.argv.pop(1))
    if len(sys.argv) > 1 and sys.argv[1].isdigit():
        ROUNDS = int(sys.argv.pop(1))
    unittest.main()
