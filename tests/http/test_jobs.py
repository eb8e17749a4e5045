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
import unittest

from case import folder, tiffpy, zstd
from daemon import PATIENCE, USPLIT, Daemon

FRAMES = 8
TINY = {"patch_size": 32,
        "architecture": {"variant": "lean", "z_dims": [4, 4], "lc_scales": 2, "n_filters": 4},
        "training": {"batch": 4, "max_epochs": 2, "max_steps": 6, "precision": "f32", "threads": 1}}
ENDLESS = dict(TINY, training=dict(TINY["training"], max_steps=0, max_epochs=1000000))

LONG = dict(TINY, training=dict(TINY["training"], max_steps=0, max_epochs=15))

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

    def restart(self, sig, *args):
        """Ends the daemon with a signal, starts another on the same data; the exit status."""
        keep = os.path.join(tempfile.mkdtemp(dir=folder.name), "data")
        status = self.d.stop(sig)
        shutil.copytree(self.d.data_dir, keep)
        self.d.remove()
        self.d = Daemon(*args, data_dir=keep)
        return status

    def interrupted(self, sig):
        """A training that was cut by a signal, and the job that waited behind it, both to the end;
        the bytes of the first one's model and the exit status of the daemon that was cut."""
        job = self.start(model="same", config=LONG)
        waiting = self.start(model="b")
        self.d.wait(lambda: self.job(job).get("progress", {}).get("epoch", 0) > 1, "an epoch")
        status = self.restart(sig)
        self.assertIn(self.job(job)["state"], ("queued", "running"))
        self.assertEqual(self.job(waiting)["state"], "queued")
        self.assertEqual(self.d.request("DELETE", "/v1/datasets/d").status, 409)
        self.assertEqual(self.wait_for(job, "succeeded", "failed")["state"], "succeeded")
        self.assertEqual(self.job(job)["attempts"], 2)
        self.assertEqual(self.wait_for(waiting, "succeeded", "failed")["state"], "succeeded")
        states = [e[2]["state"] for e in self.events(job) if e[1] == "state"]
        self.assertEqual(states, ["queued", "running", "queued", "running", "succeeded"])
        ids = [e[0] for e in self.events(job)]
        self.assertEqual(ids, list(range(1, len(ids) + 1)))
        return status, self.d.get("/v1/jobs/%s/result" % job).body

    def test_interrupted_training_ends_with_the_bytes_of_an_uninterrupted_one(self):
        """kill -9, and in the next daemon SIGTERM, change no byte of the model, and every job that
        was accepted runs to its end."""
        job = self.start(model="same", config=LONG)
        self.assertEqual(self.wait_for(job, "succeeded", "failed")["state"], "succeeded")
        whole = self.d.get("/v1/jobs/%s/result" % job).body
        for sig, expected in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 0)):
            for model in ("same", "b"):
                self.d.request("DELETE", "/v1/models/" + model)
            status, result = self.interrupted(sig)
            self.assertEqual(status, expected)
            self.assertEqual(result, whole)

    def test_finished_jobs_and_keys_are_known_after_a_restart(self):
        """What a job left is there after kill -9: state, metrics, history, result, events, key."""
        text = body()
        job = self.post(text, Idempotency_Key="k").json()["id"]
        self.assertEqual(self.wait_for(job, "succeeded", "failed")["state"], "succeeded")
        paths = ["/v1/jobs/" + job] + ["/v1/jobs/%s/%s" % (job, x)
                                       for x in ("metrics", "result", "events")]
        before = [self.d.get(p).body for p in paths]
        self.assertEqual(self.restart(signal.SIGKILL), -signal.SIGKILL)
        self.assertEqual([self.d.get(p).body for p in paths], before)
        again = self.post(text, Idempotency_Key="k")
        self.assertEqual((again.status, again.json()["id"]), (201, job))
        self.assertEqual(again["Idempotency-Replayed"], "true")
        self.assertEqual(self.post(body(model="x"), Idempotency_Key="k").status, 422)

    def test_paused_training_waits_and_goes_on(self):
        """A paused job lets the next one run, keeps its data set, and goes on after resume."""
        job = self.start(model="same", config=ENDLESS)
        next_job = self.start(model="b")
        self.d.wait(lambda: self.job(job).get("progress", {}).get("epoch", 0) > 0, "an epoch")
        self.assertEqual(self.d.request("POST", "/v1/jobs/%s/pause" % job).status, 202)
        self.wait_for(job, "paused")
        step = self.job(job)["progress"]["step"]
        self.wait_for(next_job, "succeeded")
        self.restart(signal.SIGKILL)
        self.assertEqual(self.job(job)["state"], "paused")
        self.assertEqual(self.d.request("DELETE", "/v1/datasets/d").status, 409)
        self.assertEqual(self.d.request("POST", "/v1/jobs/%s/resume" % job).status, 202)
        self.d.wait(lambda: self.job(job)["progress"]["step"] > step, "more steps")
        self.assertEqual(self.d.request("DELETE", "/v1/jobs/" + job).status, 202)
        self.wait_for(job, "cancelled")
        for verb in ("pause", "resume"):
            self.assertEqual(self.d.request("POST", "/v1/jobs/%s/%s" % (job, verb)).status, 409)
            self.assertEqual(self.d.request("POST", "/v1/jobs/nobody/" + verb).status, 404)

    def test_old_jobs_are_forgotten_beyond_the_count(self):
        """Only so many ended jobs are kept, files and all; what waits or runs stays."""
        self.restart(signal.SIGTERM, "--keep-jobs", "1")
        done = [self.start(model="m%d" % i) for i in range(3)]
        for job in done:
            self.d.wait(lambda: self.d.get("/v1/jobs/" + job).status == 404 or
                        self.job(job)["state"] == "succeeded", "end of " + job, 60)
        self.d.wait(lambda: [j["id"] for j in self.d.get("/v1/jobs").json()["jobs"]] == done[2:],
                    "one job left", 20)
        self.d.wait(lambda: os.listdir(os.path.join(self.d.data_dir, "jobs")) == done[2:],
                    "one folder left")
        self.assertEqual(len(self.d.get("/v1/models").json()["models"]), 3)

    def test_job_folders_of_a_version_without_a_store_are_taken_over(self):
        """An old data folder is upgraded: ended jobs are listed, an unfinished one goes on; folders
        of jobs that never were are swept, those of others left alone."""
        self.d.stop()
        jobs = os.path.join(self.d.data_dir, "jobs")
        for name in ("usplit.db", "usplit.db-wal", "usplit.db-shm"):
            if os.path.exists(os.path.join(self.d.data_dir, name)):
                os.remove(os.path.join(self.d.data_dir, name))
        old = {"20260101T000000000-00000a": {"state": "succeeded", "ended": "2026-01-01T00:00:09.5Z",
                                             "metrics": {"val_psnr": 20.5}, "progress": {"step": 3},
                                             "model_sha256": "ab"},
               "20260101T000000000-00000b": {"state": "running"}}
        for job, more in old.items():
            os.mkdir(os.path.join(jobs, job))
            with open(os.path.join(jobs, job, "job.json"), "w", encoding="ascii") as f:
                json.dump(dict({"id": job, "type": "train", "dataset": "d", "model": "old",
                                "created": "2026-01-01T00:00:00.000Z", "config": TINY}, **more), f)
        for name in ("20260101T000000000-00000c", "notes"):
            os.mkdir(os.path.join(jobs, name))
        self.restart(signal.SIGTERM)
        done, unfinished = (self.job(j) for j in sorted(old))
        self.assertEqual((done["state"], done["metrics"]["val_psnr"], done["model_sha256"]),
                         ("succeeded", 20.5, "ab"))
        self.assertEqual((done["created"], done["ended"]),
                         ("2026-01-01T00:00:00.000Z", "2026-01-01T00:00:09.000Z"))
        self.wait_for(unfinished["id"], "succeeded")
        self.assertEqual(sorted(os.listdir(os.path.join(self.d.data_dir, "jobs"))),
                         sorted(old) + ["notes"])
        self.restart(signal.SIGTERM)
        self.assertEqual(len(self.d.get("/v1/jobs").json()["jobs"]), 2)


if __name__ == "__main__":
    unittest.main()
