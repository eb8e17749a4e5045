#!/usr/bin/env python3
"""usplitd as honest clients see it: predictions and the model registry, over real sockets.

Each test begins with the sentence that it proves; case.py says what holds after every test.
"""
import gzip
import hashlib
import os
import subprocess
import threading
import unittest
import zlib

from case import HEIGHT, IMAGE, WIDTH, Case, folder, model_path, other_path, tiffpy, value, zstd
from daemon import SANITIZED, USPLIT, make_model, read_all, status_of


class Predict(Case):
    def test_bytes_equal_those_of_the_command_line(self):
        """An image sent over HTTP comes back with the bytes that `usplit predict` writes."""
        src, dst = os.path.join(folder.name, "in.tif"), os.path.join(folder.name, "out.ome.tif")
        with open(src, "wb") as f:
            f.write(IMAGE)
        for query, flags in (("", []), ("?samples=3&seed=9&planes=mean,std",
                                        ["--samples", "3", "--seed", "9", "--planes", "mean,std"]),
                             ("?samples=3&grid=shifted", ["--samples", "3", "--grid", "shifted"]),
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

    def test_seam_score_stands_in_a_header(self):
        """The reply says how visible the tiles are, where a border of a tile crosses the image."""
        r = self.d.predict(IMAGE, "?padding=24")
        self.assertRegex(r["X-Usplit-Seam-Score"], r"^-?\d+\.\d\d$")
        self.assertLess(WIDTH, 64)
        self.assertIsNone(self.d.predict(IMAGE, "?padding=0")["X-Usplit-Seam-Score"])

    def test_shifted_grid_is_an_option_and_a_wrong_one_is_refused(self):
        """grid=shifted changes a mean of several samples; another word is answered with the list."""
        fixed, shifted = (self.d.predict(IMAGE, "?samples=2&grid=" + g).body
                          for g in ("fixed", "shifted"))
        self.assertNotEqual(fixed, shifted)
        r = self.d.predict(IMAGE, "?grid=tilted")
        self.assertEqual(r.status, 422)
        self.assertIn("query parameter grid: 'tilted' is not allowed; allowed: fixed, shifted",
                      r.body.decode())

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

    def test_unload_gives_the_memory_back(self):
        """A large model costs memory while it is loaded, and not afterwards."""
        path = os.path.join(self.d.data_dir, "models", "large.safetensors")
        make_model(path, size=("--variant", "regular", "--filters", "96"))
        size_kib = os.path.getsize(path) >> 10
        self.d.get("/v1/models")
        self.d.wait(lambda: self.d.get("/v1/models/large").json()["state"] == "on-disk", "checked")
        self.assertEqual(self.d.request("POST", "/v1/models/large/unload").status, 200)
        rss = []
        for _ in range(4):
            self.d.request("POST", "/v1/models/large/load")
            self.assertEqual(self.d.predict(IMAGE, model="large").status, 200)
            loaded = self.d.rss_kib()
            self.assertEqual(self.d.request("POST", "/v1/models/large/unload").json()["state"],
                             "on-disk")
            rss.append(self.d.rss_kib())
        if not SANITIZED:  # the first round also made the library's code and threads
            self.assertGreater(loaded - rss[-1], size_kib)
            self.assertLess(rss[-1] - rss[0], size_kib // 4)
        self.assertEqual(self.d.request("DELETE", "/v1/models/large").status, 204)

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

    def test_index_lists_what_exists(self):
        """What / lists answers, to whoever is no browser."""
        routes = self.d.get("/").json()["routes"]
        plain = [r["path"] for r in routes if r["method"] == "GET" and "{" not in r["path"]]
        self.assertGreaterEqual(len(plain), 5)
        for path in plain:
            self.assertEqual(self.d.get(path).status, 200, path)

    def test_other_sites_cannot_use_a_visitors_browser(self):
        """A foreign Origin and a foreign Host (DNS rebinding) are refused."""
        for headers, status in (({"Origin": "http://evil.example"}, 403), ({"Origin": "null"}, 403),
                                ({"Host": "evil.example"}, 421), ({"Host": "localhost"}, 200),
                                ({"Host": "h:1", "Origin": "http://h:1"}, 421)):
            r = self.d.request("POST", "/v1/models/m/load", headers=headers)
            self.assertEqual(r.status, status, headers)


if __name__ == "__main__":
    unittest.main(verbosity=2)
