#!/bin/sh
# tools/convert.py needs python3; without one its tests are skipped.
here=$(dirname "$0")
python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 8))' 2>/dev/null; then
    echo "skipped test_convert: python3 (3.8 or newer) is not installed"
    echo "0 passed, 0 failed, 1 skipped"
    exit 0
fi
exec "$python" "$here/test_convert.py"
