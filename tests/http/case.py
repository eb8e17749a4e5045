"""What the HTTP tests share: two models, an image, and the test case that watches the daemon.

Whatever a test does to the daemon, the daemon must afterwards answer a healthy request with the
same bytes as before, hold no spool file and no descriptor more, and have grown by less than a bound.
"""
import atexit
import hashlib
import os
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import tiffpy  # noqa: E402
from daemon import SANITIZED, Daemon, make_model  # noqa: E402

WIDTH, HEIGHT = 61, 47
MAX_GROWTH_KIB = 48 << 10
MAX_BODY = 8 << 20
MAX_DECODED = 16 << 20


def value(y, x):
    return (y * 131 + x * 17) % 997


def zstd(data, *args):
    return subprocess.run(["zstd", "-q", "-c", *args], input=data, stdout=subprocess.PIPE,
                          check=True).stdout


IMAGE = tiffpy.make_tiff([tiffpy.plane(WIDTH, HEIGHT, "H", value)], WIDTH, HEIGHT)

folder = tempfile.TemporaryDirectory(prefix="usplitd-test-")
atexit.register(folder.cleanup)
model_path = os.path.join(folder.name, "m.safetensors")
other_path = os.path.join(folder.name, "other.safetensors")
make_model(model_path)
make_model(other_path, "--seed", "7")


class Case(unittest.TestCase):
    """One daemon for all tests of a class; every test leaves it healthy."""
    args = ("--max-body-bytes", str(MAX_BODY), "--max-decoded-bytes", str(MAX_DECODED))

    @classmethod
    def setUpClass(cls):
        cls.d = Daemon(*cls.args, models=[("m", model_path)])
        for _ in range(3):  # warm: pools, arenas, the predictor
            cls.healthy = cls.d.predict(IMAGE).body
        cls.rss, cls.fds = cls.d.rss_kib(), cls.d.n_fds()

    @classmethod
    def tearDownClass(cls):
        status = cls.d.stop()
        log = cls.d.log()
        cls.d.remove()
        if status != 0:
            raise AssertionError("exit status %r\n%s" % (status, log[-4000:]))

    def tearDown(self):
        self.assertEqual(hashlib.sha256(self.d.predict(IMAGE).body).hexdigest(),
                         hashlib.sha256(self.healthy).hexdigest())
        self.d.wait(lambda: not self.d.spool(), "empty spool")
        self.d.wait(lambda: self.d.n_fds() <= self.fds + 2, "descriptors closed")
        if not SANITIZED:
            self.assertLess(self.d.rss_kib() - self.rss, MAX_GROWTH_KIB)

    def assertProblem(self, reply, status, *words):
        """The reply is a well-formed problem with this status; its text has these words."""
        self.assertEqual(reply.status, status, reply.body[:500])
        self.assertEqual(reply["Content-Type"], "application/problem+json")
        p = reply.json()
        self.assertEqual(p["status"], status)
        self.assertEqual(p["error"], p["detail"])
        self.assertEqual(p["request_id"], reply["X-Request-Id"])
        self.assertTrue(p["type"].startswith("urn:usplit:problem:"))
        for word in words:
            self.assertIn(word, p["detail"])
        self.assertNotIn(self.d.data_dir, p["detail"])
