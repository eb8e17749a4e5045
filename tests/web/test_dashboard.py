#!/usr/bin/env python3
"""The dashboard in a headless Chromium against the real daemon, as a person in a lab uses it.

  test_dashboard.py [SCREENSHOT-DIR]     status 77 where Chromium or selenium is missing

Each test begins with the sentence that it proves. After each the console must be silent: no script
error, no request to elsewhere, nothing that the content security policy had to stop.
"""
import os
import subprocess
import sys
import tempfile
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "http"), os.path.join(HERE, "..", "support")]
import tiffpy  # noqa: E402
from browser import MISSING, PHONE, WIDE, Browser  # noqa: E402
from case import folder, make_model, model_path  # noqa: E402
from daemon import USPLIT, USPLITD, Daemon  # noqa: E402

SHOTS = os.path.join(os.environ.get("MESON_BUILD_ROOT", os.path.join(HERE, "..", "..", "build")),
                     "dashboard")
SIZE = 256
SMALL_TRAINING = ('{"architecture":{"z_dims":[4,4],"lc_scales":2},"training":{"precision":"f32",'
                  '"val_patches_max":8}}')


def stack(name, size, frames, *args):
    path = os.path.join(folder.name, name)
    subprocess.run([USPLIT, "dataset", "critters", "--size", str(size), "--frames", str(frames),
                    "--seed", "3", *args, path], check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)
    return path


