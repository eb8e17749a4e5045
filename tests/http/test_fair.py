#!/usr/bin/env python3
"""Who computes when several want to: the long stack of one user, the single frame of another.

Users are told apart by their addresses here (127.0.0.1, 127.0.0.2 ..): this daemon asks for no tokens.
"""
import http.client
import threading
import time
import unittest

from case import folder, tiffpy
from daemon import PATIENCE, Daemon, make_model

SIDE, FRAMES, STACK_SIDE, ROUNDS = 128, 200, 48, 5
SIZE = ("--variant", "lean", "--filters", "8", "--z-dims", "8,8,8", "--lc-scales", "2")
path = folder.name + "/fair.safetensors"
make_model(path, size=SIZE)


def pixel(y, x):
    return (y * 131 + x * 17) % 997


def image(n, side=SIDE):
    return tiffpy.make_tiff([tiffpy.plane(side, side, "H", lambda y, x, k=k: pixel(y + k, x))
                             for k in range(n)], side, side)


FRAME, STACK = image(1), image(FRAMES, STACK_SIDE)


class Fair(unittest.TestCase):
    def setUp(self):
        self.d = Daemon(models=[("m", path)])
        self.frame(1)  # the predictor is ready
        self.answers, self.errors = {}, []

    def tearDown(self):
        status, log = self.d.stop(), self.d.log()
        self.d.remove()
        self.assertEqual(status, 0, log[-4000:])

    def send(self, user, body, query=""):
        """Status, bytes and the server's timing of a prediction for the user of this number."""
        c = http.client.HTTPConnection("127.0.0.1", self.d.port, timeout=300 * PATIENCE,
                                       source_address=("127.0.0.%d" % user, 0))
        try:
            c.request("POST", "/v1/models/m/predict" + query, body, {"Content-Type": "image/tiff"})
            r = c.getresponse()
            return r.status, r.read(), r.headers["Server-Timing"]
        finally:
            c.close()

    def frame(self, user):
        """Seconds that a single frame takes, and its bytes."""
        start = time.monotonic()
        status, body, _ = self.send(user, FRAME)
        self.assertEqual(status, 200, body[:500])
        return time.monotonic() - start, body

    def start(self, name, user, body, query=""):
        def run():
            self.answers[name] = self.send(user, body, query) + (time.monotonic(),)
        t = threading.Thread(target=run)
        t.start()
        return t

    def running(self):
        return self.d.get("/readyz").json()["running"]

    def test_single_frame_does_not_wait_for_the_stack_of_another_user(self):
        """While a 200-frame stack is predicted, somebody else's frame returns within 3 times of what
        it takes alone; neither changes a byte of the other."""
        alone = sorted(self.frame(2)[0] for _ in range(ROUNDS))
        single = self.frame(2)[1]
        stack = self.start("stack", 1, STACK)
        self.d.wait(lambda: self.running() > 0, "the stack runs", 30)
        beside = []
        for _ in range(ROUNDS):
            seconds, body = self.frame(2)
            beside.append(seconds)
            self.assertEqual(body, single)
        self.assertTrue(stack.is_alive(), "the stack was too short to say anything")
        stack.join()
        self.assertEqual(self.answers["stack"][0], 200)
        ratio = sorted(beside)[ROUNDS // 2] / alone[ROUNDS // 2]
        print("single frame beside a stack of %d: %.2f times of alone (%.0f ms)" %
              (FRAMES, ratio, 1000 * alone[ROUNDS // 2]))
        self.assertLess(ratio, 3)
        self.assertEqual(self.send(1, STACK)[1], self.answers["stack"][1])


if __name__ == "__main__":
    unittest.main()
