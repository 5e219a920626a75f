"""cases.py - run the test_* functions of a Python test file, each in a folder of its own."""
import sys
import tempfile
import traceback


class Skip(Exception):
    """Raised by a test that cannot run here, with the reason."""


def run(names, wanted):
    """names: a module's globals(); wanted: names of tests, none for all. -> passed, failed, skipped"""
    counts = {"ok": 0, "FAILED": 0, "skipped": 0}
    for name, function in list(names.items()):
        if not name.startswith("test_") or (wanted and name not in wanted):
            continue
        with tempfile.TemporaryDirectory() as tmp:
            try:
                function(tmp)
                verdict, why = "ok", ""
            except Skip as reason:
                verdict, why = "skipped", f": {reason}"
            except (Exception, SystemExit):
                verdict, why = "FAILED", ""
                traceback.print_exc(file=sys.stdout)
        counts[verdict] += 1
        print(f"{verdict:7s} {name}{why}", flush=True)
    return tuple(counts.values())
