#!/usr/bin/env python3
"""usplitd over HTTP as clients see it: the real program, real sockets, standard library only.

Each test begins with the sentence that it proves. Whatever a test does to the daemon, the daemon
must afterwards answer a healthy request with the same bytes as before, hold no spool file, and
have grown by less than a bound (tearDown).
"""
import array
import gzip
import hashlib
import http.client
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import zlib

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import tiffpy  # noqa: E402
from daemon import (PATIENCE, SANITIZED, USPLIT, USPLITD, Daemon, make_model,  # noqa: E402
                    read_all, status_of)

WIDTH, HEIGHT = 61, 47
MAX_GROWTH_KIB = 48 << 10
MAX_BODY = 8 << 20
MAX_DECODED = 16 << 20


def value(y, x):
    return (y * 131 + x * 17) % 997


IMAGE = tiffpy.make_tiff([tiffpy.plane(WIDTH, HEIGHT, "H", value)], WIDTH, HEIGHT)


def zstd(data, *args):
    return subprocess.run(["zstd", "-q", "-c", *args], input=data, stdout=subprocess.PIPE,
                          check=True).stdout


def setUpModule():
    global folder, model_path, other_path
    folder = tempfile.TemporaryDirectory(prefix="usplitd-test-")
    model_path = os.path.join(folder.name, "m.safetensors")
    other_path = os.path.join(folder.name, "other.safetensors")
    make_model(model_path)
    make_model(other_path, "--seed", "7")


def tearDownModule():
    folder.cleanup()


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


