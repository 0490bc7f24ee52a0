# Builds the programs and images of the cluster into the cache, once per set of pins. Sourced by `ctl` and by tests/conformance/run.

need() { # need PROGRAM PACKAGE
    PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null || die "\`$1\` is missing: apt-get install $2"
}

# What the machine itself must have; each is named with its remedy.
check_machine() {
    [ "$(id -u)" = 0 ] || die "a cluster needs root: namespaces, mounts, cgroups"
    need ip iproute2; need nft nftables; need nsenter util-linux; need unshare util-linux; need findmnt util-linux; need openssl openssl
    need etcd etcd-server; need curl curl; need python3 python3; need cc build-essential; need sysctl procps; need flock util-linux
    need iptables iptables # for the portmap plugin: pods with a hostPort
    need pkg-config pkg-config; [ -e /usr/include/seccomp.h ] || die "seccomp.h is missing: apt-get install libseccomp-dev"
    [ -x /usr/lib/cni/bridge ] || die "the CNI plugins are missing: apt-get install containernetworking-plugins"
    grep -qw overlay /proc/filesystems || modprobe overlay 2>/dev/null || die "this kernel has no overlayfs (modprobe overlay)"
    [ -e /proc/net/if_inet6 ] || die "this kernel has no IPv6 (ipv6.disable=1?)"
    command -v go >/dev/null || die "go is missing: install Go 1.26 or later (Kubernetes is built from its modules)"
}

# built NAME "PACKAGE…" FLAG…: builds packages of the module tools/NAME into the cache unless they are there; the directory is in $BUILT.
# Without C, unless CGO is 1.
built() {
    local name="$1" packages="$2" package log="$CACHE/$1.log"; shift 2
    BUILT="$CACHE/$name-$(cat <(printf '%s\n' "$packages" "$@") "$HERE/tools/$name"/* | sha256sum | cut -c1-12)"
    [ -d "$BUILT" ] && return
    say "building $name (once; log: $log)"
    mkdir -p "$BUILT.tmp$$"
    for package in $packages; do
        (cd "$HERE/tools/$name" && CGO_ENABLED="${CGO:-0}" GOWORK=off go build -buildvcs=false -trimpath "$@" -o "$BUILT.tmp$$/" "$package") >"$log" 2>&1 && continue
        tail -n 15 "$log" >&2
        rm -rf "$BUILT.tmp$$"
        die "cannot build $name: see $log"
    done
    publish "$BUILT"
}

# publish PATH: makes PATH of PATH.tmp$$ at once; when someone else was as fast, theirs stays.
publish() { mv -T "$1.tmp$$" "$1" 2>/dev/null || rm -rf "$1.tmp$$"; }

# build_programs: sets BIN to a directory with all that runs on a node or beside it.
build_programs() {
    local kubernetes containerd runc name version=v1.36.3 flags="-s -w" package
    mkdir -p "$CACHE"
    for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
        flags+=" -X $package.gitVersion=$version -X $package.gitMajor=1 -X $package.gitMinor=36" # what it says of itself
    done
    built kubernetes . -ldflags "$flags"; kubernetes="$BUILT"
    name=github.com/containerd/containerd/v2
    built containerd "$name/cmd/containerd $name/cmd/containerd-shim-runc-v2 $name/cmd/ctr" \
        -tags no_btrfs,no_devmapper,no_zfs,no_aufs -ldflags "-s -w -X $name/version.Version=v2.2.9"; containerd="$BUILT"
    # Not Debian's: pods with user namespaces need 1.2 or later.
    CGO=1 built runc github.com/opencontainers/runc -tags seccomp -ldflags "-s -w -X main.version=1.4.4"; runc="$BUILT"

    BIN="$CACHE/bin-$(printf %s "$kubernetes $containerd $runc" | sha256sum | cut -c1-12)"
    [ -d "$BIN" ] && return
    mkdir -p "$BIN.tmp$$"
    ln "$kubernetes/kubernetes" "$containerd"/* "$runc/runc" "$BIN.tmp$$/" # hard links: a node sees this directory, not the rest of the cache
    for name in kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl; do ln -s kubernetes "$BIN.tmp$$/$name"; done
    publish "$BIN"
}

# gateway_api_module: the directory of the pinned Gateway API module (its CRDs).
gateway_api_module() { (cd "$HERE/../conformance" && go mod download sigs.k8s.io/gateway-api && go list -m -f '{{.Dir}}' sigs.k8s.io/gateway-api); }
