#!/usr/bin/env python3
"""usplitd speaking HTTPS: its certificate, the exchange of it, and what is refused.

Each test begins with the sentence that it proves.
"""
import os
import shutil
import signal
import ssl
import subprocess
import tempfile
import unittest
import warnings

from case import IMAGE, MAX_BODY, model_path
from daemon import PATIENCE, USPLITD, Daemon, read_all, status_of


def make_certificate(folder, name, *args):
    """A certificate that vouches for itself, and its key."""
    cert, key = (os.path.join(folder, name + end) for end in (".crt", ".key"))
    subprocess.run(["openssl", "req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt",
                    "ec_paramgen_curve:P-256", "-subj", "/CN=" + name, "-addext",
                    "subjectAltName=DNS:localhost", "-days", "30", "-keyout", key, "-out", cert, *args],
                   check=True, stderr=subprocess.DEVNULL)
    os.chmod(key, 0o600)
    return cert, key


@unittest.skipUnless(shutil.which("openssl"), "openssl is not installed")
class Tls(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="usplitd-test-")
        cls.first = make_certificate(cls.folder.name, "first")
        cls.second = make_certificate(cls.folder.name, "second")
        cls.cert, cls.key = (os.path.join(cls.folder.name, n) for n in ("shown.crt", "shown.key"))
        cls.show(cls.first)
        cls.trust = ssl.create_default_context()
        for cert, _ in (cls.first, cls.second):
            cls.trust.load_verify_locations(cert)
        cls.d = Daemon("--tls-cert", cls.cert, "--tls-key", cls.key, "--max-body-bytes",
                       str(MAX_BODY), models=[("m", model_path)], tls=cls.trust)

    @classmethod
    def tearDownClass(cls):
        status, log = cls.d.stop(), cls.d.log()
        cls.d.remove()
        cls.folder.cleanup()
        if status != 0:
            raise AssertionError(log[-4000:])

    @classmethod
    def show(cls, pair):
        for src, dst in zip(pair, (cls.cert, cls.key)):
            shutil.copy(src, dst + ".new")
            os.rename(dst + ".new", dst)

    def shown(self):
        """The name in the certificate that a new connection gets."""
        with self.connect(self.trust) as s:
            return dict(part[0] for part in s.getpeercert()["subject"])["commonName"]

    def connect(self, context):
        return context.wrap_socket(self.d.connect(), server_hostname="localhost")

    def reload(self):
        lines = self.d.log().count("certificate")
        self.d.process.send_signal(signal.SIGHUP)
        self.d.wait(lambda: self.d.log().count("certificate") > lines, "the reload in the log")

    def test_prediction_over_https_has_the_bytes_of_http(self):
        """Splitting works over TLS, and gives what it gives without."""
        plain = Daemon(models=[("m", model_path)])
        expected = plain.predict(IMAGE).body
        self.assertEqual(plain.stop(), 0)
        plain.remove()
        r = self.d.predict(IMAGE)
        self.assertEqual((r.status, r.body), (200, expected))

    def test_old_protocols_plain_http_and_strangers_get_nothing(self):
        """TLS before 1.2 and plain HTTP are not answered; both versions of today are."""
        self.assertNotIn(b"HTTP/1.1 200", self.d.raw(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"))
        for version, good in (("TLSv1_1", False), ("TLSv1_2", True), ("TLSv1_3", True)):
            with self.subTest(version):
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.load_verify_locations(self.first[0])
                context.load_verify_locations(self.second[0])
                context.set_ciphers("DEFAULT:@SECLEVEL=0")  # or OpenSSL itself would refuse 1.1
                context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # 1.1 is old, which is the point
                    context.maximum_version = getattr(ssl.TLSVersion, version)
                if good:
                    self.connect(context).close()
                else:
                    with self.assertRaises(OSError):
                        self.connect(context)
        with self.assertRaises(ssl.SSLCertVerificationError):
            self.connect(ssl.create_default_context())

    def test_certificate_is_exchanged_under_open_connections(self):
        """After SIGHUP new connections get the new certificate, an open one goes on; a bad file
        changes nothing and is told."""
        self.assertEqual(self.shown(), "first")
        kept = self.d.client()
        kept.request("GET", "/healthz")
        self.assertEqual(kept.getresponse().read(), b"ok\n")
        self.show(self.second)
        self.reload()
        self.assertEqual(self.shown(), "second")
        for _ in range(2):
            kept.request("GET", "/healthz")
            self.assertEqual(kept.getresponse().read(), b"ok\n")
        kept.close()
        self.show((self.first[0], self.second[1]))
        self.reload()
        self.assertIn("the old certificate stays", self.d.log())
        self.assertEqual(self.shown(), "second")
        self.show(self.first)
        self.reload()
        self.assertEqual(self.shown(), "first")

    def test_refusal_in_the_middle_of_an_upload_arrives(self):
        """A body that grows over the limit is answered before its end, encrypted like the rest."""
        with self.connect(self.trust) as s:
            s.settimeout(20 * PATIENCE)
            s.sendall(b"POST /v1/models/m/predict HTTP/1.1\r\nHost: localhost\r\n"
                      b"Transfer-Encoding: chunked\r\n\r\n")
            piece = b"10000\r\n" + bytes(65536) + b"\r\n"
            try:
                for _ in range(MAX_BODY // 65536 + 2):
                    s.sendall(piece)
            except OSError:
                pass  # cut already
            self.assertEqual(status_of(read_all(s)), 413)

    def test_client_that_leaves_frees_its_place(self):
        """A client that hangs up while it waits is noticed behind TLS too."""
        with self.connect(self.trust) as s:
            s.sendall(b"POST /v1/models/m/predict?samples=2000 HTTP/1.1\r\nHost: localhost\r\n"
                      b"Content-Length: %d\r\n\r\n" % len(IMAGE) + IMAGE)
            self.d.wait(lambda: self.d.running() > 0, "work")
        self.d.wait(lambda: self.d.running() == 0, "no work", 20)

    def check_config(self, *args):
        p = subprocess.run([USPLITD, "--check-config", "--data-dir", self.folder.name, *args],
                           stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, check=False)
        return p.returncode, p.stderr.decode()

    def test_bad_files_are_explained(self):
        """--check-config says which file is wrong, and why; a good pair passes."""
        folder = self.folder.name
        cert, key = self.first
        broken, locked, opened, no_key = (os.path.join(folder, n) for n in
                                          ("broken", "locked", "opened", "no-key"))
        with open(broken, "w", encoding="ascii") as f:
            f.write("-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n")
        subprocess.run(["openssl", "pkey", "-aes256", "-passout", "pass:secret", "-in", key, "-out",
                        locked], check=True)
        os.chmod(locked, 0o600)
        shutil.copy(cert, no_key)
        os.chmod(no_key, 0o600)
        os.chmod(broken, 0o600)
        shutil.copy(key, opened)
        os.chmod(opened, 0o644)
        self.assertEqual(self.check_config("--tls-cert", cert, "--tls-key", key), (0, ""))
        for args, words in (
                (("--tls-cert", cert), ["tls-key", "not given"]),
                (("--tls-key", key), ["tls-cert", "not given"]),
                (("--tls-cert", cert + "x", "--tls-key", key), ["tls-cert", "No such file"]),
                (("--tls-cert", broken, "--tls-key", key), ["tls-cert", broken, "no certificate"]),
                (("--tls-cert", cert, "--tls-key", broken), ["tls-key", broken]),
                (("--tls-cert", cert, "--tls-key", no_key), ["tls-key", "no private key"]),
                (("--tls-cert", cert, "--tls-key", locked), ["tls-key", locked, "password"]),
                (("--tls-cert", cert, "--tls-key", opened), ["tls-key", opened, "644", "chmod"]),
                (("--tls-cert", cert, "--tls-key", self.second[1]), ["not the key of"])):
            with self.subTest(args):
                status, err = self.check_config(*args)
                self.assertEqual(status, 2)
                for word in words:
                    self.assertIn(word, err)


if __name__ == "__main__":
    unittest.main(verbosity=2)