class Predict(Case):
    def test_bytes_equal_those_of_the_command_line(self):
        """An image sent over HTTP comes back with the bytes that `usplit predict` writes."""
        src, dst = os.path.join(folder.name, "in.tif"), os.path.join(folder.name, "out.ome.tif")
        with open(src, "wb") as f:
            f.write(IMAGE)
        for query, flags in (("", []), ("?samples=3&seed=9&planes=mean,std",
                                        ["--samples", "3", "--seed", "9", "--planes", "mean,std"]),
                             ("?dtype=uint16&padding=20",
                              ["--dtype", "uint16", "--padding", "20"])):
            with self.subTest(query):
                subprocess.run([USPLIT, "predict", "--model", model_path, *flags, src, dst],
                               check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
                with open(dst, "rb") as f:
                    self.assertEqual(self.d.predict(IMAGE, query).body, f.read())

    def test_reply_is_an_ome_tiff_with_both_channels_and_all_headers(self):
        """The reply is a readable OME-TIFF and its headers say how it was made."""
        r = self.d.predict(IMAGE, "?seed=5")
        self.assertEqual(r.status, 200, r.body)
        pages, pixels, names, _ = tiffpy.read_ome(r.body)
        self.assertEqual((len(pages), pages[0].width, pages[0].height), (2, WIDTH, HEIGHT))
        self.assertEqual(names, ["channel 1", "channel 2"])
        self.assertEqual(pixels["Type"], "float")
        with open(model_path, "rb") as f:
            identity = hashlib.sha256(f.read()).hexdigest()
        self.assertEqual(r["X-Usplit-Model"], "m@" + identity)
        self.assertEqual(r["X-Usplit-Seed"], "5")
        self.assertEqual(r["X-Usplit-Padding"], "24")
        self.assertEqual(r["X-Usplit-Samples"], "1")
        self.assertEqual(r["X-Usplit-Clipped-Pixels"], "0")
        self.assertEqual(r["Content-Type"], "image/tiff")
        self.assertEqual(r["ETag"], '"%s"' % hashlib.sha256(r.body).hexdigest())
        self.assertIn('filename="m-split.ome.tif"', r["Content-Disposition"])
        for part in ("queue", "decode", "compute", "encode"):
            self.assertRegex(r["Server-Timing"], part + r";dur=\d+\.\d")

    def test_npy_goes_in_and_out(self):
        """An NPY body is predicted like the TIFF, and Accept chooses NPY for the reply."""
        pixels = tiffpy.plane(WIDTH, HEIGHT, "H", value)
        npy = tiffpy.make_npy(pixels, (HEIGHT, WIDTH))
        r = self.d.predict(npy, Content_Type="application/x-npy", Accept="application/x-npy")
        self.assertEqual(r["Content-Type"], "application/x-npy")
        values, shape = tiffpy.read_npy(r.body)
        self.assertEqual(shape, (2, HEIGHT, WIDTH))
        pages = tiffpy.read_tiff(self.healthy)
        self.assertEqual(values, pages[0].data + pages[1].data)

    def test_body_without_content_type_or_as_octet_stream_is_sniffed(self):
        """The content decides what an undeclared body is."""
        for headers in ({}, {"Content-Type": "application/octet-stream"}):
            r = self.d.request("POST", "/v1/models/m/predict", IMAGE, headers)
            self.assertEqual(r.body, self.healthy)

    def test_request_codings_are_undone(self):
        """gzip, deflate and zstd bodies give the same bytes as the plain one."""
        for coding, body in (("gzip", gzip.compress(IMAGE)), ("deflate", zlib.compress(IMAGE)),
                             ("zstd", zstd(IMAGE)), ("identity", IMAGE)):
            with self.subTest(coding):
                r = self.d.predict(body, Content_Encoding=coding)
                self.assertEqual((r.status, r.body), (200, self.healthy))

    def test_reply_coding_follows_accept_encoding(self):
        """The reply is coded as asked, its ETag is that of the bytes sent."""
        for accept, coding, undo in (
                ("gzip", "gzip", gzip.decompress), ("zstd", "zstd", lambda b: zstd(b, "-d")),
                ("gzip, zstd", "zstd", lambda b: zstd(b, "-d")), ("br", None, bytes),
                ("zstd;q=0, gzip;q=0.5", "gzip", gzip.decompress)):
            with self.subTest(accept):
                r = self.d.predict(IMAGE, Accept_Encoding=accept)
                self.assertEqual(r["Content-Encoding"], coding)
                self.assertEqual(undo(r.body), self.healthy)
                self.assertEqual(r["ETag"], '"%s"' % hashlib.sha256(r.body).hexdigest())
                self.assertEqual(int(r["Content-Length"]), len(r.body))

    def test_chunked_upload_works(self):
        """A body without a known length is accepted."""
        r = self.d.request("POST", "/v1/models/m/predict",
                           iter([IMAGE[:100], IMAGE[100:101], IMAGE[101:]]),
                           {"Content-Type": "image/tiff"})
        self.assertEqual(r.body, self.healthy)

    def test_expect_100_continue_is_answered_before_the_body(self):
        """A client that waits for 100 Continue gets it, or the refusal instead of it."""
        head = ("POST /v1/models/%s/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/tiff"
                "\r\nContent-Length: %d\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n")
        with self.d.connect() as s:
            s.sendall((head % ("m", len(IMAGE))).encode())
            self.assertTrue(s.recv(1000).startswith(b"HTTP/1.1 100"))
            s.sendall(IMAGE)
            self.assertEqual(status_of(read_all(s)), 200)
        self.assertTrue(self.d.raw((head % ("nobody", 10)).encode()).startswith(b"HTTP/1.1 404"))

    def test_stack_keeps_its_frames(self):
        """A three-frame stack gives three frames of two channels."""
        planes = [tiffpy.plane(WIDTH, HEIGHT, "H", lambda y, x, k=k: value(y, x) + k)
                  for k in range(3)]
        text = tiffpy.ome_description(WIDTH, HEIGHT, "H", t=3, size_um=0.25)
        r = self.d.predict(tiffpy.make_tiff(planes, WIDTH, HEIGHT, description=text))
        pages, pixels, _, _ = tiffpy.read_ome(r.body)
        self.assertEqual((pixels["SizeT"], pixels["SizeC"], len(pages)), ("3", "2", 6))
        self.assertEqual(float(pixels["PhysicalSizeX"]), 0.25)

    def test_eight_clients_at_once_get_the_same_bytes(self):
        """Simultaneous requests do not disturb each other."""
        results = []
        threads = [threading.Thread(target=lambda: results.append(self.d.predict(IMAGE).body))
                   for _ in range(8)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        self.assertEqual(results, [self.healthy] * 8)

    def test_request_id_is_echoed_or_minted(self):
        """A sane X-Request-Id comes back, a dangerous one is replaced."""
        self.assertEqual(self.d.get("/healthz", **{"X-Request-Id": "abc-1"})["X-Request-Id"], "abc-1")
        self.assertRegex(self.d.get("/healthz", **{"X-Request-Id": 'a b"'})["X-Request-Id"],
                         "^[0-9a-f]{16}$")


class Routes(Case):
    def test_unknown_paths_are_404_and_wrong_methods_405_with_allow(self):
        """A wrong path and a wrong method are told apart, and the connection survives both."""
        for path in ("/nope", "/v1", "/v1/models/", "/v1/models/m/", "/v1/models/m/predict/x", "//"):
            self.assertProblem(self.d.get(path), 404)
        for method, path, allow in (("POST", "/v1/models", "GET, HEAD"), ("FOO", "/healthz", "GET"),
                                    ("GET", "/v1/models/m/predict", "POST"),
                                    ("POST", "/v1/models/m", "GET, HEAD, PUT, DELETE")):
            r = self.d.request(method, path)
            self.assertProblem(r, 405)
            self.assertIn(allow, r["Allow"])
            self.assertNotEqual(r["Connection"], "close")

    def test_head_gives_the_headers_of_get(self):
        """HEAD carries the length of what GET would send, and no body."""
        for path in ("/", "/healthz", "/v1/models", "/v1/models/m", "/v1/models/m/file"):
            g, h = self.d.get(path), self.d.request("HEAD", path)
            self.assertEqual((h.status, h.body, h["Content-Length"], h["ETag"]),
                             (200, b"", g["Content-Length"], g["ETag"]))

    def test_model_is_stored_listed_fetched_replaced_and_removed(self):
        """The life of a model file over HTTP, with its identity as ETag."""
        with open(model_path, "rb") as f:
            first = f.read()
        with open(other_path, "rb") as f:
            second = f.read()
        tag = '"%s"' % hashlib.sha256(first).hexdigest()
        r = self.d.request("PUT", "/v1/models/a-1.x_y", first)
        self.assertEqual((r.status, r["ETag"], r["Location"]), (201, tag, "/v1/models/a-1.x_y"))
        names = [m["name"] for m in self.d.get("/v1/models").json()["models"]]
        self.assertEqual(names, ["a-1.x_y", "m"])
        r = self.d.get("/v1/models/a-1.x_y/file")
        self.assertEqual((r.body, r["ETag"]), (first, tag))
        r = self.d.get("/v1/models/a-1.x_y/file", **{"If-None-Match": tag})
        self.assertEqual((r.status, r.body), (304, b""))
        info = self.d.get("/v1/models/a-1.x_y").json()
        self.assertEqual((info["state"], '"%s"' % info["sha256"]), ("on-disk", tag))
        self.assertEqual(info["metadata"]["architecture"]["n_filters"], 8)
        self.assertProblem(self.d.request("PUT", "/v1/models/a-1.x_y", second,
                                          {"If-None-Match": "*"}), 412)
        self.assertProblem(self.d.request("PUT", "/v1/models/a-1.x_y", second,
                                          {"If-Match": '"0"'}), 412)
        before = self.d.predict(IMAGE, model="a-1.x_y").body
        r = self.d.request("PUT", "/v1/models/a-1.x_y", zstd(second),
                           {"Content-Encoding": "zstd", "If-Match": tag})
        self.assertEqual(r.status, 200, r.body)
        self.assertNotEqual(self.d.predict(IMAGE, model="a-1.x_y").body, before)
        self.assertEqual(self.d.request("DELETE", "/v1/models/a-1.x_y").status, 204)
        self.assertProblem(self.d.request("DELETE", "/v1/models/a-1.x_y"), 404)
        self.assertProblem(self.d.predict(IMAGE, model="a-1.x_y"), 404, "a-1.x_y")

    def test_load_and_unload_change_the_state(self):
        """load brings a model into memory, unload takes it out."""
        for _ in range(3):
            self.assertEqual(self.d.request("POST", "/v1/models/m/unload").json()["state"], "on-disk")
            self.assertEqual(self.d.request("POST", "/v1/models/m/load").json()["state"], "loaded")
        self.assertProblem(self.d.request("POST", "/v1/models/nobody/load"), 404)
        self.assertProblem(self.d.request("POST", "/v1/models/nobody/unload"), 404)

    def test_broken_model_is_refused_and_the_old_one_stays(self):
        """A corrupt upload leaves the version that serves; a corrupt file in the folder is listed."""
        with open(model_path, "rb") as f:
            good = f.read()
        for bad in (b"not a model", good[:-100], good[:3000], b"\xff" * 8 + good[8:]):
            self.assertProblem(self.d.request("PUT", "/v1/models/m", bad), 422)
        self.assertProblem(self.d.request("PUT", "/v1/models/m", good,
                                          {"Content-Type": "multipart/form-data; boundary=x"}), 415)
        path = os.path.join(self.d.data_dir, "models", "broken.safetensors")
        with open(path, "wb") as f:
            f.write(good[:1000])

        def listed():
            return [m for m in self.d.get("/v1/models").json()["models"]
                    if m["name"] == "broken" and m["state"] == "broken" and m["error"]]
        self.d.wait(listed, "the broken file is listed with its error")
        self.assertNotIn(self.d.data_dir, listed()[0]["error"])
        self.assertProblem(self.d.predict(IMAGE, model="broken"), 422, "broken")
        self.assertProblem(self.d.request("POST", "/v1/models/broken/load"), 422)
        with open(path, "wb") as f:  # repaired by hand: noticed at the next lookup
            f.write(good)
        self.assertEqual(self.d.predict(IMAGE, model="broken").body, self.healthy)
        os.unlink(path)
        self.assertProblem(self.d.get("/v1/models/broken"), 404)

    def test_model_names_outside_the_rule_are_refused(self):
        """No name escapes the folder or hides in it."""
        for name in (".hidden", "..", "a%20b", "a%5cb", "%2e%2e", "x" * 101, "a:b"):
            r = self.d.request("PUT", "/v1/models/" + name, b"x")
            self.assertIn(r.status, (400, 404, 422))
        self.assertEqual(os.listdir(os.path.join(self.d.data_dir, "models")), ["m.safetensors"])

    def test_index_links_what_exists(self):
        """The page at / links only routes that answer."""
        page = self.d.get("/").body.decode()
        links = page.split('href="')[1:]
        self.assertGreaterEqual(len(links), 4)
        for link in links:
            self.assertEqual(self.d.get(link.split('"')[0]).status, 200)

    def test_other_sites_cannot_use_a_visitors_browser(self):
        """A foreign Origin and a foreign Host (DNS rebinding) are refused."""
        for headers, status in (({"Origin": "http://evil.example"}, 403), ({"Origin": "null"}, 403),
                                ({"Host": "evil.example"}, 421), ({"Host": "localhost"}, 200),
                                ({"Host": "h:1", "Origin": "http://h:1"}, 421)):
            r = self.d.request("POST", "/v1/models/m/load", headers=headers)
            self.assertEqual(r.status, status, headers)


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
