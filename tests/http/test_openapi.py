#!/usr/bin/env python3
"""GET /openapi.json is the interface that is served, and every route in it refuses strangers.

Each test begins with the sentence that it proves.
"""
import json
import os
import re
import unittest

from case import model_path
from daemon import Daemon
from test_users import STACK, TINY, add, bearer

SERVER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "server")
SCOPES = ("infer", "train", "admin", "metrics")


class Contract(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.d = Daemon(models=[("m", model_path)])
        where = cls.d.data_dir
        cls.token = {s: add(where, "only-" + s, "--scopes", s) for s in SCOPES}
        cls.token["ann"] = add(where, "ann", "--scopes", "infer,train")
        cls.token["bob"] = add(where, "bob", "--scopes", "infer,train,metrics")
        cls.d.wait(lambda: cls.d.get("/v1/models").status == 401, "tokens are asked for")
        cls.doc = cls.d.get("/openapi.json").json()
        ann = bearer(cls.token["ann"])
        with open(model_path, "rb") as f:
            made = [cls.d.request("PUT", "/v1/models/own", f.read(), ann),
                    cls.d.request("PUT", "/v1/datasets/own/images/s.tif", STACK, ann)]
        job = cls.d.request("POST", "/v1/jobs", json.dumps(
            {"type": "train", "dataset": "own", "model": "made", "config": TINY}), ann)
        assert [r.status for r in made] + [job.status] == [201] * 3, job.body
        cls.names = {"m": "own", "d": "own", "f": "s.tif", "j": job.json()["id"]}

    @classmethod
    def tearDownClass(cls):
        status, log = cls.d.stop(), cls.d.log()
        cls.d.remove()
        if status != 0:
            raise AssertionError(log[-4000:])

    def operations(self):
        for path, verbs in self.doc["paths"].items():
            for verb, op in verbs.items():
                yield path, verb.upper(), op

    def ask(self, path, method, token=None):
        concrete = re.sub(r"\{(\w)\}", lambda m: self.names[m[1]], path)
        body = b"x" if method in ("PUT", "POST") else None
        return self.d.request(method, concrete, body, bearer(token))

    def test_document_has_exactly_the_routes_of_the_router(self):
        """Each line of us_routes.def is one operation with its scope, and nothing else is there."""
        with open(os.path.join(SERVER, "us_routes.def"), encoding="utf-8") as f:
            routes = re.findall(r'US_ROUTE\("(\w+)", "([^"]+)", (\w+), (\w+),', f.read())
        self.assertGreater(len(routes), 25)
        found = [(method, path, op["operationId"],
                  op["security"][0]["bearer"][0].upper() if op["security"] else "NONE")
                 for path, method, op in self.operations()]
        self.assertEqual(sorted(found), sorted(routes))
        with open(os.path.join(SERVER, "us_openapi.def"), encoding="utf-8") as f:
            described = set(re.findall(r"^US_OP\((\w+),", f.read(), re.M))
        self.assertEqual({op["operationId"] for path, _, op in self.operations()
                          if not path.startswith("/ui/")} - described, set())

    def test_document_is_well_formed(self):
        """Operations have unique ids, their path's parameters, replies, and bodies where needed."""
        self.assertTrue(self.doc["openapi"].startswith("3.1"))
        ids = [op["operationId"] for _, _, op in self.operations()]
        self.assertEqual(len(ids), len(set(ids)))
        for path, method, op in self.operations():
            with self.subTest(method + " " + path):
                self.assertEqual([p["name"] for p in op["parameters"] if p["in"] == "path"],
                                 re.findall(r"\{(\w)\}", path))
                self.assertEqual("requestBody" in op, method == "PUT" or op["operationId"] in
                                 ("predict", "job_post"))
                self.assertTrue(any(s.startswith("2") for s in op["responses"]))
                for status, reply in op["responses"].items():
                    if status[0] in "45d":
                        self.assertEqual(list(reply["content"]), ["application/problem+json"])
        query = self.doc["paths"]["/v1/models/{m}/predict"]["post"]["parameters"]
        self.assertIn("padding", [p["name"] for p in query if p["in"] == "query"])

    def test_every_route_refuses_strangers(self):
        """No token and a wrong one are 401 on every route with a scope, and only there."""
        wrong = "usplit_000000000000_" + 64 * "0"
        n = 0
        for path, method, op in self.operations():
            for token in (None, wrong):
                with self.subTest(method + " " + path):
                    r = self.ask(path, method, token)
                    if op["security"]:
                        n += 1
                        self.assertEqual(r.status, 401)
                        self.assertEqual(r.json()["type"], "urn:usplit:problem:unauthorized")
                        self.assertIn("Bearer", r["WWW-Authenticate"])
                    elif not path.startswith("/ui/{"):
                        self.assertEqual(r.status, 200)
        self.assertGreater(n, 40)

    def test_every_route_refuses_other_scopes(self):
        """A token with every scope but the needed one (and admin) is 403."""
        for path, method, op in self.operations():
            for scope in SCOPES:
                if not op["security"] or scope in (op["security"][0]["bearer"][0], "admin"):
                    continue
                with self.subTest("%s %s with %s" % (method, path, scope)):
                    r = self.ask(path, method, self.token[scope])
                    self.assertEqual(r.status, 403)
                    self.assertIn("'%s'" % op["security"][0]["bearer"][0], r.json()["detail"])

    def test_every_route_refuses_other_owners(self):
        """What names somebody else's job or data set is 404 (409 for storing into it), and
        somebody else's model cannot be changed."""
        n = 0
        for path, method, op in self.operations():
            scope = op["security"][0]["bearer"][0] if op["security"] else None
            if "{d}" in path or "{j}" in path:
                allowed = (409,) if method == "PUT" else (404,)
            elif "{m}" in path and scope == "train":
                allowed = (403,)
            else:
                continue
            n += 1
            with self.subTest(method + " " + path):
                r = self.ask(path, method, self.token["bob"])
                self.assertIn(r.status, allowed)
                self.assertEqual(r["Content-Type"], "application/problem+json")
        self.assertGreater(n, 12)
        ann = bearer(self.token["ann"])
        for path in ("/v1/datasets/own", "/v1/models/own", "/v1/jobs/" + self.names["j"]):
            self.assertEqual(self.d.request("GET", path, headers=ann).status, 200)

    def test_admin_reaches_every_route(self):
        """Nothing in the document is a path or a method that the router does not know."""
        for path, method, op in self.operations():
            if method in ("DELETE", "PUT") or path.startswith("/ui/{") or path.endswith("/events"):
                continue
            with self.subTest(method + " " + path):
                r = self.ask(path, method, self.token["admin"])
                self.assertNotIn(r.status, (401, 403, 405, 500))
                if r.status == 404:
                    self.assertNotIn("nothing at this path", r.json()["detail"])


if __name__ == "__main__":
    unittest.main(verbosity=2)
