#!/usr/bin/env python3
"""GET /metrics: well-formed, counting what happened, and bounded whatever strangers ask for.

Each test begins with the sentence that it proves.
"""
import os
import re
import shutil
import subprocess
import unittest

from case import IMAGE, Case

DEF = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "server", "us_telemetry.def")
SAMPLE = re.compile(r'^([a-z_]+)(?:\{((?:[a-z]+="[^"\\]*",?)+)\})? (-?[0-9.]+(?:e[-+][0-9]+)?|\+Inf|NaN)$')


def parse(text):
    """{(name, labels): value}, {family: type}; every line must be well-formed."""
    samples, types, family = {}, {}, None
    for line in text.splitlines():
        if line.startswith("# HELP "):
            family, words = line[7:].split(" ", 1)
            assert words.endswith("."), line
        elif line.startswith("# TYPE "):
            name, kind = line[7:].split(" ")
            assert name == family and name not in types, line
            types[name] = kind
        else:
            m = SAMPLE.match(line)
            assert m, line
            base = m[1]
            if types[family] == "histogram":
                base = re.sub("_(bucket|sum|count)$", "", base)
            assert base == family, line
            key = (m[1], m[2] or "")
            assert key not in samples, line
            samples[key] = float(m[3])
    return samples, types


class Metrics(Case):
    def page(self):
        r = self.d.get("/metrics")
        self.assertEqual((r.status, r["Content-Type"]),
                         (200, "text/plain; version=0.0.4; charset=utf-8"))
        return parse(r.body.decode())

    def test_page_is_well_formed_and_complete(self):
        """Every metric of the table is there with its type; counters end in _total."""
        samples, types = self.page()
        with open(DEF, encoding="utf-8") as f:
            listed = re.findall(r'^US_METRIC\((\w+), \w+, "(\w+)"', f.read(), re.M)
        self.assertEqual(list(types.items()), [(name, kind) for kind, name in listed])
        for name, kind in types.items():
            self.assertEqual(name.endswith("_total"), kind == "counter", name)
        families = {re.sub("_(bucket|sum|count)$", "", name) for name, _ in samples}
        self.assertEqual(set(types) - families, {"usplit_tls_certificate_expiry_seconds"})
        for name in ("process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds",
                     "usplit_data_free_bytes", "process_start_time_seconds"):
            self.assertGreater(samples[name, ""], 0, name)

    def test_promtool_finds_nothing(self):
        """`promtool check metrics` has no complaint."""
        if not shutil.which("promtool"):
            self.skipTest("promtool (Debian: prometheus) is not installed")
        p = subprocess.run(["promtool", "check", "metrics"], input=self.d.get("/metrics").body,
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        self.assertEqual((p.returncode, p.stdout), (0, b""))

    def test_requests_and_predictions_are_counted_once(self):
        """Two predictions more are two more in every place that counts them."""
        def at(samples, name, labels=""):
            return samples.get((name, labels), 0)
        label = 'method="POST",route="/v1/models/{m}/predict",code="2xx"'
        self.d.wait(lambda: at(self.page()[0], "usplit_http_requests_active") <= 1, "quiet")
        before, _ = self.page()
        for _ in range(2):
            self.assertEqual(self.d.predict(IMAGE, "?samples=2").status, 200)
        self.d.wait(lambda: at(self.page()[0], "usplit_http_request_duration_seconds_count", label) >=
                    at(before, "usplit_http_request_duration_seconds_count", label) + 2, "the counts")
        after, _ = self.page()

        def grown(name, labels=""):
            return at(after, name, labels) - at(before, name, labels)
        self.assertEqual(grown("usplit_http_request_duration_seconds_count", label), 2)
        self.assertEqual(grown("usplit_queue_wait_seconds_count"), 2)
        self.assertEqual(grown("usplit_predict_patches_per_second_count"), 2)
        patches = grown("usplit_predict_patches_total")
        self.assertGreater(patches, 0)
        self.assertEqual(patches % 4, 0)
        self.assertEqual(grown("usplit_http_request_body_bytes_total"), 2 * len(IMAGE))
        self.assertGreater(grown("usplit_http_response_body_bytes_total"), 2 * len(self.healthy))
        self.assertGreater(grown("usplit_http_request_duration_seconds_sum", label), 0)
        self.assertEqual(at(after, "usplit_models", 'state="loaded"'), 1)

    def test_histograms_add_up(self):
        """Buckets grow with their bound, and the last one is the count."""
        samples, types = self.page()
        for name in (n for n, kind in types.items() if kind == "histogram"):
            series = {}
            for (sample, labels), value in samples.items():
                if sample == name + "_bucket":
                    rest, bound = re.match(r'(.*?),?le="([^"]*)"$', labels).groups()
                    series.setdefault(rest, []).append((float(bound), value))
            self.assertTrue(series, name)
            for rest, buckets in series.items():
                self.assertEqual(buckets, sorted(buckets))
                self.assertEqual([v for _, v in buckets], sorted(v for _, v in buckets))
                self.assertEqual(buckets[-1], (float("inf"), samples[name + "_count", rest]))

    def test_strangers_make_no_series(self):
        """Unknown paths, methods and names of models do not add labels."""
        for path in ("/nope", "/v1/models/nobody"):
            self.d.get(path)
        before = len(self.page()[0])
        for i in range(50):
            self.d.get("/nope/%d" % i)
            self.d.get("/v1/models/nobody%d" % i)
            self.d.request("M%d" % i, "/healthz")
        self.d.wait(lambda: self.page()[0]["usplit_http_requests_active", ""] <= 1, "quiet")
        self.assertLessEqual(len(self.page()[0]), before + 2 * 17)  # GET /metrics itself, 405
        self.assertNotIn("nobody", self.d.get("/metrics").body.decode())


if __name__ == "__main__":
    unittest.main(verbosity=2)
