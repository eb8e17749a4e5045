#!/usr/bin/env python3
"""Training over HTTP, the whole way: data set, job, events, metrics, result, prediction with it.

Each test begins with the sentence that it proves.
"""
import http.client
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import unittest

from case import folder, tiffpy, zstd
from daemon import PATIENCE, USPLIT, Daemon

FRAMES = 8
TINY = {"patch_size": 32,
        "architecture": {"variant": "lean", "z_dims": [4, 4], "lc_scales": 2, "n_filters": 4},
        "training": {"batch": 4, "max_epochs": 2, "max_steps": 6, "precision": "f32", "threads": 1}}
ENDLESS = dict(TINY, training=dict(TINY["training"], max_steps=0, max_epochs=1000000))

stack_path = os.path.join(folder.name, "critters.tif")
subprocess.run([USPLIT, "dataset", "critters", "--size", "128", "--frames", str(FRAMES), "--seed",
                "3", stack_path], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
with open(stack_path, "rb") as image_file:
    STACK = image_file.read()


def body(dataset="d", model="trained", config=None, **more):
    return json.dumps(dict({"type": "train", "dataset": dataset, "model": model,
                            "config": TINY if config is None else config}, **more))


class Jobs(unittest.TestCase):
    def setUp(self):
        self.d = Daemon("--max-queued-jobs", "2")
        self.assertEqual(self.put("d", "critters.tif", STACK).status, 201)

    def tearDown(self):
        status, log = self.d.stop(), self.d.log()
        self.d.remove()
        self.assertEqual(status, 0, log[-4000:])

    def put(self, dataset, file, data, **headers):
        return self.d.request("PUT", "/v1/datasets/%s/images/%s" % (dataset, file), data,
                              {k.replace("_", "-"): v for k, v in headers.items()})

    def post(self, text, **headers):
        names = {k.replace("_", "-"): v for k, v in headers.items()}
        return self.d.request("POST", "/v1/jobs", text,
                              dict({"Content-Type": "application/json"}, **names))

    def start(self, *args, **kw):
        r = self.post(body(*args, **kw))
        self.assertEqual(r.status, 201, r.body)
        self.assertEqual(r["Location"], "/v1/jobs/" + r.json()["id"])
        return r.json()["id"]

    def job(self, job):
        return self.d.get("/v1/jobs/" + job).json()

    def wait_for(self, job, *states, seconds=60):
        self.d.wait(lambda: self.job(job)["state"] in states, "job in " + "/".join(states), seconds)
        return self.job(job)

    def events(self, job, last=None):
        """All events of a job until the daemon ends the stream: (id, kind, data)."""
        headers = {} if last is None else {"Last-Event-ID": str(last)}
        r = self.d.request("GET", "/v1/jobs/%s/events" % job, headers=headers)
        self.assertEqual(r["Content-Type"], "text/event-stream; charset=utf-8")
        found = []
        for block in r.body.decode().split("\n\n"):
            fields = dict(line.split(": ", 1) for line in block.splitlines() if line[0] != ":")
            if fields:
                found.append((int(fields["id"]), fields["event"], json.loads(fields["data"])))
        return found

    def test_whole_way_from_data_to_prediction(self):
        """A data set, a job, its events and history, and a prediction with the model it made."""
        r = self.d.get("/v1/datasets/d").json()
        self.assertEqual(r["files"][0]["shape"], {"t": FRAMES, "z": 1, "c": 2, "h": 128, "w": 128})
        self.assertEqual(r["bytes"], len(STACK))
        job = self.start()
        events = self.events(job)
        done = self.job(job)
        self.assertEqual(done["state"], "succeeded", done)
        self.assertEqual(done["progress"]["step"], 6)
        self.assertIn("val_psnr", done["metrics"])
        ids = [e[0] for e in events]
        self.assertEqual(ids, list(range(1, len(ids) + 1)))
        kinds = [e[1] for e in events]
        for kind in ("state", "step", "epoch", "checkpoint"):
            self.assertIn(kind, kinds)
        self.assertEqual([e[2]["state"] for e in events if e[1] == "state"],
                         ["queued", "running", "succeeded"])
        self.assertEqual(self.events(job, ids[2]), events[3:])
        self.assertEqual(self.events(job, 10**6), events)
        self.assertEqual(self.events(job, ids[-1]), [])
        lines = self.d.get("/v1/jobs/%s/metrics" % job).body.decode().splitlines()
        self.assertTrue(lines and all(json.loads(line) for line in lines))
        result = self.d.get("/v1/jobs/%s/result" % job)
        self.assertEqual(result.body, self.d.get("/v1/models/trained/file").body)
        model = self.d.get("/v1/models/trained").json()
        self.assertEqual(model["sha256"], done["model_sha256"])
        image = tiffpy.make_tiff([tiffpy.plane(64, 64, "H", lambda y, x: y + x)], 64, 64)
        reply = self.d.predict(image, model="trained")
        self.assertEqual(reply.status, 200, reply.body)
        self.assertEqual(len(tiffpy.read_ome(reply.body)[0]), 2)

    def test_same_seed_trains_the_same_model(self):
        """Two jobs with one configuration end with equal weights and name each its own model."""
        a, b = self.start(model="a"), self.start(model="b")
        for job in (a, b):
            self.assertEqual(self.wait_for(job, "succeeded", "failed")["state"], "succeeded")
        image = tiffpy.make_tiff([tiffpy.plane(64, 64, "H", lambda y, x: y + x)], 64, 64)
        pages = [tiffpy.read_tiff(self.d.predict(image, model=m).body) for m in "ab"]
        self.assertEqual(pages[0][0].data, pages[1][0].data)

    def test_cancel_of_a_queued_and_of_a_running_job(self):
        """A cancelled queued job never runs; a running one stops soon and keeps a checkpoint."""
        first = self.start(model="a", config=ENDLESS)
        second = self.start(model="b", config=ENDLESS)
        self.wait_for(first, "running")
        self.d.wait(lambda: self.job(first).get("progress", {}).get("step", 0) > 0, "a step")
        self.assertEqual(self.job(second)["queue_position"], 1)
        self.assertEqual(self.d.request("DELETE", "/v1/jobs/" + second).status, 202)
        self.assertEqual(self.job(second)["state"], "cancelled")
        self.assertIsNone(self.job(second)["started"])
        self.assertEqual(self.d.request("DELETE", "/v1/jobs/" + first).status, 202)
        self.assertEqual(self.wait_for(first, "cancelled", "failed", seconds=10)["state"],
                         "cancelled")
        self.assertIn("last.usplit-ckpt",
                      os.listdir(os.path.join(self.d.data_dir, "jobs", first)))
        self.assertEqual(self.d.request("DELETE", "/v1/jobs/" + first).status, 409)
        self.assertEqual(self.d.get("/v1/jobs/%s/result" % first).status, 404)
        self.assertEqual(self.d.get("/v1/models").json()["models"], [])

    def test_bad_jobs_are_refused_with_the_reason(self):
        """What is wrong with a job is said at once, naming the member."""
        bad = dict(TINY, training={"batch": 0})
        cases = [(body(config=bad), 422, "training.batch"),
                 (body(config={"learning": 1}), 422, "learning"),
                 (body(config=[]), 422, "config"), (body(model="../x"), 422, "model"),
                 (body(extra=1), 422, "extra"), ("{", 422, "line 1"), ("[]", 422, "object"),
                 (json.dumps({"type": "sing"}), 422, "sing"),
                 (body(dataset="nothing"), 404, "nothing"),
                 (body(config=dict(TINY, data={"channels": [0, 7]})), 422, "channel 7")]
        for text, status, word in cases:
            with self.subTest(text[:80]):
                r = self.post(text)
                self.assertEqual(r.status, status, r.body)
                self.assertIn(word, r.json()["error"])
                self.assertNotIn(self.d.data_dir, r.json()["error"])
        self.assertEqual(self.d.get("/v1/jobs").json()["jobs"], [])
        self.assertFalse(self.d.get("/v1/datasets").json()["datasets"][0]["in_use"])

    def test_idempotency_key_queue_limit_and_taken_names(self):
        """A repeated key gives the same job, a full queue 429, a taken model name 409."""
        first = self.post(body(model="a", config=ENDLESS), Idempotency_Key="k1").json()["id"]
        again = self.post(body(model="a", config=ENDLESS), Idempotency_Key="k1")
        self.assertEqual((again.status, again.json()["id"]), (201, first))
        other = self.post(body(model="b", config=ENDLESS), Idempotency_Key="k1")
        self.assertEqual(other.status, 422, other.body)
        self.assertEqual(self.post(body(model="a")).status, 409)
        self.wait_for(first, "running")
        for model in ("b", "c"):
            self.start(model=model)
        full = self.post(body(model="e"))
        self.assertEqual((full.status, full["Retry-After"] is not None), (429, True))
        self.assertEqual(len(self.d.get("/v1/jobs").json()["jobs"]), 3)

    def test_data_set_in_use_stays_as_it_is(self):
        """While a job holds a data set nothing in it can be changed; afterwards it can go."""
        job = self.start(config=ENDLESS)
        for method, path in (("DELETE", "/v1/datasets/d"),
                             ("DELETE", "/v1/datasets/d/images/critters.tif")):
            self.assertEqual(self.d.request(method, path).status, 409)
        self.assertEqual(self.put("d", "critters.tif", STACK).status, 409)
        self.assertEqual(self.d.request("DELETE", "/v1/jobs/" + job).status, 202)
        self.wait_for(job, "cancelled")
        self.assertEqual(self.d.request("DELETE", "/v1/datasets/d/images/no.tif").status, 404)
        self.assertEqual(self.d.request("DELETE", "/v1/datasets/d").status, 204)
        self.assertEqual(self.d.get("/v1/datasets/d").status, 404)

    def test_files_are_verified_before_they_are_stored(self):
        """No image, a wrong name, broken splits: refused, and nothing is stored."""
        for file, data, status in (("x.tif", b"no image", 422), ("x.txt", STACK, 422),
                                   (".x.tif", STACK, 422), ("splits.json", b"{", 422),
                                   ("splits.json", b"[]", 422)):
            with self.subTest(file):
                self.assertEqual(self.put("new", file, data).status, status)
        self.assertEqual([d["name"] for d in self.d.get("/v1/datasets").json()["datasets"]], ["d"])
        self.assertEqual(self.put("z", "a.tif", zstd(STACK), Content_Encoding="zstd").status, 201)
        self.assertEqual(self.put("z", "a.tif", STACK).status, 200)
        splits = self.d.request("PUT", "/v1/datasets/z/splits.json", b'{"train":["a.tif"]}')
        self.assertEqual(splits.status, 201)
        self.assertTrue(self.d.get("/v1/datasets/z").json()["splits"])

    def test_predictions_are_served_while_training(self):
        """A prediction during a training is answered."""
        self.wait_for(self.start(), "succeeded")
        job = self.start(model="other", config=ENDLESS)
        self.wait_for(job, "running")
        image = tiffpy.make_tiff([tiffpy.plane(64, 64, "H", lambda y, x: y + x)], 64, 64)
        self.assertEqual(self.d.predict(image, model="trained").status, 200)
        self.assertEqual(self.job(job)["state"], "running")

    def test_listener_that_leaves_is_forgotten(self):
        """Event streams that are cut leave no descriptor behind, and the job goes on."""
        job = self.start(config=ENDLESS)
        self.wait_for(job, "running")
        before = self.d.n_fds()
        for _ in range(5):
            c = http.client.HTTPConnection("127.0.0.1", self.d.port, timeout=20 * PATIENCE)
            c.request("GET", "/v1/jobs/%s/events" % job)
            self.assertTrue(c.getresponse().read(10))
            c.close()
        self.d.wait(lambda: self.d.n_fds() <= before + 1, "descriptors closed")
        self.assertEqual(self.job(job)["state"], "running")

    def restart(self, sig):
        keep = os.path.join(tempfile.mkdtemp(dir=folder.name), "data")
        job = self.start(config=ENDLESS)
        waiting = self.start(model="b")
        self.d.wait(lambda: self.job(job).get("progress", {}).get("epoch", 0) > 0, "an epoch")
        status = self.d.stop(sig)
        shutil.copytree(self.d.data_dir, keep)
        self.d.remove()
        self.d = Daemon(data_dir=keep)
        return status, job, waiting

    def test_jobs_after_kill_are_failed_and_keep_their_checkpoint(self):
        """After kill -9 unfinished jobs are listed as failed; the data set is free again."""
        _, job, waiting = self.restart(signal.SIGKILL)
        self.assertEqual((self.job(job)["state"], self.job(waiting)["state"]), ("failed",) * 2)
        self.assertIn("daemon restarted", self.job(job)["reason"])
        self.assertIn("checkpoint is kept", self.job(job)["reason"])
        self.assertEqual(self.events(job)[-1][2]["state"], "failed")
        self.assertEqual(self.d.request("DELETE", "/v1/datasets/d").status, 204)

    def test_stop_ends_a_training_with_a_checkpoint(self):
        """SIGTERM lets the training save and end within the drain time, exit status 0."""
        begin = time.monotonic()
        status, job, waiting = self.restart(signal.SIGTERM)
        self.assertEqual(status, 0)
        self.assertLess(time.monotonic() - begin, 60 * PATIENCE)
        self.assertIn("the daemon stopped", self.job(job)["reason"])
        self.assertIn("before it began", self.job(waiting)["reason"])


if __name__ == "__main__":
    unittest.main()
