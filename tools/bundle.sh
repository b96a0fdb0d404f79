#!/bin/sh
# Makes autolora/show/plotly.js.gz anew, for the plotly that is installed: sh tools/bundle.sh
# (asks npm for plotly.js and esbuild; which kinds of traces, `autolora.show.bundle` says)
set -e
cd "$(dirname "$0")/.."
told() { .venv/bin/python -c "$1"; }
version=$(told "from plotly.offline import get_plotlyjs_version as v; print(v())")
traces=$(told "from autolora.show.bundle import TRACES; print(*TRACES)")
out=$PWD/autolora/show/plotly.js.gz
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm init -y >/dev/null
npm install --ignore-scripts --no-audit --no-fund --silent "plotly.js@$version" esbuild@0.25 buffer@6 stream-browserify@3
{
    echo 'const Plotly = require("plotly.js/lib/core");'
    for trace in $traces; do echo "Plotly.register(require(\"plotly.js/lib/$trace\"));"; done
    echo 'module.exports = Plotly;'
} > entry.js
# a global in a page's script, the module's export where there is a `module`
npx esbuild entry.js --bundle --minify --format=iife --global-name=Plotly --target=es2020 \
    --define:global=window --alias:stream=stream-browserify --legal-comments=inline --log-level=warning --outfile=plotly.js \
    "--banner:js=/* plotly.js v$version ($traces). Copyright 2012-2026, Plotly, Inc. MIT licence */" \
    '--footer:js=if(typeof module==="object"&&module.exports)module.exports=Plotly;'
gzip -9 -n -c plotly.js > "$out"
ls -l "$out"
