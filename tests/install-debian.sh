#!/usr/bin/env bash
# Installs the Debian packages that `make e2e` needs and this machine lacks. Needs root only if something is missing.
set -euo pipefail

# containerd, runc, CNI programs and iptables make nodes; buildah and debootstrap make images; prometheus scrapes;
# chromium, and Grafana's panels by npm, draw.
packages=(buildah chromium containerd containernetworking-plugins debootstrap iproute2 iptables kmod prometheus runc util-linux)
command -v npm >/dev/null || packages+=(nodejs npm) # where it stands it may be another's, which Debian's would displace

missing=()
for package in "${packages[@]}"; do
  [[ $(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null || true) == installed ]] || missing+=("$package")
done
[[ ${#missing[@]} -eq 0 ]] && exit 0

echo "install-debian: ${missing[*]}"
[[ $EUID -eq 0 ]] || { echo "install-debian: run as root, or apt-get install ${missing[*]} yourself" >&2; exit 1; }
export DEBIAN_FRONTEND=noninteractive
# Their services must not start: the tests run their own, with their own folders and ports.
policy=/usr/sbin/policy-rc.d
if [[ ! -e $policy ]]; then
  trap 'rm -f "$policy"' EXIT
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod +x "$policy"
fi
apt-get update --quiet --quiet
apt-get install --quiet --quiet --yes --no-install-recommends "${packages[@]}"
