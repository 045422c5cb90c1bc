#!/usr/bin/env bash
# Run a command where `python3.15` is CPython's newest: in a tree of Debian's unstable release below .venv-newest-tree.
# The command sees this repository at its own path. Exit code 75: this machine cannot make such a tree, which needs root,
# debootstrap, and mounts in a namespace of their own; they end with the command.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
tree=$root/.venv-newest-tree
[ "$(id -u)" -eq 0 ] && command -v debootstrap > /dev/null && unshare --mount true 2> /dev/null || exit 75

if [ ! -e "$tree/made" ]; then
  echo "== making a tree with Python 3.15 (once)"
  rm -rf "$tree"
  mkdir "$tree"
  mirrors=$(apt-get indextargets --format '$(REPO_URI)' | grep -v security)
  packages=python3.15,python3.15-venv,ca-certificates,procps
  # shellcheck disable=SC2086 # the first of the words
  set -- ${mirrors%%$'\n'*} "$@"
  debootstrap --variant=minbase "--include=$packages" sid "$tree" "$1" > "$tree.log" 2>&1 || { tail -3 "$tree.log"; exit 75; }
  shift
  touch "$tree/made"
fi

export root tree
# shellcheck disable=SC2016 # the inner shell expands these
exec unshare --mount sh -euc '
  mount -t proc proc "$tree/proc"
  for path in "$root" /etc/hosts /etc/pip.conf /etc/resolv.conf /etc/ssl/certs/ca-certificates.crt; do
    [ -e "$path" ] || continue
    if [ -d "$path" ]; then mkdir -p "$tree$path"; else mkdir -p "$tree${path%/*}"; touch "$tree$path"; fi
    mount --bind "$path" "$tree$path"
  done
  unset PIP_FIND_LINKS
  PATH=/usr/sbin:/usr/bin:/sbin:/bin exec chroot "$tree" sh -euc "cd \"\$root\" && exec \"\$@\"" sh "$@"
' sh "$@"
