#!/bin/sh
# The README's picture of a report: docs/images/picture.sh REPORT.html [PICTURE.png]. Needs Chromium; loads nothing but the file.
set -eu
report=$(realpath "$1")
picture=$(realpath -m "${2:-$(dirname "$0")/report.png}")
profile=$(mktemp -d)
trap 'rm -rf "$profile"' EXIT
chromium --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update \
  --disable-sync --hide-scrollbars --user-data-dir="$profile" --window-size=1280,"${HEIGHT:-1900}" --virtual-time-budget=4000 \
  --screenshot="$picture" "file://$report"
