#!/usr/bin/env python3
"""Tests of summary.py: the last line of a test run must never call a failure a success."""
import contextlib
import io
import json
import os
import tempfile
import unittest

import summary

PASSED = "[==========] 3 test(s) run.\n[  PASSED  ] 3 test(s).\n"
MIXED = "[  PASSED  ] 2 test(s).\n[  FAILED  ] 1 test(s), listed below:\n"
SKIPPED = "[  PASSED  ] 1 test(s).\n[  SKIPPED ] 2 test(s), listed below:\n"

PYTHON_OK = "----\nRan 5 tests in 0.1s\n\nOK (skipped=1)\n"
PYTHON_BAD = "----\nRan 5 tests in 0.1s\n\nFAILED (failures=1, errors=1, skipped=1)\n"


class LastLine(unittest.TestCase):
    def run_on(self, *entries):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "testlog.json")
            with open(path, "w", encoding="utf-8") as f:
                for result, text in entries:
                    f.write(json.dumps({"name": "x", "result": result, "stderr": text}) + "\n")
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                status = summary.summarise(path)
        return status, out.getvalue().splitlines()[-1]

    def test_cases_of_a_program_are_counted(self):
        self.assertEqual(self.run_on(("OK", PASSED), ("OK", "")), (0, "4 passed, 0 failed"))

    def test_a_failed_case_fails_the_run(self):
        self.assertEqual(self.run_on(("OK", PASSED), ("FAIL", MIXED)), (1, "5 passed, 1 failed"))

    def test_a_crash_without_a_summary_counts_as_a_failure(self):
        for result in ("FAIL", "ERROR", "TIMEOUT", "UNEXPECTEDPASS", "INTERRUPT"):
            self.assertEqual(self.run_on((result, "")), (1, "0 passed, 1 failed"))

    def test_a_crash_after_a_good_summary_counts_as_a_failure(self):
        self.assertEqual(self.run_on(("FAIL", PASSED)), (1, "3 passed, 1 failed"))

    def test_unittest_cases_are_counted(self):
        self.assertEqual(self.run_on(("OK", PYTHON_OK)), (0, "4 passed, 0 failed, 1 skipped"))
        self.assertEqual(self.run_on(("FAIL", PYTHON_BAD)), (1, "2 passed, 2 failed, 1 skipped"))

    def test_skips_are_neither(self):
        self.assertEqual(self.run_on(("OK", SKIPPED), ("SKIP", "")),
                         (0, "1 passed, 0 failed, 3 skipped"))

    def test_a_run_without_tests_is_a_failure(self):
        self.assertEqual(self.run_on(), (1, "0 passed, 1 failed"))
        with contextlib.redirect_stdout(io.StringIO()):
            self.assertEqual(summary.summarise("no-such-file"), 1)


if __name__ == "__main__":
    unittest.main()
