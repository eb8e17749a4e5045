#!/usr/bin/env python3
"""usplitd from its settings to its exit, and everything at once in between.

Each test begins with the sentence that it proves.
"""
import http.client
import os
import random
import socket
import subprocess
import tempfile
import threading
import time
import unittest

from case import IMAGE, Case, folder, model_path, other_path
from daemon import PATIENCE, USPLITD, Daemon


class Storm(Case):
    """Everything at once."""

    def test_random_traffic_on_one_model_never_breaks_a_promise(self):
        """Store, delete, load, unload, predict and hang up race; each reply is a legal one."""
        with open(model_path, "rb") as f:
            first = f.read()
        with open(other_path, "rb") as f:
            second = f.read()
        good = {}
        for name, data in (("m1", first), ("m2", second)):
            self.assertEqual(self.d.request("PUT", "/v1/models/x", data).status, 201)
            good[name] = self.d.predict(IMAGE, model="x").body
            self.assertEqual(self.d.request("DELETE", "/v1/models/x").status, 204)
        wrong, end = [], time.monotonic() + 4

        def expect(reply, *allowed):
            if reply.status not in allowed:
                wrong.append((reply.status, reply.body[:300]))

        def predict():
            r = self.d.predict(IMAGE, model="x")
            expect(r, 200, 404)
            if r.status == 200 and r.body not in good.values():
                wrong.append("bytes of neither version")

        def hang_up():
            with self.d.connect() as s:
                s.sendall(b"POST /v1/models/m/predict?samples=500 HTTP/1.1\r\nHost: localhost\r\n"
                          b"Content-Length: %d\r\n\r\n" % len(IMAGE) + IMAGE)
                time.sleep(0.02)
        actions = [predict, predict, hang_up,
                   lambda: expect(self.d.request("PUT", "/v1/models/x", first), 200, 201),
                   lambda: expect(self.d.request("PUT", "/v1/models/x", second), 200, 201),
                   lambda: expect(self.d.request("DELETE", "/v1/models/x"), 204, 404),
                   lambda: expect(self.d.request("POST", "/v1/models/x/load"), 200, 404),
                   lambda: expect(self.d.request("POST", "/v1/models/x/unload"), 200, 404),
                   lambda: expect(self.d.get("/v1/models"), 200),
                   lambda: expect(self.d.get("/v1/models/x/file"), 200, 404)]

        def loop(seed):
            rng = random.Random(seed)
            while time.monotonic() < end:
                rng.choice(actions)()
        threads = [threading.Thread(target=loop, args=(i,)) for i in range(6)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        self.assertEqual(wrong, [])
        self.d.request("DELETE", "/v1/models/x")
        self.d.wait(lambda: self.d.running() == 0, "idle")


class Lifetime(unittest.TestCase):
    """Starting and stopping; each test has a daemon of its own."""

    def test_sigterm_lets_a_running_request_finish(self):
        """A stop refuses new work, finishes what runs, and exits with 0."""
        d = Daemon("--drain-timeout-s", "60", models=[("m", model_path)])
        expected = d.predict(IMAGE, "?samples=200").body
        got = []
        t = threading.Thread(target=lambda: got.append(d.predict(IMAGE, "?samples=200")))
        t.start()
        d.wait(lambda: d.running() > 0 or got, "running")
        self.assertEqual(d.stop(), 0)
        t.join()
        self.assertEqual((got[0].status, got[0].body), (200, expected))
        with self.assertRaises(OSError):
            d.get("/healthz")
        d.remove()

    def test_sigterm_cancels_what_outlives_the_drain_time(self):
        """Work that would take too long is answered with 503, and the exit is still clean."""
        d = Daemon("--drain-timeout-s", "1", models=[("m", model_path)])
        got = []
        threads = [threading.Thread(
            target=lambda: got.append(d.predict(IMAGE, "?samples=60000").status)) for _ in range(3)]
        for t in threads:
            t.start()
        d.wait(lambda: d.running() == 3, "running")
        began = time.monotonic()
        self.assertEqual(d.stop(), 0)
        self.assertLess(time.monotonic() - began, 10 * PATIENCE)
        for t in threads:
            t.join()
        self.assertEqual(got, [503, 503, 503])
        d.remove()

    def test_new_requests_on_open_connections_are_refused_while_stopping(self):
        """A connection from before the stop gets 503, not silence."""
        d = Daemon("--drain-timeout-s", "5", models=[("m", model_path)])
        old = http.client.HTTPConnection("127.0.0.1", d.port)
        old.request("GET", "/healthz")
        old.getresponse().read()
        t = threading.Thread(target=lambda: d.predict(IMAGE, "?samples=60000"))
        t.start()
        d.wait(lambda: d.running() == 1, "running")
        d.process.terminate()
        d.wait(lambda: "stopping" in d.log(), "stopping")
        old.request("POST", "/v1/models/m/predict", IMAGE, {"Content-Type": "image/tiff"})
        self.assertEqual(old.getresponse().status, 503)
        self.assertEqual(d.stop(), 0)
        t.join()
        d.remove()

    def test_second_daemon_on_the_same_folder_is_refused(self):
        """Two daemons never share a data folder."""
        d = Daemon()
        p = subprocess.run([USPLITD, "--data-dir", d.data_dir, "--listen", "127.0.0.1:0"],
                           stderr=subprocess.PIPE, timeout=30, check=False)
        self.assertEqual(p.returncode, 1)
        self.assertIn(b"in use", p.stderr)
        self.assertEqual(d.stop(), 0)
        d.remove()

    def test_spool_is_emptied_at_the_start_and_models_survive_kill_9(self):
        """After kill -9 the next start cleans up, and stored models are there."""
        d = Daemon()
        with open(model_path, "rb") as f:
            self.assertEqual(d.request("PUT", "/v1/models/kept", f.read()).status, 201)
        with d.connect() as s:
            s.sendall(b"POST /v1/models/kept/predict HTTP/1.1\r\nHost: localhost\r\n"
                      b"Content-Length: 100000\r\n\r\n" + IMAGE[:1000])
            d.wait(d.spool, "upload begun")
            d.process.kill()
            d.process.wait()
        self.assertTrue(d.spool())
        again = Daemon(data_dir=d.data_dir)
        self.assertEqual(again.spool(), [])
        self.assertEqual(again.predict(IMAGE, model="kept").status, 200)
        self.assertEqual(again.stop(), 0)
        again.remove()
        d.remove()

    def test_notify_socket_hears_ready_and_stopping(self):
        """systemd learns when the daemon is ready, alive and stopping."""
        with tempfile.TemporaryDirectory() as tmp:
            path = os.path.join(tmp, "notify")
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
                s.bind(path)
                s.settimeout(10 * PATIENCE)
                os.environ["NOTIFY_SOCKET"], os.environ["WATCHDOG_USEC"] = path, "1000000"
                try:
                    d = Daemon()
                finally:
                    del os.environ["NOTIFY_SOCKET"], os.environ["WATCHDOG_USEC"]
                self.assertEqual(s.recv(100), b"READY=1")
                self.assertEqual(s.recv(100), b"WATCHDOG=1")
                self.assertEqual(d.stop(), 0)
                heard = [s.recv(100)]
                while heard[-1] == b"WATCHDOG=1":
                    heard.append(s.recv(100))
                self.assertEqual(heard[-1], b"STOPPING=1")
                d.remove()

    def usage(self, *args):
        p = subprocess.run([USPLITD, *args], stderr=subprocess.PIPE, stdout=subprocess.PIPE,
                           timeout=30, check=False)
        return p.returncode, p.stdout.decode(), p.stderr.decode()

    def test_wrong_settings_are_refused_with_what_is_allowed(self):
        """A wrong setting names file, line, key, value and what is allowed; nothing starts."""
        conf = os.path.join(folder.name, "bad.conf")
        with open(conf, "w", encoding="ascii") as f:
            f.write("# settings\nthreads = 1\nmax-queue = many\n")
        for args, words in (
                (["--config", conf], [conf + ":3", "max-queue", "many", "1 to 10000"]),
                (["--data-dir", "x", "--listen", "0.0.0.0:0"], ["--insecure-no-auth"]),
                (["--data-dir", "x", "--listen", "[::]:0"], ["--insecure-no-auth"]),
                (["--data-dir", "x", "--listen", "nohost:1"], ["nohost"]),
                (["--data-dir", "x", "--backend", "tpu"], ["backend", "tpu", "auto|ref|cpu"]),
                (["--nonsense", "1"], ["nonsense"]), (["--threads"], ["threads"]),
                (["stray"], ["stray"]), ([], ["data-dir"])):
            with self.subTest(args):
                status, _, err = self.usage(*args)
                self.assertEqual(status, 2)
                self.assertEqual(err.count("\n"), 1)
                for word in words:
                    self.assertIn(word, err)

    def test_check_config_starts_nothing(self):
        """--check-config says that all is fine, or what is not."""
        missing = os.path.join(folder.name, "never-made")
        status, out, _ = self.usage("--check-config", "--data-dir", missing)
        self.assertEqual((status, os.path.exists(missing)), (0, False))
        self.assertIn("fine", out)
        self.assertEqual(self.usage("--check-config", "--listen", "x")[0], 2)

    def test_help_lists_every_setting_and_the_example_file_passes(self):
        """--help comes from the table; the shipped example file is a valid one."""
        status, out, _ = self.usage("--help")
        self.assertEqual(status, 0)
        for word in ("--listen", "--max-body-bytes", "--insecure-no-auth", "--drain-timeout-s"):
            self.assertIn(word, out)
        example = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "deploy",
                               "usplitd.conf.example")
        self.assertEqual(self.usage("--check-config", "--config", example)[0], 0)

    def test_ipv6_loopback_is_served(self):
        """[::1] works as the listening address."""
        if not socket.has_ipv6 or not os.path.exists("/proc/net/if_inet6"):
            self.skipTest("this machine has no IPv6")
        with open("/proc/net/if_inet6", encoding="ascii") as f:
            if not f.read().strip():
                self.skipTest("this machine has no IPv6 address")
        d = Daemon.__new__(Daemon)
        with tempfile.TemporaryDirectory() as tmp:
            port_file = os.path.join(tmp, "port")
            p = subprocess.Popen([USPLITD, "--data-dir", os.path.join(tmp, "d"), "--listen",
                                  "[::1]:0", "--port-file", port_file], stderr=subprocess.DEVNULL)
            d.log_path = os.devnull
            Daemon.wait(d, lambda: os.path.exists(port_file), "listening")
            with open(port_file, encoding="ascii") as f:
                c = http.client.HTTPConnection("::1", int(f.read()))
            c.request("GET", "/healthz")
            self.assertEqual(c.getresponse().status, 200)
            c.close()
            p.terminate()
            self.assertEqual(p.wait(60), 0)


if __name__ == "__main__":
    unittest.main(verbosity=2)