def image(name, w=SIZE, h=SIZE, kind="H"):
    path = os.path.join(folder.name, name)

    def value(y, x):
        return 300 + (((x // 16 + y // 16) % 2) * 250) + (x * 3 + y) % 200
    with open(path, "wb") as f:
        f.write(tiffpy.make_tiff([tiffpy.plane(w, h, kind, value)], w, h))
    return path


class Dashboard(unittest.TestCase):
    args = ()

    @classmethod
    def setUpClass(cls):
        cls.d = Daemon(*cls.args, models=[("cells", model_path)])
        cls.b = Browser("http://127.0.0.1:%d" % cls.d.port, SHOTS)

    @classmethod
    def tearDownClass(cls):
        cls.b.close()
        cls.d.stop()
        cls.d.remove()

    def tearDown(self):
        self.assertEqual(self.b.complaints(), [])
        elsewhere = self.b.js("return performance.getEntriesByType('resource').map(r => r.name)"
                              ".filter(n => !n.startsWith(location.origin) && !n.startsWith('blob:'))")
        self.assertEqual(elsewhere, [])

    def until(self, condition, what, seconds=20):
        end = time.monotonic() + seconds
        while True:
            try:
                if condition():
                    return
            except Exception as e:  # the page is being rewritten: look again
                last = e
            else:
                last = None
            if time.monotonic() > end:
                self.b.shot("in-vain")
                self.fail("waited in vain: %s (%s) %s" % (what, last, self.b.complaints()))
            time.sleep(0.05)

    def split(self, path, **fields):
        b = self.b
        b.open("#split/cells")
        self.until(lambda: b.js("return document.getElementById('split-model').value") == "cells",
                   "models in the form")
        for name, value in fields.items():
            b.js("arguments[0].closest('details')?.setAttribute('open', '')", b.one("#split-" + name))
            field = b.one("#split-" + name)
            if field.tag_name == "input":
                field.clear()
            field.send_keys(value)
        b.one("#split-file").send_keys(path)
        b.one("#split-go").click()

    def viewed(self):
        self.until(lambda: self.b.shown("#v-wipe") and self.b.shown("#split-go:enabled"), "a result")

    def test_overview_shows_the_daemon(self):
        """The first view tells backend, queue and models."""
        b = self.b
        b.open()
        self.until(lambda: b.text("#health-text") == "ready" and b.text("#tiles"), "the state")
        self.assertIn("Computes on", b.text("#tiles"))
        self.assertIn("usplitd", b.text("#about"))

    def test_image_is_split_and_compared(self):
        """Upload, predict, and the slider shows input and overlay; contrast changes the picture."""
        b = self.b
        self.split(image("cells 1.tif"), samples="2", seed="7")
        self.viewed()
        self.assertEqual(b.one("#viewer").get_attribute("data-size"), "%dx%d" % (SIZE, SIZE))
        left = "const c = document.querySelector('.stage canvas'); return Array.from(" \
               "c.getContext('2d').getImageData(arguments[0], 40, 1, 1).data)"
        self.until(lambda: b.js(left, 5)[3] == 255, "a picture")
        grey = b.js(left, 5)
        self.assertEqual(grey[0], grey[1])  # the input is grey, the overlay is not
        some = [b.js(left, x) for x in range(SIZE // 2 + 8, SIZE, 7)]
        self.assertTrue(any(p[0] != p[1] for p in some), some)
        b.shot("split")
        b.js("const w = document.getElementById('v-wipe'); w.value = 1000; w.dispatchEvent(new Event('input'))")
        self.until(lambda: b.js(left, SIZE - 4)[0] == b.js(left, SIZE - 4)[1], "the input over all")
        before = [b.js(left, x) for x in range(0, SIZE, 9)]
        b.js("const r = document.querySelector('.layer input'); r.value = 900; r.dispatchEvent(new Event('input'))")
        self.until(lambda: [b.js(left, x) for x in range(0, SIZE, 9)] != before, "other contrast")
        b.js("document.querySelector('#viewer details').open = true")
        for word in ("cells@", "7", "Seam score", "curl --data-binary"):
            self.assertIn(word, b.text("#viewer details"))

    def test_channels_are_superposed(self):
        """Two channels mixed for the network are shown mixed, and the page says so."""
        b = self.b
        path = os.path.join(folder.name, "two.tif")
        pages = [tiffpy.plane(64, 48, "H", lambda y, x: y + x + 300)] * 2
        with open(path, "wb") as f:
            f.write(tiffpy.make_tiff(pages, 64, 48))
        self.split(path, mix="0,1", pages="channels")
        self.viewed()
        self.assertIn("mean of its channels", b.text("#v-left"))
        self.assertEqual(b.one("#viewer").get_attribute("data-size"), "64x48")

    def test_input_that_cannot_be_shown_is_split(self):
        """Where the preview cannot read the input, the result is there and the page says why."""
        b = self.b
        path = os.path.join(folder.name, "lzw.npy")
        with open(path, "wb") as f:  # big-endian: the daemon reads it, the preview does not
            head = b"{'descr': '>u2', 'fortran_order': False, 'shape': (32, 32), }"
            head = head.ljust(117) + b"\n"
            f.write(b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + bytes(range(256)) * 8)
        self.split(path)
        self.until(lambda: b.shown("#v-wipe") and b.shown(".note"), "the result with a note")
        self.assertIn("The input is not shown", b.text(".note"))

    def test_refusal_is_shown_in_words(self):
        """What the daemon refuses is on the page with its reason, and the form can be used again."""
        b = self.b
        path = os.path.join(folder.name, "no.tif")
        with open(path, "wb") as f:
            f.write(b"this is no image at all")
        self.split(path)
        self.until(lambda: b.shown("#split-error"), "the refusal")
        self.assertNotIn("{", b.text("#split-error"))
        self.assertTrue(b.one("#split-go").is_enabled())
        b.complaints()  # Chromium notes every 4xx by itself

    def train(self, model, steps):
        b = self.b
        b.open("#train")
        self.until(lambda: b.all("#train-common input") and b.js(
            "return document.getElementById('data-set').options.length") > 0, "the form")
        if "critters" not in b.text("#data-set"):
            b.one("#data-name").send_keys("critters")
            b.one("#data-files").send_keys(stack("critters.tif", 128, 8))
            self.until(lambda: "8 frames" in b.text("#data-list"), "the data set")
        b.one("#train-model").clear()
        b.one("#train-model").send_keys(model)
        for key, value in (("architecture.variant", "lean"), ("architecture.n_filters", "4"),
                           ("patch_size", "32"), ("training.batch", "4"),
                           ("training.max_steps", str(steps))):
            field = b.one("[id='set-%s']" % key)
            if field.tag_name == "input":
                field.clear()
            field.send_keys(value)
        b.js("document.getElementById('train-json-box').open = true")
        b.one("#train-json").clear()
        b.one("#train-json").send_keys(SMALL_TRAINING)
        return b

    def test_training_is_watched_live(self):
        """Data go up, a training starts from the form, and its curves appear while it runs."""
        b = self.train("watched", 300)
        b.shot("train")
        b.one("#train-go").click()
        self.until(lambda: "#job/" in b.d.current_url, "the job's page")
        self.until(lambda: int(b.one("#curve-loss").get_attribute("data-points") or 0) > 3, "points")
        self.until(lambda: b.text("#job-tiles").startswith("State\nsucceeded"), "the end", 60)
        self.until(lambda: int(b.one("#curve-psnr").get_attribute("data-points") or 0) > 3, "PSNR")
        self.assertIn("validation", b.text("#curve-loss figcaption"))
        self.assertIn(b.one("#curve-loss").get_attribute("data-engine"), ("chart.js", "svg"))
        b.js("for (const d of document.querySelectorAll('#view-job details')) d.open = true")
        self.assertGreater(len(b.all("#epochs tbody tr")), 1)
        self.assertIn("succeeded", b.text("#job-log"))
        points = b.one("#curve-loss").get_attribute("data-points")
        b.js("for (const d of document.querySelectorAll('#view-job details')) d.open = false")
        b.shot("job")
        b.d.refresh()  # the history alone gives the curve again
        self.until(lambda: int(b.one("#curve-loss").get_attribute("data-points") or 0) > 3, "history")
        self.assertLessEqual(int(b.one("#curve-loss").get_attribute("data-points")), int(points))
        b.open("#overview")
        self.until(lambda: "watched" in b.text("#jobs"), "the job in the list")
        b.shot("overview")

    def test_curves_are_drawn_without_the_library(self):
        """A build without Chart.js draws the same points as SVG."""
        b = self.train("plain", 120)
        b.one("#train-go").click()
        self.until(lambda: b.text("#job-tiles").startswith("State\nsucceeded"), "the end", 60)
        try:
            b.block("*chart.min.js")
            b.open(b.d.current_url[b.d.current_url.index("#"):])
            self.until(lambda: b.all("#curve-loss svg path"), "a path")
            self.assertEqual(b.one("#curve-loss").get_attribute("data-engine"), "svg")
            b.shot("job-svg")
        finally:
            b.block()
        b.complaints()  # the blocked file

    def test_refused_setting_is_shown_at_its_field(self):
        """A value out of range is marked where it was typed, with what is allowed."""
        b = self.train("refused", 5)
        b.one("[id='set-training.batch']").clear()
        b.one("[id='set-training.batch']").send_keys("0")
        b.one("#train-go").click()
        self.until(lambda: b.shown("[id='err-training.batch']"), "the error at the field")
        self.assertIn("allowed", b.text("[id='err-training.batch']"))
        self.assertEqual(b.one("[id='set-training.batch']").get_attribute("aria-invalid"), "true")
        self.assertEqual(b.js("return document.activeElement.id"), "set-training.batch")
        b.shot("train-refused")
        b.complaints()

    def test_jobs_are_paused_resumed_and_cancelled(self):
        """The buttons of a running job do what they say; cancelling asks first."""
        b = self.train("long", 1000000)
        b.js("arguments[0].value = '100000'", b.one("[id='set-training.max_epochs']"))
        b.one("#train-go").click()
        self.until(lambda: b.text("#job-tiles").startswith("State\nrunning"), "running")

        def press(name):
            def found():
                fit = [e for e in b.all("#job-actions button") if e.text == name]
                return fit and (fit[0].click() or True)
            self.until(found, "button " + name)

        press("Pause")
        self.until(lambda: b.text("#job-tiles").startswith("State\npaused"), "paused")
        press("Resume")
        self.until(lambda: b.text("#job-tiles").startswith("State\nrunning"), "running again")
        press("Cancel")
        self.until(lambda: b.shown("#confirm-dialog"), "the question")
        self.assertEqual(b.js("return document.activeElement.id"), "confirm-no")
        b.one("#confirm-yes").click()
        self.until(lambda: b.text("#job-tiles").startswith("State\ncancelled"), "cancelled")

    def test_models_are_loaded_and_deleted(self):
        """A model is unloaded, loaded, added and deleted; deleting asks first."""
        b = self.b
        other = os.path.join(folder.name, "added.safetensors")
        make_model(other, "--seed", "9")
        b.open("#models")
        self.until(lambda: "cells" in b.text("#models"), "the models")
        b.one("#model-file").send_keys(other)
        self.assertEqual(b.one("#model-name").get_attribute("value"), "added")
        b.one("#model-form button[type=submit]").click()
        self.until(lambda: b.all("[aria-label='Load added']"), "the added model")
        b.one("[aria-label='Load added']").click()
        self.until(lambda: b.all("[aria-label='Unload added']"), "loaded")
        b.one("[aria-label='Delete added']").click()
        self.until(lambda: b.shown("#confirm-dialog"), "the question")
        b.shot("models-confirm")
        b.one("#confirm-yes").click()
        self.until(lambda: not b.all("[aria-label='Delete added']"), "deleted")
        b.js("document.querySelector('.card details').open = true")
        b.shot("models")

    def test_keyboard_reaches_everything(self):
        """Tab goes through the page in reading order, the ring is seen, Enter opens a view."""
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.common.keys import Keys
        b = self.b
        b.open("#overview")
        self.until(lambda: b.text("#health-text") == "ready", "ready")
        seen = []
        for _ in range(7):
            ActionChains(b.d).send_keys(Keys.TAB).perform()
            seen.append(b.js("const e = document.activeElement; return [e.id || e.textContent.trim(),"
                             " getComputedStyle(e).outlineStyle]"))
        names = [s[0] for s in seen]
        self.assertEqual(names[:6], ["skip", "usplit", "Overview", "Split an image", "Train", "Models"])
        self.assertTrue(all(s[1] != "none" for s in seen), seen)
        b.one("nav a[href='#split']").send_keys(Keys.ENTER)
        self.until(lambda: b.js("return document.activeElement.id") == "h-split", "focus in the view")
        unlabelled = b.js("""return [...document.querySelectorAll('input, select, textarea')]
            .filter(e => !(e.labels && e.labels.length) && !e.getAttribute('aria-label')).map(e => e.id)""")
        self.assertEqual(unlabelled, [])

    def test_phone_and_dark(self):
        """At the width of a phone nothing is wider than the screen; dark is dark."""
        b = self.b
        try:
            b.size(PHONE)
            b.dark(True)
            for view in ("overview", "split", "train", "models"):
                b.open("#" + view)
                self.until(lambda: b.shown("#view-" + view), view)
                time.sleep(0.3)
                wide = b.js("return document.documentElement.scrollWidth")
                self.assertLessEqual(wide, PHONE[0], view)
                b.shot("phone-" + view)
            colour = b.js("return getComputedStyle(document.documentElement).backgroundColor")
            self.assertLess(sum(int(c) for c in colour[4:-1].split(",")), 150)
            self.split(image("phone.tif"))
            self.viewed()
            b.shot("phone-split-result")
            b.size(WIDE)
            b.shot("dark-split")
        finally:
            b.size(WIDE)
            b.dark(False)


class Token(unittest.TestCase):
    def test_token_is_asked_for_and_kept_in_the_tab(self):
        """Without a token the page asks, a wrong one is refused in words, a right one opens all."""
        data = tempfile.mkdtemp(dir=folder.name)
        made = subprocess.run([USPLITD, "token", "add", "lab", "--scopes", "infer,train,metrics",
                               "--data-dir", data], capture_output=True, text=True, check=True)
        token = made.stdout.strip()
        d = Daemon(data_dir=data, models=[("cells", model_path)])
        b = Browser("http://127.0.0.1:%d" % d.port, SHOTS)
        try:
            until = Dashboard.until
            self.b = b
            b.open()
            until(self, lambda: b.shown("#token-dialog"), "the question")
            b.shot("token")
            b.one("#token-input").send_keys("wrong")
            b.one("#token-form button[value=ok]").click()
            until(self, lambda: b.shown("#token-dialog") and "wrong" not in b.text("#tiles"), "asked again")
            b.one("#token-input").clear()
            b.one("#token-input").send_keys(token)
            b.one("#token-form button[value=ok]").click()
            until(self, lambda: "Models in memory" in b.text("#tiles"), "the overview")
            b.d.refresh()
            until(self, lambda: "Models in memory" in b.text("#tiles"), "the overview again")
            self.assertFalse(b.shown("#token-dialog"))
            self.assertEqual(b.text("#token-open"), "Token in use")
        finally:
            b.close()
            d.stop()
            d.remove()


if __name__ == "__main__":
    if MISSING:
        print("skipped: %s is not installed" % MISSING)
        sys.exit(77)
    unittest.main(verbosity=2)
