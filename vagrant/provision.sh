#!/usr/bin/env bash
# Makes a Vagrant machine what it is to be. Run as root by the Vagrantfile, again by `vagrant provision`.
#
#   provision.sh first    NAME ADDRESS N1    builds secmesh and begins the mesh
#   provision.sh node     NAME ADDRESS N1    takes the binary and a ticket from n1, and joins
#   provision.sh attacker NAME ADDRESS N1    has tools only
set -euo pipefail

role=$1 name=$2 address=$3 first=$4
port=4747
key=/root/.ssh/handover
export DEBIAN_FRONTEND=noninteractive

say() { printf '== %s: %s\n' "$name" "$*"; }

packages() {
  apt-get -qq update
  apt-get -qq install --yes --no-install-recommends "$@" >/dev/null
}

# As the user vagrant, who has sudo: what cargo writes must not become root's.
build() {
  say 'building; the first time this takes some minutes'
  packages build-essential ca-certificates curl git
  sudo --user vagrant --set-home bash -euo pipefail -c '
    if [ ! -x ~/.cargo/bin/rustup ]; then
      curl --proto "=https" --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal --default-toolchain none
    fi
    . ~/.cargo/env
    cd /secmesh
    # Outside the synced folder, which the next rsync would empty.
    export CARGO_TARGET_DIR=$HOME/target
    cargo xtask build --release | tee ~/build.log
  '
  # The last line is the path of the binary.
  install -m 0755 "$(tail -n 1 /home/vagrant/build.log)" /usr/local/bin/secmesh
}

# Lets the other nodes fetch the binary and ask for tickets.
open_handover() {
  local line
  line=$(cat /tmp/handover_key.pub)
  install -d -m 0700 -o vagrant -g vagrant /home/vagrant/.ssh
  touch /home/vagrant/.ssh/authorized_keys
  grep -qxF "$line" /home/vagrant/.ssh/authorized_keys || echo "$line" >>/home/vagrant/.ssh/authorized_keys
}

on_first() {
  ssh -n -i "$key" -o BatchMode=yes -o StrictHostKeyChecking=accept-new "vagrant@$first" "$@"
}

# Only the private network is protected: Vagrant's own connection comes in on the other interface.
configure() {
  local interface
  interface=$(ip -oneline -4 address show to "$address" | awk '{ print $2; exit }')
  [ -n "$interface" ] || { say "no interface has $address"; exit 1; }
  install -d -m 0755 /etc/secmesh
  cat >/etc/secmesh/secmesh.toml <<TOML
[dataplane]
interfaces = ["$interface"]
# The network of these machines holds nobody but them and the attacker.
mode = "enforce"

[mesh]
advertise = "$address:$port"
TOML
  install -m 0644 /tmp/secmesh.service /etc/systemd/system/secmesh.service
  systemctl daemon-reload
}

has_node() { [ -e /var/lib/secmesh/members.bin ]; }

start() {
  systemctl enable --quiet secmesh
  systemctl restart secmesh
  for _ in $(seq 50); do
    if secmesh status >/dev/null 2>&1; then
      secmesh status
      return
    fi
    sleep 0.2
  done
  journalctl --unit secmesh --no-pager --lines 30
  say 'the agent does not answer'
  exit 1
}

case $role in
first)
  build
  packages bpftool
  open_handover
  configure
  has_node || secmesh init --name "$name" --zone "$name" --mesh vagrant
  start
  ;;
node)
  packages bpftool openssh-client
  install -d -m 0700 /root/.ssh
  install -m 0600 /tmp/handover_key "$key"
  rm -f /tmp/handover_key
  say 'taking the binary from n1'
  on_first cat /usr/local/bin/secmesh >/usr/local/bin/secmesh.new
  chmod 0755 /usr/local/bin/secmesh.new
  mv /usr/local/bin/secmesh.new /usr/local/bin/secmesh
  configure
  # The ticket goes from n1's standard output to our standard input; no file and no process list has it.
  has_node || on_first sudo secmesh invite --name "$name" | secmesh join - --name "$name" --zone "$name"
  start
  ;;
attacker)
  packages hping3 nmap
  say "try: sudo hping3 --syn --port 80 --interval u100 $first"
  ;;
*)
  echo "usage: $0 first|node|attacker NAME ADDRESS N1" >&2
  exit 2
  ;;
esac
