"""A headless Chromium for the test of the dashboard, through selenium and Debian's chromedriver."""
import base64
import os
import shutil
import tempfile

try:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    MISSING = next((p for p in ("chromium", "chromedriver") if shutil.which(p) is None), None)
except ImportError:
    MISSING = "python3-selenium"

WIDE, PHONE = (1280, 900), (390, 844)


class Browser:
    """One Chromium with a profile of its own, and what the tests ask it."""

    def __init__(self, base, shots):
        self.base, self.shots = base, shots
        self.profile = tempfile.mkdtemp(prefix="usplit-chromium-")
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium")
        for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                     "--no-first-run", "--user-data-dir=" + self.profile):
            options.add_argument(word)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.d = webdriver.Chrome(service=Service(shutil.which("chromedriver")), options=options)
        self.size(WIDE)
        self.dark(False)
        os.makedirs(shots, exist_ok=True)

    def size(self, wh):
        """The size of the page itself: a phone is narrower than a window may be."""
        self.d.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
            "width": wh[0], "height": wh[1], "deviceScaleFactor": 1, "mobile": False})

    def dark(self, on):
        self.d.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [
            {"name": "prefers-color-scheme", "value": "dark" if on else "light"}]})

    def open(self, view=""):
        """A fresh page: an address that differs behind # alone would keep the forms as they are."""
        self.d.get("about:blank")
        self.d.get(self.base + "/" + view)

    def js(self, text, *args):
        return self.d.execute_script(text, *args)

    def one(self, css):
        return self.d.find_element("css selector", css)

    def all(self, css):
        return self.d.find_elements("css selector", css)

    def text(self, css):
        return self.one(css).text

    def shown(self, css):
        return any(e.is_displayed() for e in self.all(css))

    def shot(self, name):
        """The whole page as BUILD/.../NAME.png."""
        box = self.js("return [document.documentElement.clientWidth, document.body.scrollHeight]")
        with open(os.path.join(self.shots, name + ".png"), "wb") as f:
            f.write(base64.b64decode(self.d.execute_cdp_cmd("Page.captureScreenshot", {
                "captureBeyondViewport": True, "clip": {
                    "x": 0, "y": 0, "width": box[0], "height": min(max(box[1], 300), 2600),
                    "scale": 1}})["data"]))

    def complaints(self):
        """The errors in the console since the last call."""
        return [e["message"] for e in self.d.get_log("browser") if e["level"] == "SEVERE"]

    def block(self, *patterns):
        """Addresses that fail from now on."""
        self.d.execute_cdp_cmd("Network.enable", {})
        self.d.execute_cdp_cmd("Network.setBlockedURLs", {"urls": list(patterns)})

    def close(self):
        self.d.quit()
        shutil.rmtree(self.profile, ignore_errors=True)
