#!/usr/bin/env bash
# Process 1 of a node: makes the file system that a kubelet may take for its own machine, then only adopts and reaps orphans.
# Runs in new network, mount, UTS, PID and IPC namespaces: node-init.sh NAME STATE-DIRECTORY PROGRAM-DIRECTORY
set -euo pipefail

main() {
    cd "$2" # the state directory stays reachable by relative paths, whatever is mounted over it
    echo "$1" >/proc/sys/kernel/hostname
    mount --make-rprivate /
    # The namespaces that other programs keep under /run/netns came along as mounts: let go, or they could never be deleted.
    findmnt -rnt nsfs -o TARGET | xargs -r umount -l

    # A sysfs of this network namespace, with the machine's cgroups kept. (`ip netns exec` would lose them.)
    mkdir -p cgroup
    mount --rbind /sys/fs/cgroup cgroup
    mount -t sysfs sysfs /sys
    mount --rbind cgroup /sys/fs/cgroup
    umount -l cgroup

    # The machine's /usr, and everything that a node writes to in directories of its own, so that nothing is left on the machine.
    mkdir -p var/{lib/kubelet,lib/containerd,lib/cni,log/pods,log/containers,tmp,pids} opt/{cni/bin,weft} etc/{upper,work} net.d
    ln -sfn /run var/run
    cp -a /usr/lib/cni/. opt/cni/bin/
    mount --bind "$3" opt/weft
    mount -t overlay overlay -o "lowerdir=/etc,upperdir=$PWD/etc/upper,workdir=$PWD/etc/work" /etc
    mkdir -p /etc/cni/net.d
    mount --bind net.d /etc/cni/net.d
    mount --rbind opt /opt
    mount --bind var /var
    mount -t tmpfs -o mode=755 tmpfs /run
    mkdir -p /run/netns /run/lock
    mount --make-rshared / # pods with HostToContainer or Bidirectional mounts see what appears later

    : >/var/ready
    while :; do sleep infinity & wait $!; done # bash reaps every child that it is given
}

main "$@"
