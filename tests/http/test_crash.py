#!/usr/bin/env python3
"""usplitd is killed, at each named point and at random ones, and must keep what it acknowledged.

Each test keeps a journal of what the daemon said yes to. After every restart all of it must be
there: uploads and models byte by byte, jobs by their id and key, none run twice to completion.

CHAOS_ROUNDS kills in Chaos (default 6; `./dev chaos ROUNDS` for many), CHAOS_SEED to repeat a run.
"""
import hashlib
import http.client
import json
import os
import random
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import unittest

from case import IMAGE, folder, model_path
from daemon import PATIENCE, USPLIT, USPLITD, Daemon

HERE = os.path.dirname(os.path.abspath(__file__))
LOST = (OSError, http.client.HTTPException)  # what a client sees of a daemon that dies
TINY = {"patch_size": 32,
        "architecture": {"variant": "lean", "z_dims": [4, 4], "lc_scales": 2, "n_filters": 4},
        "training": {"batch": 4, "max_epochs": 2, "max_steps": 30, "checkpoint_steps": 10,
                     "precision": "f32", "threads": 1}}
JOB = {"type": "train", "dataset": "d", "model": "made", "config": TINY}

stack_path = os.path.join(folder.name, "crash.tif")
subprocess.run([USPLIT, "dataset", "critters", "--size", "128", "--frames", "8", "--seed", "3",
                stack_path], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
with open(stack_path, "rb") as image_file:
    STACK = image_file.read()
with open(model_path, "rb") as model_file:
    MODEL = model_file.read()


def points():
    with open(os.path.join(HERE, "..", "..", "server", "us_failpoint.def"), encoding="ascii") as f:
        return re.findall(r'^US_FAILPOINT\("([^"]+)"', f.read(), re.M)


def has_points():
    """Whether this build looks at USPLIT_FAIL: meson option `failpoints`."""
    with open(USPLITD, "rb") as f:
        return b"USPLIT_FAIL" in f.read()


class Place:
    """A data folder on which one daemon after the other lives and dies."""

    def __init__(self, *args):
        self.args = args
        self.data_dir = os.path.join(tempfile.mkdtemp(dir=folder.name), "data")

    def start(self, fail=None, *args):
        if fail:
            os.environ["USPLIT_FAIL"] = fail
        try:
            return Daemon(*self.args, *args, data_dir=self.data_dir)
        finally:
            os.environ.pop("USPLIT_FAIL", None)

    def remove(self):
        shutil.rmtree(os.path.dirname(self.data_dir), ignore_errors=True)


def succeeded_events(d, job):
    r = d.get("/v1/jobs/%s/events" % job)
    return r.body.count(b'"state":"succeeded"')


class Points(unittest.TestCase):
    """Death at each named point."""

    def setUp(self):
        if not has_points():
            self.skipTest("this build has no fail points; ./dev test configures them")

    def scenario(self, d, journal):
        """Uploads, a model, a job to its end; what was acknowledged goes to the journal. Each step
        may be repeated with a daemon that remembers it."""
        def note(name, reply):
            self.assertIn(reply.status, (200, 201), reply.body)
            journal[name] = reply
        if "upload" not in journal:
            note("upload", d.request("PUT", "/v1/datasets/d/images/s.tif", STACK))
        if "model" not in journal:
            note("model", d.request("PUT", "/v1/models/put", MODEL))
        r = d.request("POST", "/v1/jobs", json.dumps(JOB), {"Idempotency-Key": "k"})
        if "job" in journal:
            self.assertEqual(r.json()["id"], journal["job"].json()["id"])
        note("job", r)
        job = r.json()["id"]
        deadline = time.monotonic() + 60 * PATIENCE
        while d.get("/v1/jobs/" + job).json()["state"] in ("queued", "running"):
            self.assertLess(time.monotonic(), deadline, "the job does not end")
            time.sleep(0.02)
        return job

    def check(self, d, job):
        self.assertEqual(d.get("/v1/datasets/d").json()["bytes"], len(STACK))
        self.assertEqual(d.get("/v1/models/put/file").body, MODEL)
        jobs = d.get("/v1/jobs").json()["jobs"]
        self.assertEqual([(j["id"], j["state"]) for j in jobs], [(job, "succeeded")], jobs)
        self.assertEqual(succeeded_events(d, job), 1)
        self.assertEqual(os.listdir(os.path.join(d.data_dir, "jobs")), [job])
        self.assertEqual(d.spool(), [])
        return hashlib.sha256(d.get("/v1/models/made/file").body).hexdigest()

    def die_at(self, fail):
        """The scenario with a daemon that dies at a point, and with its successor."""
        place, journal, died = Place(), {}, None
        try:
            d = place.start(fail)
            try:
                self.scenario(d, journal)
            except LOST:
                died = d.process.wait(20 * PATIENCE)
            d.stop(signal.SIGKILL)
            d.remove()
        except RuntimeError:  # while it started
            died = -signal.SIGKILL
        self.assertEqual(died, -signal.SIGKILL, "%s was never passed" % fail)
        d = place.start()
        for name in journal:  # before anything is repeated
            path = {"upload": "/v1/datasets/d", "model": "/v1/models/put",
                    "job": journal[name]["Location"]}[name]
            self.assertEqual(d.get(path).status, 200, "%s is lost" % name)
        result = self.check(d, self.scenario(d, journal))
        self.assertEqual(d.stop(), 0)
        d.remove()
        place.remove()
        return result

    def test_death_at_each_point_loses_nothing_and_repeats_nothing(self):
        """Killed at every named step of storing and training, the next daemon has all that was
        acknowledged, and ends with the model that an undisturbed one makes."""
        place = Place()
        d = place.start()
        whole = self.check(d, self.scenario(d, {}))
        d.stop()
        d.remove()
        place.remove()
        cases = [p for p in points() if p != "job.forgotten"]
        cases += ["file.renamed:2", "job.checkpoint:3"]
        cases += ["store.%s:%d" % (p, n) for p in ("before-commit", "committed") for n in (2, 4, 6)]
        for fail in cases:
            with self.subTest(fail):
                self.assertEqual(self.die_at(fail), whole)

    def test_death_while_forgetting_leaves_no_folder(self):
        """A job that left the store is swept from the disk by the next start."""
        place = Place("--keep-jobs", "0")
        d = place.start("job.forgotten")
        with self.assertRaises((KeyError, *LOST)):
            self.scenario(d, {})
            d.process.wait(20 * PATIENCE)
            d.get("/healthz")
        self.assertEqual(d.process.wait(20 * PATIENCE), -signal.SIGKILL)
        d.remove()
        self.assertEqual(len(os.listdir(os.path.join(place.data_dir, "jobs"))), 1)
        d = place.start()
        self.assertEqual(os.listdir(os.path.join(place.data_dir, "jobs")), [])
        self.assertEqual(d.get("/v1/models/made").status, 200)
        self.assertEqual(d.stop(), 0)
        d.remove()
        place.remove()

    def test_full_disk_is_507_and_passes(self):
        """While the disk is full new work is refused with 507 and everything else is served."""
        place = Place()
        d = place.start("file.written:1:full")
        self.assertEqual(d.request("PUT", "/v1/models/put", MODEL).status, 507)
        self.assertEqual(d.get("/v1/models").json()["models"], [])
        self.assertEqual(d.spool(), [])
        self.assertEqual(d.stop(), 0)
        d.remove()
        d = place.start("store.before-commit:1:full")
        self.assertEqual(d.request("PUT", "/v1/datasets/d/images/s.tif", STACK).status, 201)
        r = d.request("POST", "/v1/jobs", json.dumps(JOB))
        self.assertEqual((r.status, r.json()["type"]), (507, "urn:usplit:problem:storage-full"))
        self.assertEqual(os.listdir(os.path.join(place.data_dir, "jobs")), [])
        self.assertEqual(d.get("/v1/jobs").json()["jobs"], [])
        self.assertEqual(d.get("/readyz").status, 200)
        self.assertEqual(d.stop(), 0)
        d.remove()
        place.remove()

    def test_training_waits_for_space_and_then_ends(self):
        """A result that finds no room on the disk is not lost: the job waits and tries again."""
        place = Place()
        d = place.start("file.written:2:full")  # the first is the upload
        self.assertEqual(d.request("PUT", "/v1/datasets/d/images/s.tif", STACK).status, 201)
        job = "/v1/jobs/" + d.request("POST", "/v1/jobs", json.dumps(JOB)).json()["id"]
        d.wait(lambda: "waits for space" in d.get(job).json().get("reason", ""), "waiting", 60)
        self.assertEqual(d.get(job).json()["state"], "queued")
        self.assertEqual(d.stop(), 0)
        d.remove()
        d = place.start()
        d.wait(lambda: d.get(job).json()["state"] == "succeeded", "the end of the job", 60)
        self.assertEqual(d.get("/v1/models/made").status, 200)
        self.assertEqual(d.stop(), 0)
        d.remove()
        place.remove()

    def test_failed_fsync_ends_the_daemon_which_then_starts_well(self):
        """After a failed fsync nothing more is acknowledged; the daemon ends with status 1."""
        place = Place()
        d = place.start("store.sync:1:io")
        self.assertEqual(d.request("PUT", "/v1/datasets/d/images/s.tif", STACK).status, 201)
        self.assertEqual(d.request("POST", "/v1/jobs", json.dumps(JOB)).status, 500)
        self.assertEqual(d.process.wait(20 * PATIENCE), 1)
        self.assertIn("could not bring a write to the disk", d.log())
        d.remove()
        d = place.start()
        self.check(d, self.scenario(d, {}))
        self.assertEqual(d.stop(), 0)
        d.remove()
        place.remove()


class Chaos(unittest.TestCase):
    """Random traffic, kill -9 at random moments."""

    def setUp(self):
        seed = int(os.environ.get("CHAOS_SEED", random.randrange(10**6)))
        print("CHAOS_SEED=%d" % seed)
        self.rng = random.Random(seed)
        self.lock = threading.Lock()
        self.serial = 0
        # The journal: what was acknowledged, and what was asked without an answer.
        self.models, self.images, self.jobs = {}, {}, {}  # name -> bytes, .., key -> id
        self.unsure, self.keys, self.cancelled = set(), [], set()
        self.wrong = []

    def name(self):
        with self.lock:
            self.serial += 1
            return "n%d" % self.serial

    def call(self, d, method, path, body=None, headers=None, allowed=(200, 201, 202, 204)):
        reply = d.request(method, path, body, headers or {})
        if reply.status not in allowed:
            self.wrong.append((method, path, reply.status, reply.body[:300]))
        return reply

    def put_model(self, d, rng):
        if len(self.models) > 12:  # every start reads them all
            self.delete_model(d, rng)
            return
        name = self.name()
        data = MODEL
        self.unsure.add(name)
        self.call(d, "PUT", "/v1/models/" + name, data)
        self.unsure.discard(name)
        self.models[name] = data

    def delete_model(self, d, rng):
        with self.lock:
            if len(self.models) < 4:
                return
            name = rng.choice(sorted(self.models))
            data = self.models.pop(name)
            self.unsure.add(name)
        self.call(d, "DELETE", "/v1/models/" + name)
        self.unsure.discard(name)
        del data

    def put_image(self, d, rng):
        if len(self.images) > 40:
            return
        name = self.name() + ".tif"
        self.call(d, "PUT", "/v1/datasets/u/images/" + name, IMAGE)
        self.images[name] = IMAGE

    def post_job(self, d, rng):
        """A new key, or one whose answer was lost, or one that was answered already."""
        with self.lock:
            open_keys = [k for k in self.keys if k not in self.jobs]
            key = rng.choice(open_keys or self.keys or [None])
            if key is None or (not open_keys and rng.random() < 0.6):
                key = "k%d" % len(self.keys)
                self.keys.append(key)
        body = json.dumps(dict(JOB, model="made", replace=True))
        r = self.call(d, "POST", "/v1/jobs", body, {"Idempotency-Key": key}, (201, 429))
        if r.status != 201:
            return
        known = self.jobs.setdefault(key, r.json()["id"])
        if known != r.json()["id"]:
            self.wrong.append((key, known, r.json()["id"]))

    def cancel_job(self, d, rng):
        if not self.jobs:
            return
        job = rng.choice(sorted(self.jobs.values()))
        self.cancelled.add(job)  # whether or not an answer comes
        self.call(d, "DELETE", "/v1/jobs/" + job, allowed=(202, 409))

    def loop(self, d, seed):
        rng = random.Random(seed)
        actions = [self.put_model, self.delete_model, self.put_image, self.post_job, self.post_job,
                   lambda d, r: self.call(d, "GET", "/v1/jobs")]
        if rng.random() < 0.3:
            actions.append(self.cancel_job)
        try:
            while True:
                rng.choice(actions)(d, rng)
                time.sleep(rng.random() * 0.05)
        except LOST:
            pass

    def verify(self, d):
        """Everything in the journal is there, and nothing has happened twice."""
        listed = {m["name"]: m for m in d.get("/v1/models").json()["models"]}
        for name, data in self.models.items():
            self.assertIn(name, listed, "a stored model is lost")
            self.assertEqual(d.get("/v1/models/%s/file" % name).body, data)
        for name in listed:
            self.assertTrue(name in self.models or name in self.unsure or name == "made", name)
            self.assertEqual(listed[name].get("error"), None)
        for name, data in self.images.items():
            with open(os.path.join(d.data_dir, "datasets", "u", name), "rb") as f:
                self.assertEqual(f.read(), data, "an upload is lost")
        jobs = {j["id"]: j for j in d.get("/v1/jobs").json()["jobs"]}
        for key, job in self.jobs.items():
            if job not in jobs:  # beyond what is listed
                self.assertEqual(d.get("/v1/jobs/" + job).status, 200, "%s's job is lost" % key)
        self.assertLessEqual(len(jobs), len(self.keys))
        folders = set(os.listdir(os.path.join(d.data_dir, "jobs")))
        self.assertLessEqual(set(jobs), folders)
        self.assertLessEqual(len(folders), len(self.keys))
        for job, state in jobs.items():
            self.assertNotEqual(state["state"], "failed", state)
            if job not in self.cancelled:
                self.assertNotEqual(state["state"], "cancelled", state)

    def test_kills_at_random_moments_lose_nothing(self):
        """Rounds of traffic that end with kill -9: the journal holds in every next round, and at
        the end every job has ended once, with the model that one undisturbed training makes."""
        place = Place("--max-attempts", "1000", "--keep-jobs", "100000", "--max-queued-jobs", "8")
        d = place.start()
        self.call(d, "PUT", "/v1/datasets/d/images/s.tif", STACK)
        rounds = int(os.environ.get("CHAOS_ROUNDS", "6"))
        for i in range(rounds):
            threads = [threading.Thread(target=self.loop, args=(d, self.rng.random()))
                       for _ in range(3)]
            for t in threads:
                t.start()
            time.sleep(self.rng.random() * 1.2)
            d.stop(signal.SIGKILL)
            for t in threads:
                t.join()
            d.remove()
            self.assertEqual(self.wrong, [])
            d = place.start()
            self.verify(d)
            if (i + 1) % 50 == 0:
                print("%d kills, %d jobs, all kept" % (i + 1, len(self.jobs)), flush=True)
        d.wait(lambda: all(j["state"] not in ("queued", "running")
                           for j in d.get("/v1/jobs").json()["jobs"]), "every job's end", 120)
        self.verify(d)
        results = set()
        for j in d.get("/v1/jobs").json()["jobs"]:
            self.assertEqual(succeeded_events(d, j["id"]), int(j["state"] == "succeeded"))
            if j["state"] == "succeeded":
                results.add(j["model_sha256"])
        self.assertLessEqual(len(results), 1)
        print("%d kills, %d jobs, %d models, %d uploads: nothing lost, nothing twice"
              % (rounds, len(self.jobs), len(self.models), len(self.images)))
        self.assertEqual(d.stop(), 0)
        d.remove()
        place.remove()


if __name__ == "__main__":
    unittest.main(verbosity=2)
