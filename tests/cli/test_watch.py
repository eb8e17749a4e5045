"""`usplit watch` against a server that fails in chosen ways, against the real daemon, and killed at
random moments: each file must end with exactly one result, none lost, none of them half written.

usage: test_watch.py USPLIT USPLITD [-v]. Python's standard library only.
"""
import collections
import hashlib
import http.server
import json
import os
import random
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "support"), os.path.join(HERE, "..", "http")]
USPLIT, USPLITD = (os.path.abspath(p) for p in sys.argv[1:3])
os.environ["USPLIT"], os.environ["USPLITD"] = USPLIT, USPLITD  # daemon.py reads them
import tiffpy  # noqa: E402
from daemon import PATIENCE, Daemon, make_model  # noqa: E402

JOURNAL = ".usplit-watch.jsonl"
ROUNDS = 12


def result_of(body):
    """What the fake server makes of an image: long enough to be cut in the middle."""
    return b"II*\0" + hashlib.sha256(body).digest() * 4000


class Fake(http.server.BaseHTTPRequestHandler):
    """Answers each POST by the next of server.script, then well."""
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def read_body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers["Content-Length"]))
        body = b""
        while True:
            n = int(self.rfile.readline(), 16)
            body += self.rfile.read(n)
            self.rfile.readline()
            if n == 0:
                return body

    def do_POST(self):
        s = self.server
        with s.lock:
            way = s.script.popleft() if s.script else "ok"
            s.asked.append((time.monotonic(), way, self.path, dict(self.headers)))
        if way == "cut-upload":
            self.rfile.read(10)
            self.close_connection = True
            return
        body = self.read_body()
        if self.headers.get("Content-Encoding") == "zstd":
            body = subprocess.run(["zstd", "-dcq"], input=body, stdout=subprocess.PIPE,
                                  check=True).stdout
        if isinstance(way, int):
            self.refuse(way)
            return
        time.sleep({"slow": 0.5}.get(way, s.delay_s))
        self.reply(way, body)

    def refuse(self, status):
        text = json.dumps({"status": status, "detail": "chosen %d" % status}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/problem+json")
        self.send_header("Content-Length", str(len(text)))
        if status in (429, 503):
            self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(text)

    def reply(self, way, body):
        s, result = self.server, result_of(body)
        self.send_response(200)
        self.send_header("Content-Type", "text/html" if way == "portal" else "image/tiff")
        self.send_header("Content-Length", str(len(result)))
        self.send_header("ETag", '"%s"' % hashlib.sha256(result).hexdigest())
        self.send_header("X-Usplit-Model", "m@" + "0" * 64)
        self.end_headers()
        if way == "wrong-byte":
            result = result[:-1] + b"?"
        if way == "cut-reply":
            self.wfile.write(result[:50000])
            self.close_connection = True
            return
        self.wfile.write(result)
        with s.lock:
            s.answered[hashlib.sha256(body).hexdigest()] += 1


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, script=(), tls=None):
        super().__init__(("127.0.0.1", 0), Fake)
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        self.lock, self.script, self.asked = threading.Lock(), collections.deque(script), []
        self.answered, self.delay_s = collections.Counter(), 0
        self.url = "http%s://127.0.0.1:%d" % ("s" if tls else "", self.server_address[1])
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def handle_error(self, *_):
        pass  # clients are killed here

    def ways(self):
        return [a[1] for a in self.asked]

    def close(self):
        self.shutdown()
        self.server_close()


