#!/bin/sh
# Prints the path of a Chromium that starts, or nothing. With --install it tries to get one where there is none.
cd "$(dirname "$0")/.." || exit 1

ask_playwright='from playwright.sync_api import sync_playwright
with sync_playwright() as p: print(p.chromium.executable_path)'

find_one() {
    for candidate in "$AUTOLORA_CHROMIUM" chromium chromium-browser google-chrome google-chrome-stable \
        "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome" "$(.venv/bin/python -c "$ask_playwright" 2>/dev/null)"
    do
        path=$(command -v "$candidate") && "$path" --version >/dev/null 2>&1 && echo "$path" && return
    done
    return 1
}

find_one && exit
[ "$1" = --install ] || exit 0
echo "Looking for a Chromium for the browser tests (once) ..." >&2
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends chromium fonts-liberation; } >/dev/null 2>&1
fi
find_one && exit
.venv/bin/playwright install chromium >/dev/null 2>&1
find_one && exit
echo "No Chromium could be found or installed, so the browser tests will be skipped: install one and run make test again." >&2
