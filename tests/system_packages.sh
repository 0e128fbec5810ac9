#!/bin/sh
# Installs what the tests take from Debian where that is allowed; elsewhere those tests say what is missing and skip.
set -u
need=""
command -v ffmpeg >/dev/null 2>&1 || need="$need ffmpeg"
for p in gir1.2-gst-rtsp-server-1.0 python3-gi gstreamer1.0-plugins-base gstreamer1.0-plugins-good; do
    dpkg -s "$p" >/dev/null 2>&1 || need="$need $p"
done
[ -z "$need" ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $need >/dev/null
    exit 0
fi
echo "not installed (needs root on Debian):$need" >&2
exit 0
