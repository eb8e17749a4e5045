#!/usr/bin/env python3
"""The dashboard's files as the daemon serves them, without a browser (tests/web has one).

Each test begins with the sentence that it proves.
"""
import gzip
import hashlib
import os
import re
import unittest

from daemon import Daemon

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
SOURCES = os.path.join(ROOT, "server", "web")
TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8",
         ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
NAMES = sorted(n for n in os.listdir(SOURCES) if os.path.splitext(n)[1] in TYPES)


def source(name):
    with open(os.path.join(SOURCES, name), "rb") as f:
        return f.read()


class Web(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.d = Daemon()

    @classmethod
    def tearDownClass(cls):
        status, log = cls.d.stop(), cls.d.log()
        cls.d.remove()
        if status != 0:
            raise AssertionError(log[-4000:])

    def test_every_source_is_served_with_type_tag_and_policy(self):
        """Each file arrives as it stands in the sources, typed, tagged and fenced in."""
        self.assertGreater(len(NAMES), 10)
        for name in NAMES:
            r = self.d.get("/ui/" + name)
            self.assertEqual((r.status, r["Content-Type"]), (200, TYPES[os.path.splitext(name)[1]]))
            self.assertEqual(r.body, source(name))
            self.assertEqual(r["ETag"], '"%s"' % hashlib.sha256(r.body).hexdigest())
            policy = r["Content-Security-Policy"]
            self.assertIn("default-src 'self'", policy)
            self.assertNotIn("unsafe", policy)
            self.assertNotIn("*", policy)
            self.assertEqual(r["X-Content-Type-Options"], "nosniff")
            self.assertEqual(r["Cache-Control"], "no-cache")

    def test_known_tag_gives_304_and_head_no_body(self):
        """What a browser holds is not sent again; HEAD has the headers of GET."""
        for name in NAMES:
            g, h = self.d.get("/ui/" + name), self.d.request("HEAD", "/ui/" + name)
            self.assertEqual((h.status, h.body, h["Content-Length"], h["ETag"]),
                             (200, b"", str(len(g.body)), g["ETag"]))
            again = self.d.get("/ui/" + name, **{"If-None-Match": g["ETag"]})
            self.assertEqual((again.status, again.body, again["ETag"]), (304, b"", g["ETag"]))
            other = self.d.get("/ui/" + name, **{"If-None-Match": '"%s"' % ("0" * 64)})
            self.assertEqual(other.status, 200)

    def test_compressed_is_the_same_under_another_tag(self):
        """gzip goes out where it is offered, never where it is not, and has a tag of its own."""
        plain = self.d.get("/ui/style.css")
        for offer in ("gzip", "gzip, deflate, br, zstd", "x, *"):
            r = self.d.get("/ui/style.css", **{"Accept-Encoding": offer})
            self.assertEqual(r["Content-Encoding"], "gzip", offer)
            self.assertEqual(gzip.decompress(r.body), plain.body)
            self.assertNotEqual(r["ETag"], plain["ETag"])
            self.assertIn("Accept-Encoding", r["Vary"])
            self.assertEqual(self.d.get("/ui/style.css", **{
                "Accept-Encoding": offer, "If-None-Match": r["ETag"]}).status, 304)
        for offer in ("gzip;q=0", "zstd", "identity", "gzip;q=0, *"):
            r = self.d.get("/ui/style.css", **{"Accept-Encoding": offer})
            self.assertEqual((r["Content-Encoding"], r.body), (None, plain.body), offer)

    def test_browser_gets_the_page_and_a_program_the_routes(self):
        """/ is the dashboard to whoever rather wants HTML, and JSON to everybody else."""
        page = self.d.get("/", **BROWSER)
        self.assertEqual((page.status, page.body), (200, source("index.html")))
        self.assertIn("Accept", page["Vary"])
        for accept in ("*/*", "application/json", "application/json, text/html;q=0.5", "text/html;q=0"):
            r = self.d.get("/", Accept=accept)
            self.assertEqual(r["Content-Type"], "application/json", accept)
            self.assertIn("Accept", r["Vary"])
        self.assertEqual(self.d.get("/")["Content-Type"], "application/json")

    def test_page_refers_to_embedded_files_only(self):
        """Every address in the page, the scripts and the style sheet is a file that is served."""
        html = source("index.html").decode()
        found = re.findall(r'(?:src|href)="([^"#]+)"', html)
        self.assertGreater(len(found), 3)
        for name in NAMES:
            text = source(name).decode()
            found += ["/ui/" + f for f in re.findall(r'from "\./([^"]+)"', text)]
            found += re.findall(r'"(/ui/[^"]+)"', text)
            if name.endswith(".css"):
                self.assertNotRegex(text, r"url\(|@import")
            outside = [u for u in re.findall(r"https?://[^\s\"'<]+", text)
                       if u not in ("http://www.w3.org/2000/svg", "http://HOST:PORT/")]
            self.assertEqual(outside, [], name)
        for path in set(found):
            self.assertEqual(self.d.get(path).status, 200, path)

    def test_page_needs_nothing_that_the_policy_forbids(self):
        """No inline script, handler or style: the policy would stop it."""
        html = source("index.html").decode()
        self.assertNotRegex(html, r"<script(?![^>]*\bsrc=)")
        self.assertNotRegex(html, r"\s(on\w+|style)=")
        for name in NAMES:
            if name.endswith(".js"):
                self.assertNotRegex(source(name).decode(), r"\beval\(|new Function|innerHTML|insertAdjacentHTML")

    def test_settings_are_described(self):
        """The form of a training is made from the daemon's own table: every key with its default."""
        rows = {s["key"]: s for s in self.d.get("/ui/settings.json").json()["settings"]}
        self.assertEqual(rows["training.batch"]["default"], 32)
        self.assertEqual((rows["training.batch"]["kind"], rows["training.batch"]["min"]), ("int", 1))
        self.assertEqual(rows["architecture.variant"]["words"], "vanilla|lean|regular|deep")
        self.assertEqual(rows["architecture.z_dims"]["default"], [128] * 4)
        self.assertIsNone(rows["data.channels"]["default"])
        for row in rows.values():
            self.assertTrue(row["allowed"] and row["text"], row)

    def test_other_names_are_404(self):
        """There is no file but those embedded."""
        for name in ("nope.js", "embed.py", "meson.build", "..%5cstyle.css"):
            self.assertIn(self.d.get("/ui/" + name).status, (400, 404, 422), name)


if __name__ == "__main__":
    unittest.main(verbosity=2)