class Case(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.mkdtemp(prefix="usplit-watch-")
        self.addCleanup(shutil.rmtree, self.dir, True)
        self.src, self.out = os.path.join(self.dir, "in"), os.path.join(self.dir, "out")
        os.mkdir(self.src)
        os.mkdir(self.out)

    def serve(self, *script):
        s = Server(script)
        self.addCleanup(s.close)
        return s

    def put(self, name, data=None):
        data = data if data is not None else os.urandom(5000)
        path = os.path.join(self.src, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as f:
            f.write(data)
        return data

    def line(self, url, *args):
        return [USPLIT, "watch", "--server", url, "--model", "m", "--out", self.out, "--settle",
                "0.05", "--rescan", "0.2", "--backoff", "0.02", "--json", *args, self.src]

    def once(self, url, *args, status=0, env=None):
        """Events of a run with --once."""
        r = subprocess.run(self.line(url, "--once", *args), stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE, timeout=60 * PATIENCE,
                           env=dict(os.environ, **(env or {})))
        self.assertEqual(r.returncode, status, r.stdout + r.stderr)
        self.errors = r.stderr.decode()
        return [json.loads(x) for x in r.stdout.splitlines()]

    def start(self, url, *args):
        p = subprocess.Popen(self.line(url, *args), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.addCleanup(p.communicate)
        self.addCleanup(p.kill)
        return p

    def wait(self, condition, what, seconds=20):
        deadline = time.monotonic() + seconds * PATIENCE
        while not condition():
            self.assertLess(time.monotonic(), deadline, "waited in vain: " + what)
            time.sleep(0.01)

    def result(self, name):
        path = os.path.join(self.out, name)
        if not os.path.exists(path):
            return None
        with open(path, "rb") as f:
            return f.read()

    def lines(self):
        with open(os.path.join(self.out, JOURNAL), encoding="ascii") as f:
            return [json.loads(x) for x in f if x.endswith("\n")][1:]

    def left_over(self):
        return [n for n in os.listdir(self.out) if n.endswith(".part")]


class Failing(Case):
    def test_every_failure_that_time_heals_ends_with_the_result(self):
        s = self.serve(500, "cut-upload", "cut-reply", "wrong-byte", "slow")
        data = self.put("a.tif", os.urandom(300000))
        events = self.once(s.url)
        self.assertEqual(s.ways(), [500, "cut-upload", "cut-reply", "wrong-byte", "slow"])
        self.assertEqual([e["event"] for e in events], ["retry"] * 4 + ["done"])
        self.assertIn("chosen 500", events[0]["reason"])
        self.assertEqual(self.result("a-split.ome.tif"), result_of(data))
        self.assertEqual(self.left_over(), [])

    def test_retry_after_is_waited_for_and_holds_up_every_file(self):
        s = self.serve(503)
        self.put("a.tif")
        self.put("b.tif")
        self.once(s.url, "--parallel", "1")
        self.assertEqual(s.ways(), [503, "ok", "ok"])
        self.assertGreaterEqual(s.asked[1][0] - s.asked[0][0], 0.99)

    def test_a_refused_file_is_recorded_and_sent_again_only_when_it_changes(self):
        s = self.serve(422, "ok", "ok")
        self.put("bad.tif")
        self.put("good.tif")
        events = self.once(s.url, status=1)
        self.assertIn("chosen 422", next(e for e in events if e["event"] == "failed")["reason"])
        self.assertIn("chosen 422", next(r for r in self.lines() if r["state"] == "failed")["reason"])
        self.assertEqual(self.once(s.url, status=1), [])
        self.assertEqual(len(s.asked), 2)
        data = self.put("bad.tif", os.urandom(6000))
        self.once(s.url)
        self.assertEqual(self.result("bad-split.ome.tif"), result_of(data))

    def test_retry_failed_sends_a_refused_file_again(self):
        s = self.serve(422)
        self.put("a.tif")
        self.once(s.url, status=1)
        self.assertEqual([e["event"] for e in self.once(s.url, "--retry-failed")], ["done"])

    def test_a_wrong_token_is_nobodys_file(self):
        s = self.serve(401)
        self.put("a.tif")
        self.assertEqual([e["event"] for e in self.once(s.url, status=1)], ["left"])
        self.assertEqual([e["event"] for e in self.once(s.url)], ["done"])

    def test_a_page_that_is_no_result_is_not_taken_for_one(self):
        s = self.serve("portal", "portal")
        self.put("a.tif")
        self.once(s.url, "--attempts", "2", status=1)
        self.assertIsNone(self.result("a-split.ome.tif"))

    def test_no_server_leaves_every_file_for_the_next_run(self):
        s = self.serve()
        s.close()
        self.put("a.tif")
        self.put("b.tif")
        events = self.once(s.url, "--attempts", "3", status=1)
        self.assertEqual([e["event"] for e in events], ["retry", "retry", "left"])

    def test_an_empty_file_fails_without_a_request(self):
        s = self.serve()
        self.put("a.tif", b"")
        self.once(s.url, status=1)
        self.assertEqual(s.asked, [])


class Behaving(Case):
    def test_names_settings_token_and_coding_reach_the_server(self):
        s = self.serve()
        self.put("sub/A.OME.TIF")
        self.put("b.npy")
        self.put("notes.txt")
        self.put(".hidden.tif")
        os.symlink(self.src, os.path.join(self.src, "loop"))
        os.symlink("nowhere", os.path.join(self.src, "dangling.tif"))
        self.once(s.url + "/", "--recursive", "--padding", "8", "--samples", "2", "--seed", "7",
                  "--planes", "mean,std", "--dtype", "uint16", env={"USPLIT_TOKEN": "secret"})
        self.assertIsNotNone(self.result("sub/A-split.ome.tif"))
        self.assertIsNotNone(self.result("b-split.ome.tif"))
        self.assertEqual(len(s.asked), 2)
        for _, _, path, headers in s.asked:
            self.assertEqual(path, "/v1/models/m/predict?padding=8&samples=2&seed=7"
                             "&planes=mean,std&dtype=uint16")
            self.assertEqual(headers["Authorization"], "Bearer secret")
            self.assertEqual(headers["Content-Encoding"], "zstd")
        self.assertEqual({h["Content-Type"] for *_, h in s.asked},
                         {"image/tiff", "application/x-npy"})

    def test_https_is_checked_against_the_authority_and_the_token_is_read_from_its_file(self):
        pem, token = os.path.join(self.dir, "pem"), os.path.join(self.dir, "token")
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
                        "ec_paramgen_curve:P-256", "-nodes", "-keyout", pem + ".key", "-out", pem,
                        "-days", "2", "-subj", "/CN=localhost", "-addext",
                        "subjectAltName=IP:127.0.0.1"], check=True, stderr=subprocess.DEVNULL)
        with open(token, "w", encoding="ascii") as f:
            f.write("from-a-file\n")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem, pem + ".key")
        s = Server(tls=context)
        self.addCleanup(s.close)
        self.put("a.tif")
        self.once(s.url, "--attempts", "1", status=1)  # nobody that the system knows signed it
        self.assertEqual(s.asked, [])
        events = self.once(s.url, "--ca-file", pem, "--token-file", token)
        self.assertEqual([e["event"] for e in events], ["done"])
        self.assertEqual(s.asked[0][3]["Authorization"], "Bearer from-a-file")

    def test_uncompressed_uploads_state_their_length(self):
        s = self.serve()
        data = self.put("a.tif")
        self.once(s.url, "--compress", "none")
        self.assertEqual(s.asked[0][3]["Content-Length"], str(len(data)))
        self.assertEqual(self.result("a-split.ome.tif"), result_of(data))

    def test_a_done_file_is_done_whatever_becomes_of_time_stamp_and_result(self):
        s = self.serve()
        self.put("a.tif")
        self.once(s.url)
        os.utime(os.path.join(self.src, "a.tif"), (1, 1))  # copied anew, or a clock that jumped
        self.once(s.url)
        os.remove(os.path.join(self.out, "a-split.ome.tif"))  # taken away by whoever uses it
        self.once(s.url)
        self.assertEqual(len(s.asked), 1)
        self.once(s.url, "--redo-missing")
        self.assertEqual(len(s.asked), 2)

    def test_the_watched_folder_may_hold_the_results(self):
        s = self.serve()
        self.out = self.src
        self.put("a.tif")
        self.once(s.url)
        self.once(s.url)
        self.assertEqual(len(s.asked), 1)

    def test_a_strangers_file_and_a_rivals_result_are_not_overwritten(self):
        s = self.serve()
        with open(os.path.join(self.out, "a-split.ome.tif"), "wb") as f:
            f.write(b"mine")
        self.put("a.tif")
        self.put("b.tif")
        self.put("b.npy")
        events = self.once(s.url, status=1)
        self.assertEqual(self.result("a-split.ome.tif"), b"mine")
        self.assertEqual(sorted(e["event"] for e in events), ["done", "failed", "failed"])

    def test_a_second_watcher_and_other_settings_are_refused(self):
        s = self.serve()
        p = self.start(s.url)
        self.wait(lambda: os.path.exists(os.path.join(self.out, JOURNAL)), "a journal")
        self.once(s.url, status=1)
        self.assertIn("another watcher", self.errors)
        p.send_signal(signal.SIGTERM)
        self.assertEqual(p.wait(10 * PATIENCE), 0)
        self.once(s.url, "--seed", "3", status=1)
        self.assertIn("m?seed=3", self.errors)

    def test_a_growing_file_is_taken_when_it_has_stopped(self):
        s = self.serve()
        p = subprocess.Popen([x if x != "0.05" else "0.4" for x in self.line(s.url)],
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.addCleanup(p.wait)
        self.addCleanup(p.kill)
        data = b""
        with open(os.path.join(self.src, "a.tif"), "wb", buffering=0) as f:
            for _ in range(8):
                data += os.urandom(1000)
                f.write(data[-1000:])
                time.sleep(0.1)
        self.wait(lambda: self.result("a-split.ome.tif") is not None, "the result")
        self.assertEqual(self.result("a-split.ome.tif"), result_of(data))
        self.assertEqual(len(s.asked), 1)

    def test_bad_usage_is_status_2(self):
        for args in (["--server", "ftp://h"], ["--server", "http://u:p@h"], ["--model", "../x"],
                     ["--settle", "-1"], ["--out", os.path.join(self.dir, "none")]):
            line = [USPLIT, "watch", self.src]
            for name, value in {"--server": "http://h", "--model": "m", "--out": self.out,
                                args[0]: args[1]}.items():
                line += [name, value]
            r = subprocess.run(line, stderr=subprocess.PIPE, timeout=20)
            self.assertEqual(r.returncode, 2, (args, r.stderr))


class Killed(Case):
    def test_kills_at_random_moments_lose_nothing_and_double_nothing(self):
        s = self.serve()
        s.delay_s = 0.02
        rng = random.Random(4)
        want, n = {}, 0
        for _ in range(ROUNDS):
            for _ in range(2):
                name = "f%03d" % n
                want[name] = self.put(name + ".tif", os.urandom(20000))
                n += 1
            with s.lock:
                s.script.extend(rng.choice([[], [500], ["cut-reply"], ["cut-upload"]]))
            p = subprocess.Popen(self.line(s.url, "--parallel", "2"), stdout=subprocess.DEVNULL,
                                 stderr=subprocess.DEVNULL)
            time.sleep(rng.uniform(0.03, 0.3) * PATIENCE)
            p.kill()
            p.wait()
        # Torn by the last of them: a line without its end.
        with open(os.path.join(self.out, JOURNAL), "ab") as f:
            f.write(b'{"state":"done","file":"f0')
        self.once(s.url, "--attempts", "50")
        for name, data in want.items():
            self.assertEqual(self.result(name + "-split.ome.tif"), result_of(data), name)
        self.assertEqual(self.left_over(), [])
        done = collections.Counter(r["file"] for r in self.lines() if r["state"] == "done")
        self.assertEqual(done, collections.Counter(n + ".tif" for n in want))
        asked = len(s.asked)
        self.assertEqual(self.once(s.url), [])
        self.assertEqual(len(s.asked), asked)

    def test_a_kill_between_any_two_durable_steps_is_finished_without_the_server(self):
        s = self.serve()
        data = self.put("a.tif")
        self.once(s.url)
        path = os.path.join(self.out, JOURNAL)
        with open(path, encoding="ascii") as f:
            lines = f.readlines()
        self.assertEqual([json.loads(x)["state"] for x in lines[1:]], ["arrived", "done"])
        part = ".usplit-watch-%016x.part" % fnv(b"a.tif")
        for in_place in (True, False):
            with open(path, "w", encoding="ascii") as f:
                f.writelines(lines[:2])
            if not in_place:
                os.rename(os.path.join(self.out, "a-split.ome.tif"), os.path.join(self.out, part))
            self.assertEqual([e["event"] for e in self.once(s.url)], ["done"])
            self.assertEqual(self.result("a-split.ome.tif"), result_of(data))
        self.assertEqual(len(s.asked), 1)

    def test_a_damaged_journal_is_refused_with_its_line(self):
        s = self.serve()
        self.put("a.tif")
        self.once(s.url)
        with open(os.path.join(self.out, JOURNAL), "ab") as f:
            f.write(b"{}\n")
        self.once(s.url, status=1)
        self.assertIn("line 4", self.errors)


class Real(Case):
    def test_the_daemons_results_are_those_of_usplit_predict(self):
        model = os.path.join(self.dir, "m.safetensors")
        make_model(model)
        d = Daemon(models=[("m", model)])
        self.addCleanup(d.remove)
        self.addCleanup(d.stop)
        for i in range(2):
            plane = tiffpy.plane(61, 47, "H", lambda y, x: (y * 31 + x * 17 * (i + 1)) % 997)
            self.put("%d.tif" % i, tiffpy.make_tiff([plane], 61, 47))
        whole = tiffpy.make_tiff([tiffpy.plane(61, 47, "H", lambda y, x: x)], 61, 47)
        self.put("half.tif", whole[:2000])
        url = "http://127.0.0.1:%d" % d.port
        events = self.once(url, "--seed", "5", status=1)
        self.assertEqual(sorted(e["event"] for e in events), ["done", "done", "failed"])
        self.assertEqual(next(e["status"] for e in events if e["event"] == "failed"), 422)
        for i in range(2):
            want = os.path.join(self.dir, "want.ome.tif")
            subprocess.run([USPLIT, "predict", "--quiet", "--model", model, "--seed", "5",
                            os.path.join(self.src, "%d.tif" % i), want], check=True)
            with open(want, "rb") as f:
                self.assertEqual(self.result("%d-split.ome.tif" % i), f.read())


def fnv(data):
    h = 0xcbf29ce484222325
    for b in data:
        h = (h ^ b) * 0x100000001b3 & (1 << 64) - 1
    return h


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[3:])
