#!/usr/bin/env python3
"""Bad input, hostile heads, and clients that leave or dawdle: what usplitd must survive.

Each test begins with the sentence that it proves; case.py says what holds after every test.
"""
import array
import gzip
import os
import signal
import socket
import threading
import time
import unittest
import zlib

from case import HEIGHT, IMAGE, MAX_BODY, WIDTH, Case, tiffpy, value, zstd
from daemon import PATIENCE, read_all, status_of


class BadInput(Case):
    def test_bad_images_are_refused_with_the_reason(self):
        """Every kind of unusable image gets a 4xx that says what is wrong with it."""
        plane = tiffpy.plane(WIDTH, HEIGHT, "H", value)

        def with_pixel(v):
            p = tiffpy.plane(WIDTH, HEIGHT, "f", value)
            p[7 * WIDTH + 3] = v
            return tiffpy.make_tiff([p], WIDTH, HEIGHT)
        rgb = array.array("B", bytes(3 * WIDTH * HEIGHT))
        grey = array.array("B", bytes(WIDTH * HEIGHT))
        table = [
            ("not a TIFF", b"hello, this is no image at all", 422, ""),
            ("truncated", IMAGE[:len(IMAGE) // 2], 422, ""),
            ("only the magic", IMAGE[:8], 422, ""),
            ("RGB", tiffpy.make_tiff([rgb], WIDTH, HEIGHT, photometric=2, samples=3), 422, "RGB"),
            ("palette", tiffpy.make_tiff([grey], WIDTH, HEIGHT, photometric=3), 422, "alette"),
            ("zero width", tiffpy.make_tiff([plane], WIDTH, HEIGHT, claim_width=0), 422, ""),
            ("2^31 pixels claimed", tiffpy.make_tiff([plane], WIDTH, HEIGHT, claim_width=1 << 16,
                                                     claim_height=1 << 15), (413, 422), ""),
            ("NaN", with_pixel(float("nan")), 422, "7"),
            ("infinity", with_pixel(float("inf")), 422, "3"),
            ("two channels", tiffpy.make_tiff([plane, plane], WIDTH, HEIGHT,
                                              description=tiffpy.ome_description(
                                                  WIDTH, HEIGHT, "H", c=2)), 422, "channel"),
        ]
        for name, body, status, word in table:
            with self.subTest(name):
                r = self.d.predict(body)
                self.assertIn(r.status, status if isinstance(status, tuple) else (status,), r.body)
                self.assertProblem(r, r.status, word)

    def test_bad_parameters_are_refused_by_name(self):
        """An unknown or impossible query parameter is named with its value."""
        for query, status, words in (
                ("?paddding=3", 400, ["paddding"]), ("?padding=-1", 422, ["padding", "-1"]),
                ("?padding=9999", 422, ["padding"]), ("?samples=0", 422, ["samples", "0"]),
                ("?samples=1e3", 422, ["1e3"]), ("?seed=1&seed=2", 400, ["seed", "twice"]),
                ("?latent=mode", 422, ["latent", "mode", "sample, mean"]),
                ("?planes=median", 422, ["planes"]), ("?dtype=int8", 422, ["dtype"]),
                ("?mix=0,,1", 422, ["mix"]), ("?channel=0&mix=1", 400, ["channel", "mix"]),
                ("?seed=%zz", 400, ["escape"]), ("?precision=f16", 422, ["f16"]),
                ("?padding=40", 422, ["padding"]), ("?channel=5", 422, ["channel"])):
            with self.subTest(query):
                self.assertProblem(self.d.predict(IMAGE, query), status, *words)

    def test_wrong_types_and_codings_are_refused_with_what_is_allowed(self):
        """406 and 415 tell what would have been accepted."""
        self.assertProblem(self.d.predict(IMAGE, Accept="image/png"), 406)
        r = self.d.predict(IMAGE, Content_Type="application/x-www-form-urlencoded")
        self.assertProblem(r, 415, "image/tiff")
        self.assertIn("image/tiff", r["Accept"])
        for coding in ("br", "gzip, gzip", "compress"):
            r = self.d.predict(IMAGE, Content_Encoding=coding)
            self.assertProblem(r, 415)
            self.assertIn("zstd", r["Accept-Encoding"])
        self.assertProblem(self.d.predict(IMAGE, model="nobody"), 404, "nobody")

    def test_missing_and_empty_bodies_are_refused(self):
        """No length is 411, an empty body 400, in any coding."""
        head = b"POST /v1/models/m/predict HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        self.assertEqual(status_of(self.d.raw(head + b"\r\n")), 411)
        self.assertProblem(self.d.predict(b""), 400, "empty")
        self.assertProblem(self.d.predict(gzip.compress(b""), Content_Encoding="gzip"), 400, "empty")
        self.assertEqual(status_of(self.d.raw(
            head + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n")), 400)

    def test_corrupt_codings_are_refused(self):
        """A damaged, truncated or mislabelled coding is a 400."""
        packed, z = gzip.compress(IMAGE), zstd(IMAGE, "--check")
        flipped = bytearray(packed)
        flipped[len(flipped) // 2] ^= 0xff
        for coding, body in (("gzip", bytes(flipped)), ("gzip", packed[:-5]), ("gzip", IMAGE),
                             ("zstd", z[:-6]), ("zstd", z[:40]), ("zstd", IMAGE),
                             ("zstd", z[:-4] + b"\0\0\0\0"), ("deflate", packed)):
            with self.subTest((coding, len(body))):
                self.assertProblem(self.d.predict(body, Content_Encoding=coding), 400)

    def test_bombs_are_refused_in_bounded_memory(self):
        """A small body that unpacks to far more than the cap is a 413."""
        zeros = bytes(256 << 20)
        for coding, body in (("gzip", gzip.compress(zeros, 9)), ("zstd", zstd(zeros)),
                             ("deflate", zlib.compress(zeros, 9))):
            with self.subTest(coding):
                self.assertProblem(self.d.predict(body, Content_Encoding=coding), 413)

    def test_zstd_window_over_8_mib_is_refused(self):
        """RFC 9659: a window that would need more memory than HTTP allows is no good frame."""
        body = zstd(os.urandom(64) * (200 << 10), "--long=27", "-3")
        r = self.d.predict(body, Content_Encoding="zstd")
        self.assertIn(r.status, (400, 413))

    def test_body_over_the_limit_is_refused_before_it_is_read(self):
        """413 comes while the client has sent nothing but the head, or the first bytes too many."""
        head = ("POST /v1/models/m/predict HTTP/1.1\r\nHost: localhost\r\n"
                "Content-Type: image/tiff\r\n")
        with self.d.connect() as s:
            s.sendall((head + "Content-Length: %d\r\n\r\n" % (1 << 40)).encode())
            self.assertEqual(status_of(read_all(s)), 413)
        with self.d.connect() as s:  # unknown length: refused as soon as it is too much
            s.sendall((head + "Transfer-Encoding: chunked\r\n\r\n").encode())
            chunk = b"%x\r\n" % (1 << 20) + bytes(1 << 20) + b"\r\n"
            sent = 0
            try:
                for _ in range(64):
                    s.sendall(chunk)
                    sent += 1
            except ConnectionError:
                pass
            self.assertEqual(status_of(read_all(s)), 413)
        r = self.d.predict(bytes(MAX_BODY + 1))
        self.assertProblem(r, 413, str(MAX_BODY))

    def test_smuggling_shapes_are_refused_and_the_connection_closed(self):
        """Heads that two servers could read differently get a 4xx and nothing after them counts."""
        post = b"POST /v1/models/m/predict HTTP/1.1\r\nHost: localhost\r\n"
        get = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
        follow = get + b"\r\n"
        table = [
            ("length and chunked", post + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
             b"0\r\n\r\n", 400),
            ("two lengths", post + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!", 400),
            ("two equal lengths", post + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", 400),
            ("signed length", post + b"Content-Length: +5\r\n\r\nhello", 400),
            ("listed length", post + b"Content-Length: 5, 5\r\n\r\nhello", 400),
            ("unknown coding", post + b"Transfer-Encoding: gzip\r\n\r\n", 501),
            ("coding list", post + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 501),
            ("two hosts", get + b"Host: other\r\n\r\n", 400),
            ("no host", b"GET /healthz HTTP/1.1\r\n\r\n", 400),
            ("NUL in the path", b"GET /v1/models/a%00b HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
            ("encoded CR LF", b"GET /a%0d%0ab HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
            ("encoded slash", b"GET /v1/models/a%2fb HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
            ("broken escape", b"GET /v1/models/a%2 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
            ("no slash", b"GET healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
            ("control in a header", get + b"X-A: a\x01b\r\n\r\n", 400),
            ("space in a name", get + b"X A: b\r\n\r\n", 400),
            ("101 headers", get + b"".join(b"X-%d: 1\r\n" % i for i in range(101)) + b"\r\n", 431),
            ("long target", b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 414),
            ("huge head", get + b"X: " + b"a" * 300000 + b"\r\n\r\n", 431),
        ]
        for name, data, status in table:
            with self.subTest(name):
                reply = self.d.raw(data + follow)
                self.assertEqual(status_of(reply), status, reply[:300])
                self.assertNotIn(b"HTTP/1.1 200", reply)

    def test_body_of_a_get_does_not_become_the_next_request(self):
        """A body that a route ignores is consumed, not parsed."""
        inner = b"GET /nope HTTP/1.1\r\nHost: localhost\r\n\r\n"
        reply = self.d.raw(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
                           % len(inner) + inner +
                           b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        self.assertEqual(reply.count(b"HTTP/1.1 200"), 2, reply)
        self.assertNotIn(b"404", reply)

    def test_pipelined_requests_are_answered_in_order(self):
        """Two requests in one packet get two replies."""
        one = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
        reply = self.d.raw(one + b"\r\n" + one + b"Connection: close\r\n\r\n")
        self.assertEqual(reply.count(b"HTTP/1.1 200"), 2)

    def test_log_lines_cannot_be_forged(self):
        """A request puts no control character and no second line into the log."""
        self.d.raw(b"GET /a\x1b[31m%0alevel=error HTTP/1.1\r\nHost: localhost\r\n\r\n")
        self.d.get("/healthz")
        for line in self.d.log().splitlines():
            self.assertTrue(line.startswith("time="), line)
            self.assertTrue(all(31 < ord(c) < 127 for c in line), line)


class Clients(Case):
    """Clients that leave or dawdle."""
    args = Case.args + ("--header-timeout-s", "1", "--body-grace-s", "1", "--idle-timeout-s", "3",
                        "--max-queue", "2")
    long = "?samples=60000"  # minutes of work, if nobody stops it

    def start_long(self, s):
        s.sendall(b"POST /v1/models/m/predict%s HTTP/1.1\r\nHost: localhost\r\n"
                  b"Content-Type: image/tiff\r\nContent-Length: %d\r\n\r\n"
                  % (self.long.encode(), len(IMAGE)) + IMAGE)

    def test_client_gone_in_mid_upload_leaves_nothing(self):
        """A broken upload frees its spool file."""
        for _ in range(5):
            with self.d.connect() as s:
                s.sendall(b"POST /v1/models/m/predict HTTP/1.1\r\nHost: localhost\r\n"
                          b"Content-Length: 100000\r\n\r\n" + IMAGE[:1000])
                self.d.wait(self.d.spool, "upload begun")
            self.d.wait(lambda: not self.d.spool(), "upload dropped")

    def test_client_gone_while_predicting_cancels_the_work(self):
        """Hanging up stops the computation within a patch, not after all samples."""
        s = self.d.connect()
        self.start_long(s)
        self.d.wait(lambda: self.d.running() == 1, "running")
        time.sleep(0.2)
        began = time.monotonic()
        s.close()
        self.d.wait(lambda: self.d.running() == 0, "cancelled", 3)
        self.assertLess(time.monotonic() - began, 3 * PATIENCE)
        self.d.wait(lambda: "status=499" in self.d.log(), "logged as 499")

    def test_client_gone_while_queued_frees_its_place(self):
        """A full queue answers 503 with Retry-After; whoever leaves makes room at once."""
        with self.d.connect() as running:
            self.start_long(running)
            self.d.wait(lambda: self.d.get("/readyz").json()["running"] == 1, "running")
            waiting = [self.d.connect() for _ in range(2)]
            for s in waiting:
                self.start_long(s)
            self.d.wait(lambda: self.d.get("/readyz").json()["waiting"] == 2, "two wait")
            r = self.d.predict(IMAGE)
            self.assertProblem(r, 503, "queue")
            self.assertGreater(int(r["Retry-After"]), 0)
            self.assertEqual(self.d.get("/healthz").status, 200)
            waiting[0].close()
            self.d.wait(lambda: self.d.get("/readyz").json()["waiting"] == 1, "place freed", 2)
            self.assertEqual(self.d.get("/readyz").json()["running"], 1)
            waiting[1].close()
        self.d.wait(lambda: self.d.running() == 0, "all cancelled")

    def test_neighbour_is_not_cancelled(self):
        """Only the work of the client that left is stopped."""
        s = self.d.connect()
        self.start_long(s)
        self.d.wait(lambda: self.d.running() == 1, "running")
        got = []
        t = threading.Thread(target=lambda: got.append(self.d.predict(IMAGE)))
        t.start()
        self.d.wait(lambda: self.d.running() == 2, "one waits")
        s.close()
        t.join()
        self.assertEqual(got[0].body, self.healthy)

    def test_dribbled_head_is_cut(self):
        """One byte of head per 100 ms does not hold a connection beyond the deadline."""
        with self.d.connect() as s:
            began = time.monotonic()
            try:
                for byte in b"GET /healthz HTTP/1.1\r\nX-Slow: " + b"a" * 100:
                    s.sendall(bytes([byte]))
                    time.sleep(0.1)
            except ConnectionError:
                pass
            self.assertLess(time.monotonic() - began, 4 * PATIENCE)

    def test_dribbled_second_head_is_cut(self):
        """A finished request buys no unlimited second one."""
        with self.d.connect() as s:
            s.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            self.assertIn(b"200 OK", s.recv(4096))
            began = time.monotonic()
            try:
                for byte in b"GET /healthz HTTP/1.1\r\nX-Slow: " + b"a" * 100:
                    s.sendall(bytes([byte]))
                    time.sleep(0.1)
            except ConnectionError:
                pass
            self.assertLess(time.monotonic() - began, 8 * PATIENCE)

    def test_dribbled_body_is_cut(self):
        """A body below the minimum rate ends with the connection."""
        with self.d.connect() as s:
            s.sendall(b"POST /v1/models/m/predict HTTP/1.1\r\nHost: localhost\r\n"
                      b"Content-Length: 10000\r\n\r\n")
            began = time.monotonic()
            try:
                for _ in range(100):
                    s.sendall(b"x")
                    time.sleep(0.1)
            except ConnectionError:
                pass
            self.assertLess(time.monotonic() - began, 5 * PATIENCE)

    def test_reply_that_nobody_reads_is_cut(self):
        """A client that stops reading its reply does not hold it for ever."""
        path = os.path.join(self.d.data_dir, "models", "big.safetensors")
        with open(path, "wb") as f:
            f.truncate(64 << 20)  # more than the buffers between us hold
        with self.d.connect() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            s.sendall(b"GET /v1/models/big/file HTTP/1.1\r\nHost: localhost\r\n\r\n")
            self.d.wait(lambda: "1 downloading" in self.d.log(), "cut")
        os.unlink(path)

    def test_128_connections_ready_at_once_are_all_served(self):
        """The stall of libmicrohttpd's epoll engine (128k ready events in one round) is not ours."""
        for n in (127, 128, 256, 384):
            socks = [self.d.connect() for _ in range(n)]
            try:
                self.d.process.send_signal(signal.SIGSTOP)
                for s in socks:
                    s.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            finally:
                self.d.process.send_signal(signal.SIGCONT)
            for s in socks:
                s.settimeout(5 * PATIENCE)
                self.assertIn(b"200 OK", s.recv(4096))
                s.close()

    def test_fifty_slow_clients_do_not_slow_a_healthy_one(self):
        """While dribblers hold connections, a healthy request is served as before."""
        socks = [self.d.connect() for _ in range(50)]
        for s in socks:
            s.sendall(b"GET /healthz HTTP/1.1\r\nX-Slow: ")
        for _ in range(5):
            began = time.monotonic()
            self.assertEqual(self.d.get("/healthz").status, 200)
            self.assertLess(time.monotonic() - began, 0.5 * PATIENCE)
        for s in socks:
            self.assertEqual(read_all(s), b"")
            s.close()


if __name__ == "__main__":
    unittest.main(verbosity=2)
