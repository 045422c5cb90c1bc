#!/usr/bin/env bash
# Install Debian's packages that some tests need: chromium, prometheus, redis-server beside the wheel's Valkey, and
# debootstrap, which gets the newest Python. Does nothing if all are installed. Without root nothing is installed: tests
# that lack one are skipped with the reason, but CI (CI=true) fails. No service is left running.
set -euo pipefail

missing=()
for package in chromium prometheus redis-server debootstrap; do
  command -v "$package" > /dev/null || missing+=("$package")
done
[ "${#missing[@]}" -gt 0 ] || exit 0

if [ "$(id -u)" -ne 0 ] || ! command -v apt-get > /dev/null; then
  echo "== not installed, since that needs root and apt-get: ${missing[*]}"
  [ "${CI:-}" != true ] || exit 1
  exit 0
fi

echo "== installing ${missing[*]} (once)"
policy=/usr/sbin/policy-rc.d # Debian's own way to keep a package from starting its service
if [ ! -e "$policy" ]; then
  trap 'rm -f "$policy"' EXIT
  printf '#!/bin/sh\nexit 101\n' > "$policy"
  chmod +x "$policy"
fi
log=$(mktemp)
export DEBIAN_FRONTEND=noninteractive
if ! { apt-get update -qq && apt-get install -qq -y --no-install-recommends "${missing[@]}"; } > "$log" 2>&1; then
  cat "$log" >&2
  exit 1
fi
rm -f "$log"
