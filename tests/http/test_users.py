#!/usr/bin/env python3
"""Tokens, scopes and owners, over real sockets and with the real `usplitd token`.

Each test begins with the sentence that it proves.
"""
import http.client
import json
import os
import subprocess
import tempfile
import unittest

from case import IMAGE, folder, model_path
from daemon import PATIENCE, USPLITD, Daemon


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
