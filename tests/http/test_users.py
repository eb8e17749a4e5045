#!/usr/bin/env python3
"""Tokens, scopes and owners, over real sockets and with the real `usplitd token`.

Each test begins with the sentence that it proves.
"""
import http.client
import json
import os
import subprocess
import tempfile
import threading
import unittest

from case import IMAGE, model_path, tiffpy, zstd
from daemon import PATIENCE, USPLITD, Daemon

TINY = {"patch_size": 32,
        "architecture": {"variant": "lean", "z_dims": [4, 4], "lc_scales": 2, "n_filters": 4},
        "training": {"batch": 4, "max_epochs": 2, "max_steps": 2, "precision": "f32", "threads": 1}}


def make_stack(size=64, frames=4):
    """Two channels, a few frames, axes stated."""
    planes = [tiffpy.plane(size, size, "H", lambda y, x, k=k: (y * 31 + x * (7 + k)) % 251)
              for k in range(2 * frames)]
    text = tiffpy.ome_description(size, size, "H", t=frames, c=2)
    return tiffpy.make_tiff(planes, size, size, description=text)


STACK = make_stack()


def token_cli(data_dir, *args, check=True):
    """(exit status, stdout, stderr) of `usplitd token`."""
    p = subprocess.run([USPLITD, "token", *args, "--data-dir", data_dir], stdout=subprocess.PIPE,
                       stderr=subprocess.PIPE, timeout=60, check=False)
    if check and p.returncode != 0:
        raise AssertionError(p.stderr.decode())
    return p.returncode, p.stdout.decode(), p.stderr.decode()


def add(data_dir, owner, *args):
    return token_cli(data_dir, "add", owner, *args)[1].strip()


def bearer(token):
    return {"Authorization": "Bearer " + token} if token else {}


