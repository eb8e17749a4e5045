"""Starts the real usplitd on a free port with a data folder of its own, for the HTTP tests."""
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time

# meson names the programs; by hand the tests take those of ./dev build.
BUILD = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "build", "server")
USPLITD = os.environ.get("USPLITD", os.path.join(BUILD, "usplitd"))
USPLIT = os.environ.get("USPLIT", os.path.join(BUILD, "cli", "usplit"))
SANITIZED = os.environ.get("SANITIZED", "0") == "1"
PATIENCE = 10 if SANITIZED else 1  # sanitizers make everything slower


SMALL = ("--variant", "lean", "--filters", "8", "--z-dims", "8,8,8", "--lc-scales", "2")


def make_model(path, *args, size=SMALL):
    """An untrained network of the shape of a real one; by default milliseconds per patch."""
    subprocess.run([USPLIT, "model", "init", "--quiet", *size, "--input-mean", "500", "--input-std",
                    "100", "--target-mean", "300,200", "--target-std", "50,40", *args, path],
                   check=True)


class Reply:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    def __getitem__(self, name):
        return self.headers.get(name)

    def json(self):
        return json.loads(self.body)


class Daemon:
    def __init__(self, *args, data_dir=None, models=(), tls=None):
        self.tls = tls  # an SSLContext: the daemon speaks HTTPS
        self.dir = tempfile.mkdtemp(prefix="usplitd-test-")
        self.data_dir = data_dir or os.path.join(self.dir, "data")
        os.makedirs(os.path.join(self.data_dir, "models"), exist_ok=True)
        for name, path in models:
            shutil.copy(path, os.path.join(self.data_dir, "models", name + ".safetensors"))
        self.log_path = os.path.join(self.dir, "log")
        port_file = os.path.join(self.dir, "port")
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                [USPLITD, "--data-dir", self.data_dir, "--listen", "127.0.0.1:0", "--port-file",
                 port_file, *args], stderr=log)
        deadline = time.monotonic() + 20 * PATIENCE
        while not os.path.exists(port_file):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("usplitd did not start:\n" + self.log())
            time.sleep(0.02)
        with open(port_file, encoding="ascii") as f:
            self.port = int(f.read())
        try:  # it reads every model first
            self.wait(lambda: self.get("/readyz").status == 200, "ready", 60)
        except AssertionError:
            self.process.kill()
            raise

    def log(self):
        with open(self.log_path, encoding="utf-8", errors="replace") as f:
            return f.read()

    def wait(self, condition, what, seconds=10):
        deadline = time.monotonic() + seconds * PATIENCE
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError("waited in vain: " + what + "\n" + self.log()[-2000:])
            time.sleep(0.02)

    def request(self, method, path, body=None, headers=None, timeout=60):
        connection = self.client(timeout)
        try:
            connection.request(method, path, body, headers or {})
            r = connection.getresponse()
            return Reply(r.status, r.headers, r.read())
        finally:
            connection.close()

    def client(self, timeout=60):
        if self.tls is None:
            return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout * PATIENCE)
        return http.client.HTTPSConnection("localhost", self.port, timeout=timeout * PATIENCE,
                                           context=self.tls)

    def get(self, path, **headers):
        return self.request("GET", path, headers=headers)

    def predict(self, body, query="", model="m", **headers):
        names = {k.replace("_", "-"): v for k, v in headers.items()}
        names.setdefault("Content-Type", "image/tiff")
        return self.request("POST", "/v1/models/%s/predict%s" % (model, query), body, names)

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=20 * PATIENCE)

    def raw(self, data):
        """Sends bytes as they are; returns what comes back until the daemon closes."""
        with self.connect() as s:
            s.sendall(data)
            return read_all(s)

    def running(self):
        state = self.get("/readyz").json()
        return state["running"] + state["waiting"]

    def rss_kib(self):
        with open("/proc/%d/status" % self.process.pid, encoding="ascii") as f:
            return int(next(line for line in f if line.startswith("VmRSS")).split()[1])

    def n_fds(self):
        return len(os.listdir("/proc/%d/fd" % self.process.pid))

    def spool(self):
        return os.listdir(os.path.join(self.data_dir, "spool"))

    def stop(self, sig=signal.SIGTERM):
        """Exit status after a signal."""
        if self.process.poll() is None:
            self.process.send_signal(sig)
        try:
            return self.process.wait(90)
        finally:
            self.process.kill()

    def remove(self):
        shutil.rmtree(self.dir, ignore_errors=True)


def read_all(s):
    """Everything until the peer closes; a reset ends it too."""
    out = b""
    try:
        while True:
            piece = s.recv(65536)
            if not piece:
                return out
            out += piece
    except ConnectionError:
        return out


def status_of(raw):
    """The status of a raw reply, after interim ones; None if there is none."""
    while raw.startswith(b"HTTP/1.1 100"):
        raw = raw.split(b"\r\n\r\n", 1)[1]
    return int(raw.split(b" ", 2)[1]) if raw.startswith(b"HTTP/1.") else None