class Tokens(unittest.TestCase):
    """One daemon, tokens of four kinds."""

    @classmethod
    def setUpClass(cls):
        cls.d = Daemon(models=[("m", model_path)])
        where = cls.d.data_dir
        cls.token = {name: add(where, name, "--scopes", scopes) for name, scopes in (
            ("ann", "infer"), ("tom", "infer,train"), ("mon", "metrics"), ("root", "admin"))}
        cls.d.wait(lambda: cls.d.get("/v1/models").status == 401, "tokens are asked for")

    @classmethod
    def tearDownClass(cls):
        status, log = cls.d.stop(), cls.d.log()
        cls.d.remove()
        if status != 0:
            raise AssertionError(log[-4000:])

    def ask(self, who, method, path, body=None, **headers):
        names = dict(bearer(self.token.get(who, "")), **headers)
        return self.d.request(method, path, body, names)

    def test_scopes_decide_and_refusals_say_what_is_missing(self):
        """401 without a good token, 403 naming the scope, as RFC 6750 puts it into a header."""
        r = self.ask(None, "GET", "/v1/models")
        self.assertEqual((r.status, r.json()["type"]), (401, "urn:usplit:problem:unauthorized"))
        self.assertEqual(r["WWW-Authenticate"], 'Bearer realm="usplit", scope="infer"')
        self.assertEqual(self.ask("ann", "GET", "/v1/models").status, 200)
        r = self.ask("ann", "GET", "/v1/jobs")
        self.assertEqual((r.status, r.json()["type"]), (403, "urn:usplit:problem:forbidden"))
        self.assertIn("'train'", r.json()["detail"])
        self.assertEqual(r["WWW-Authenticate"],
                         'Bearer realm="usplit", error="insufficient_scope", scope="train"')
        self.assertEqual(self.ask("tom", "GET", "/v1/jobs").status, 200)
        self.assertEqual(self.ask("mon", "GET", "/v1/models").status, 403)
        self.assertEqual(self.ask("root", "GET", "/v1/jobs").status, 200)

    def test_bad_tokens_are_refused_before_the_body(self):
        """A wrong token, another scheme and a token cut short are 401; two headers are 400."""
        good = self.token["ann"]
        wrong = good[:-1] + ("1" if good[-1] == "0" else "0")
        for header, error in (("Bearer " + wrong, True), ("Bearer " + good[:-1], False), (good, False),
                              ("Basic YW5uOng=", False), ("Bearer", False), ("", False)):
            with self.subTest(header[:12]):
                r = self.d.request("POST", "/v1/models/m/predict", IMAGE, {"Authorization": header})
                self.assertEqual(r.status, 401)
                self.assertEqual('error="invalid_token"' in r["WWW-Authenticate"], error)
                self.assertEqual(r["Connection"], "close")  # the body was not read
        raw = self.d.raw(("GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                          + ("Authorization: Bearer %s\r\n" % good) * 2 + "\r\n").encode())
        self.assertTrue(raw.startswith(b"HTTP/1.1 400 "), raw[:80])

    def test_open_routes_need_no_token(self):
        """Health and the page are there for everybody, whatever they send along."""
        for path in ("/", "/healthz", "/readyz"):
            for headers in ({}, {"Authorization": "Bearer nonsense"}):
                self.assertEqual(self.d.request("GET", path, headers=headers).status, 200)

    def test_predicting_with_a_token_gives_the_same_bytes(self):
        """A token changes who may ask, not the answer."""
        r = self.ask("ann", "POST", "/v1/models/m/predict", IMAGE)
        self.assertEqual(r.status, 200)
        self.assertEqual(r.body, self.ask("root", "POST", "/v1/models/m/predict", IMAGE).body)

    def test_guessing_costs_the_connection(self):
        """The fifth refusal on one connection closes it."""
        c = http.client.HTTPConnection("127.0.0.1", self.d.port, timeout=20 * PATIENCE)
        seen = []
        for _ in range(5):
            c.request("GET", "/v1/models", headers=bearer("usplit_000000000000_" + 64 * "0"))
            r = c.getresponse()
            r.read()
            seen.append((r.status, r.getheader("Connection")))
        c.close()
        self.assertEqual(seen, [(401, None)] * 4 + [(401, "close")])

    def test_log_names_user_and_id_and_never_the_secret(self):
        """A request's line says who; a refused one says from where; no line holds a token."""
        self.ask("ann", "GET", "/v1/models")
        wrong = "usplit_0123456789ab_" + 64 * "e"
        self.d.request("GET", "/v1/models", headers=bearer(wrong))
        self.d.wait(lambda: "0123456789ab" in self.d.log(), "the refusal in the log")
        log = self.d.log()
        self.assertRegex(log, 'status=200 .*user="ann" token="%s"' % self.token["ann"][7:19])
        self.assertRegex(log, 'status=401 .*token="0123456789ab" client="127.0.0.1"')
        for token in list(self.token.values()) + [wrong]:
            self.assertNotIn(token[20:], log)


class Owners(unittest.TestCase):
    """Two users who may train, one with a small quota, and an admin."""

    @classmethod
    def setUpClass(cls):
        cls.d = Daemon(models=[("shared", model_path)])
        where = cls.d.data_dir
        # Made while nobody had a token: the admins' own.
        assert cls.d.request("PUT", "/v1/datasets/old/images/s.tif", STACK).status == 201
        cls.token = {"ann": add(where, "ann", "--scopes", "infer,train"),
                     "bob": add(where, "bob", "--scopes", "infer,train"),
                     "tim": add(where, "tim", "--scopes", "infer,train", "--max-jobs", "1",
                                "--max-storage", str(len(STACK) + 1000)),
                     "root": add(where, "root", "--scopes", "admin")}
        cls.d.wait(lambda: cls.d.get("/v1/models").status == 401, "tokens are asked for")
        with open(model_path, "rb") as f:
            cls.model = f.read()

    @classmethod
    def tearDownClass(cls):
        status, log = cls.d.stop(), cls.d.log()
        cls.d.remove()
        if status != 0:
            raise AssertionError(log[-4000:])

    def ask(self, who, method, path, body=None, **headers):
        return self.d.request(method, path, body, dict(bearer(self.token[who]), **headers))

    def expect(self, status, who, method, path, body=None):
        r = self.ask(who, method, path, body)
        self.assertEqual(r.status, status, (who, method, path, r.body[:300]))
        return r

    def job(self, who, dataset, model, status=201, **more):
        body = json.dumps(dict({"type": "train", "dataset": dataset, "model": model,
                                "config": TINY}, **more))
        return self.expect(status, who, "POST", "/v1/jobs", body)

    def names(self, who, path, key):
        return [e["name"] for e in self.expect(200, who, "GET", path).json()[key]]

    def test_data_sets_are_their_owners_alone(self):
        """Another user neither sees, changes, uses nor removes a data set; an admin does all of it."""
        self.expect(201, "ann", "PUT", "/v1/datasets/a/images/s.tif", STACK)
        self.assertEqual(self.names("ann", "/v1/datasets", "datasets"), ["a"])
        self.assertNotIn("a", self.names("bob", "/v1/datasets", "datasets"))
        unknown = self.expect(404, "bob", "GET", "/v1/datasets/never").json()["detail"]
        r = self.expect(404, "bob", "GET", "/v1/datasets/a")
        self.assertEqual(r.json()["detail"].replace("'a'", "'never'"), unknown)
        self.expect(404, "bob", "DELETE", "/v1/datasets/a")
        self.expect(404, "bob", "DELETE", "/v1/datasets/a/images/s.tif")
        r = self.expect(409, "bob", "PUT", "/v1/datasets/a/images/t.tif", STACK)
        self.assertIn("taken", r.json()["detail"])
        self.expect(409, "bob", "PUT", "/v1/datasets/a/splits.json", b"{}")
        self.job("bob", "a", "stolen", 404)
        self.expect(404, "ann", "GET", "/v1/datasets/old")
        self.expect(409, "ann", "PUT", "/v1/datasets/old/images/t.tif", STACK)
        for name in ("a", "old"):
            self.assertIn(name, self.names("root", "/v1/datasets", "datasets"))
            self.expect(200, "root", "GET", "/v1/datasets/" + name)
        self.expect(201, "root", "PUT", "/v1/datasets/a/images/t.tif", STACK)
        self.expect(200, "ann", "GET", "/v1/datasets/a")  # and it is still hers
        self.expect(204, "ann", "DELETE", "/v1/datasets/a")
        self.expect(201, "bob", "PUT", "/v1/datasets/a/images/s.tif", STACK)  # the name is free
        self.expect(404, "ann", "GET", "/v1/datasets/a")
        self.expect(204, "bob", "DELETE", "/v1/datasets/a")

    def test_refused_first_file_leaves_the_name_free(self):
        """A name is somebody's only once something is stored under it."""
        self.expect(422, "ann", "PUT", "/v1/datasets/n/images/s.tif", b"no image")
        self.expect(201, "bob", "PUT", "/v1/datasets/n/images/s.tif", STACK)
        self.expect(204, "bob", "DELETE", "/v1/datasets/n")

    def test_one_of_many_at_once_gets_a_new_name(self):
        """Two users who race for a name do not share it."""
        for i in range(5):
            path, got = "/v1/datasets/r%d/images/s.tif" % i, {}
            threads = [threading.Thread(
                target=lambda w=w: got.setdefault(w, self.ask(w, "PUT", path, STACK).status))
                for w in ("ann", "bob")]
            for t in threads:
                t.start()
            for t in threads:
                t.join()
            self.assertEqual(sorted(got.values()), [201, 409])
            winner = min(got, key=got.get)
            self.expect(204, winner, "DELETE", "/v1/datasets/r%d" % i)

    def test_models_are_read_by_all_and_changed_by_their_owner(self):
        """Everybody predicts with every model; only its owner or an admin replaces or removes it."""
        self.expect(201, "ann", "PUT", "/v1/models/am", self.model)
        for who in ("bob", "ann", "root"):
            self.assertLessEqual({"am", "shared"}, set(self.names(who, "/v1/models", "models")))
            self.expect(200, who, "GET", "/v1/models/am/file")
            self.expect(200, who, "POST", "/v1/models/am/predict", IMAGE)
        for name in ("am", "shared"):
            self.expect(403, "bob", "PUT", "/v1/models/" + name, self.model)
            self.expect(403, "bob", "DELETE", "/v1/models/" + name)
        self.expect(200, "root", "PUT", "/v1/models/am", self.model)
        self.expect(200, "ann", "PUT", "/v1/models/am", self.model)  # still hers
        self.expect(403, "ann", "POST", "/v1/models/am/unload")
        self.expect(404, "bob", "DELETE", "/v1/models/never")
        self.expect(204, "ann", "DELETE", "/v1/models/am")
        self.expect(201, "bob", "PUT", "/v1/models/am", self.model)
        self.expect(204, "bob", "DELETE", "/v1/models/am")

    def test_jobs_and_what_they_make_are_their_owners(self):
        """Another user's job is 404 on every route; its model belongs to whoever trained it."""
        self.expect(201, "ann", "PUT", "/v1/datasets/j/images/s.tif", STACK)
        job = self.job("ann", "j", "jm").json()
        self.assertEqual(job["owner"], "ann")
        path = "/v1/jobs/" + job["id"]
        unknown = self.expect(404, "bob", "GET", "/v1/jobs/never").json()["detail"]
        for method, rest in (("GET", ""), ("DELETE", ""), ("POST", "/pause"), ("POST", "/resume"),
                             ("GET", "/events"), ("GET", "/metrics"), ("GET", "/result")):
            r = self.expect(404, "bob", method, path + rest)
            self.assertEqual(r.json()["detail"].replace(job["id"], "never"), unknown)
        listed = {who: {j["id"]: j["owner"] for j in self.ask(who, "GET", "/v1/jobs").json()["jobs"]}
                  for who in ("ann", "bob", "root")}
        self.assertEqual([job["id"] in listed[who] for who in listed], [True, False, True])
        self.assertLessEqual(set(listed["bob"].values()), {"bob"})
        self.d.wait(lambda: self.ask("ann", "GET", path).json()["state"] == "succeeded", "the end", 60)
        for who in ("ann", "root"):
            self.expect(200, who, "GET", path + "/result")
        self.expect(403, "bob", "DELETE", "/v1/models/jm")
        self.expect(201, "bob", "PUT", "/v1/datasets/b/images/s.tif", STACK)
        r = self.job("bob", "b", "jm", 409, replace=True)
        self.assertIn("somebody else's", r.json()["detail"])
        self.job("ann", "j", "jm", 201, replace=True)
        self.expect(204, "bob", "DELETE", "/v1/datasets/b")

    def test_idempotency_keys_of_two_users_are_two_keys(self):
        """The same key from another user makes another job, and shows nothing of the first."""
        ids = {}
        for who in ("ann", "bob"):
            self.expect(201, who, "PUT", "/v1/datasets/k%s/images/s.tif" % who, STACK)
            body = json.dumps({"type": "train", "dataset": "k" + who, "model": "k" + who,
                               "config": TINY})
            for _ in range(2):
                r = self.ask(who, "POST", "/v1/jobs", body, **{"Idempotency-Key": "same"})
                self.assertEqual(r.status, 201)
                ids.setdefault(who, set()).add(r.json()["id"])
        self.assertEqual([len(ids[w]) for w in ids], [1, 1])
        self.assertTrue(ids["ann"].isdisjoint(ids["bob"]))

    def test_quotas_say_what_is_there_and_what_is_allowed(self):
        """Too much data is 507 before the upload where its length is known; too many jobs are 429."""
        self.expect(201, "tim", "PUT", "/v1/datasets/t/images/s.tif", STACK)
        r = self.expect(507, "tim", "PUT", "/v1/datasets/t/images/t.tif", STACK)
        self.assertEqual(r["Connection"], "close")
        for word in (str(len(STACK)), str(len(STACK) + 1000), "quota"):
            self.assertIn(word, r.json()["detail"])
        self.assertEqual(self.expect(507, "tim", "PUT", "/v1/models/t", self.model).json()["type"],
                         "urn:usplit:problem:storage-full")
        packed = zstd(STACK)  # fits as sent, not as stored
        if len(packed) <= 1000:
            self.assertEqual(self.ask("tim", "PUT", "/v1/datasets/t/images/t.tif", packed,
                                      **{"Content-Encoding": "zstd"}).status, 507)
        body = dict(TINY, training=dict(TINY["training"], max_steps=0, max_epochs=1000000))
        first = self.job("tim", "t", "t1", config=body).json()["id"]
        r = self.job("tim", "t", "t2", 429)
        self.assertIn("allowed: 1", r.json()["detail"])
        self.assertIsNotNone(r["Retry-After"])
        self.expect(202, "tim", "DELETE", "/v1/jobs/" + first)
        self.d.wait(lambda: self.ask("tim", "GET", "/v1/jobs/" + first).json()["state"] == "cancelled",
                    "the end of the job", 60)
        self.job("tim", "t", "t2")

    def test_owners_survive_a_restart(self):
        """Whose a data set, a model and a job are is on the disk."""
        d = Daemon()
        try:
            token = {w: add(d.data_dir, w, "--scopes", "infer,train") for w in ("ann", "bob")}
            d.wait(lambda: d.get("/v1/models").status == 401, "tokens are asked for")
            for path, body in (("/v1/datasets/d/images/s.tif", STACK), ("/v1/models/m", self.model)):
                self.assertEqual(d.request("PUT", path, body, bearer(token["ann"])).status, 201)
            self.assertEqual(d.stop(), 0)
            again = Daemon(data_dir=d.data_dir)
            self.assertEqual(again.request("GET", "/v1/datasets/d", headers=bearer(token["bob"])).status,
                             404)
            self.assertEqual(again.request("DELETE", "/v1/models/m", headers=bearer(token["bob"])).status,
                             403)
            for path in ("/v1/datasets/d", "/v1/models/m"):
                self.assertEqual(again.request("DELETE", path, headers=bearer(token["ann"])).status, 204)
            self.assertEqual(again.stop(), 0)
            again.remove()
        finally:
            d.stop()
            d.remove()


class TokenCommand(unittest.TestCase):
    """`usplitd token`, with and without a daemon beside it."""

    def test_life_of_a_token(self):
        """add shows it once, list never, revoke ends it; a running daemon follows in a second."""
        d = Daemon(models=[("m", model_path)])
        try:
            self.assertEqual(d.get("/v1/models").status, 200)  # loopback, nobody has a token
            status, token, said = token_cli(d.data_dir, "add", "ann", "--max-jobs", "2", "--expires",
                                            "30", "--max-storage", "2G", "--priority", "batch")
            token = token.strip()
            self.assertRegex(token, "^usplit_[0-9a-f]{12}_[0-9a-f]{64}$")
            self.assertIn("not shown again", said)
            d.wait(lambda: d.get("/v1/models").status == 401, "tokens are asked for", 3)
            self.assertEqual(d.request("GET", "/v1/models", headers=bearer(token)).status, 200)
            listed = json.loads(token_cli(d.data_dir, "list", "--json")[1])
            self.assertEqual([(t["id"], t["owner"], t["scopes"], t["max_jobs"], t["max_storage"],
                               t["priority"]) for t in listed],
                             [(token[7:19], "ann", "infer", 2, 2 << 30, "batch")])
            plain = token_cli(d.data_dir, "list")[1]
            self.assertIn(token[7:19], plain)
            for text in (plain, json.dumps(listed), d.log()):
                self.assertNotIn(token[20:], text)
            said = token_cli(d.data_dir, "revoke", token[7:19])[2]
            self.assertIn("the last one", said)
            d.wait(lambda: d.request("GET", "/v1/models", headers=bearer(token)).status == 401,
                   "the revoked one is refused", 3)
            self.assertEqual(d.get("/v1/models").status, 401)  # and the door stays closed
            self.assertEqual(token_cli(d.data_dir, "revoke", token[7:19], check=False)[0], 1)
        finally:
            self.assertEqual(d.stop(), 0)
            d.remove()

    def test_json_log_and_trace_join_a_request_to_its_caller(self):
        """With log-format json each line is an object; the caller's trace is in it and in the reply."""
        d = Daemon("--log-format", "json", models=[("m", model_path)])
        token = add(d.data_dir, "ann")
        trace = "4bf92f3577b34da6a3ce929d0e0e4736"
        r = d.request("GET", "/v1/models", headers=dict(
            bearer(token), traceparent="00-%s-00f067aa0ba902b7-01" % trace))
        self.assertRegex(r["traceparent"], "^00-%s-[0-9a-f]{16}-01$" % trace)
        self.assertNotIn("00f067aa0ba902b7", r["traceparent"])
        fresh = d.get("/healthz", traceparent="00-nonsense")["traceparent"]
        self.assertRegex(fresh, "^00-[0-9a-f]{32}-[0-9a-f]{16}-00$")
        self.assertEqual(d.stop(), 0)
        lines = [json.loads(line) for line in d.log().splitlines()]
        mine = [line for line in lines if line.get("trace") == trace]
        self.assertEqual([(line["path"], line["status"], line["id"]) for line in mine],
                         [("/v1/models", 200, r["X-Request-Id"])])
        self.assertEqual(len({line["trace"] for line in lines if "trace" in line}),
                         len([line for line in lines if "trace" in line]))
        d.remove()

    def test_nothing_in_the_data_folder_holds_a_secret(self):
        """Only hashes are on the disk."""
        with tempfile.TemporaryDirectory(prefix="usplitd-test-") as where:
            token = add(where, "ann")
            for root, _, files in os.walk(where):
                for name in files:
                    with open(os.path.join(root, name), "rb") as f:
                        data = f.read()
                    self.assertNotIn(token[20:].encode(), data)
                    self.assertNotIn(bytes.fromhex(token[20:]), data)

    def test_wrong_usage_is_told(self):
        """Each wrong command line ends with status 2 and the reason; nothing is made."""
        with tempfile.TemporaryDirectory(prefix="usplitd-test-") as where:
            for args, word in ((["add"], "owner"), (["add", "a b"], "'a b'"), (["add", "x", "y"], "'y'"),
                               (["add", "x", "--scopes", "all"], "'all'"),
                               (["add", "x", "--max-jobs", "0"], "--max-jobs"),
                               (["add", "x", "--expires", "-1"], "--expires"),
                               (["add", "x", "--priority", "best"], "'best'"),
                               (["add", "x", "--colour", "red"], "--colour"), (["list", "x"], "no name"),
                               (["revoke"], "id"), (["revoke", "x", "--scopes", "infer"], "--scopes"),
                               (["steal"], "add, list or revoke"), ([], "add, list or revoke")):
                with self.subTest(args):
                    status, out, err = token_cli(where, *args, check=False)
                    self.assertEqual((status, out), (2, ""))
                    self.assertIn(word, err.split("\n")[0])
            self.assertEqual(os.listdir(where), [])
        p = subprocess.run([USPLITD, "token", "add", "x"], stderr=subprocess.PIPE, check=False)
        self.assertEqual(p.returncode, 2)
        self.assertIn(b"--data-dir", p.stderr)
        self.assertEqual(token_cli(os.path.join(where, "none"), "list", check=False)[0], 1)

    def test_token_that_nobody_saw_is_taken_back(self):
        """Where standard output fails, no token stays behind."""
        with tempfile.TemporaryDirectory(prefix="usplitd-test-") as where, \
                open("/dev/full", "wb") as full:
            p = subprocess.run([USPLITD, "token", "add", "x", "--data-dir", where], stdout=full,
                               stderr=subprocess.PIPE, check=False)
            self.assertEqual(p.returncode, 1)
            self.assertIn(b"taken back", p.stderr)
            self.assertEqual(token_cli(where, "list")[1], "")

    def test_other_addresses_need_a_token_or_a_word(self):
        """Beyond loopback a daemon starts with tokens, or with --insecure-no-auth, and not without."""
        with tempfile.TemporaryDirectory(prefix="usplitd-test-") as where:
            data = os.path.join(where, "data")
            os.mkdir(data)
            base = [USPLITD, "--data-dir", data, "--listen", "0.0.0.0:0"]

            def refused(*args):
                p = subprocess.run([*base, *args], stderr=subprocess.PIPE, stdout=subprocess.PIPE,
                                   timeout=60, check=False)
                return p.returncode, p.stderr.decode()
            status, err = refused()
            self.assertEqual(status, 2)
            self.assertIn("usplitd token add", err)
            self.assertEqual(refused("--check-config")[0], 2)
            self.assertEqual(refused("--check-config", "--insecure-no-auth")[0], 0)
            token = add(data, "ann", "--scopes", "admin")
            self.assertEqual(refused("--check-config"), (0, ""))
            d = Daemon("--listen", "0.0.0.0:0", data_dir=data)
            try:
                self.assertEqual(d.get("/v1/jobs").status, 401)
                self.assertEqual(d.request("GET", "/v1/jobs", headers=bearer(token)).status, 200)
            finally:
                self.assertEqual(d.stop(), 0)
                d.remove()
            token_cli(data, "revoke", token[7:19])
            self.assertEqual(refused("--check-config")[0], 2)
            self.assertEqual(refused()[0], 1)
            d = Daemon("--insecure-no-auth", data_dir=data)
            self.assertEqual(d.get("/v1/jobs").status, 200)
            self.assertEqual(d.stop(), 0)
            d.remove()


if __name__ == "__main__":
    unittest.main(verbosity=2)
