# A node, seen from outside: namespaces, cgroups, and its three processes. Sourced by `ctl`.

cgroup_trees() { findmnt -rnt cgroup,cgroup2 -o TARGET | grep '^/sys/fs/cgroup' || true; }

# cgroups_up NODE: the kubelet wants its root cgroup to exist in every hierarchy; `system` beside its pods is for itself and its like.
cgroups_up() {
    local tree cgroup file
    for tree in $(cgroup_trees); do
        if [ "$tree" = /sys/fs/cgroup ]; then # version 2 only
            echo "+cpu +cpuset +memory +pids +io" >"$tree/cgroup.subtree_control" || die "cannot hand out cgroup controllers in $tree"
        fi
        for cgroup in "$tree/$PREFIX-$1" "$tree/$PREFIX-$1/system"; do
            mkdir -p "$cgroup"
            for file in cpuset.cpus cpuset.mems; do # version 1: a new cpuset is empty, and nothing can run in it
                [ -e "$tree/$file" ] && cat "$tree/$file" >"$cgroup/$file"
            done
        done
    done
    return 0
}

# cgroups_down [NODE]: false while something is left.
cgroups_down() {
    local tree left=0 name="$PREFIX-${1:-*}"
    for tree in $(cgroup_trees); do
        find "$tree" -depth -type d \( -path "$tree/$name" -o -path "$tree/$name/*" \) -exec rmdir {} + 2>/dev/null || true
        [ -z "$(find "$tree" -maxdepth 1 -name "$name" -print -quit)" ] || left=1
    done
    return $left
}

in_node() { # in_node NODE COMMAND…
    local node="$1" init; shift
    init="$(pid_of "node-$node")" || die "node $node is not running"
    nsenter --net="/run/netns/$PREFIX-$node" --mount="/proc/$init/ns/mnt" --uts="/proc/$init/ns/uts" --ipc="/proc/$init/ns/ipc" \
        --pid="/proc/$init/ns/pid_for_children" "$@" 9>&-
}

# What a node finds in its /etc.
node_files() {
    local node="$1" state="$DIR/nodes/$1" etc="$DIR/nodes/$1/etc/upper/kubernetes" ranges routes dns
    dns="$(first_family "$DNS_ADDRESS" "$DNS_ADDRESS6")"
    mkdir -p "$etc" "$state/net.d" "$state/opt"
    cp "$HERE/node-spawn.sh" "$state/opt/"
    cp "$DIR/pki/ca.crt" "$etc/"
    cp "$DIR/pki/$node.crt" "$etc/node.crt"; cp "$DIR/pki/$node.key" "$etc/node.key"
    cp "$DIR/pki/$node.kubeconfig" "$etc/kubelet.kubeconfig"
    cp "$DIR/pki/proxy.kubeconfig" "$etc/proxy.kubeconfig"
    cp "$HERE/config/containerd.toml" "$etc/"
    { cat "$HERE/config/kubelet.yaml"; echo "clusterDNS: [\"$dns\"]"; echo "cgroupRoot: /$PREFIX-$node"; } >"$etc/kubelet.yaml"
    echo "nameserver $dns" >"$etc/resolv.conf"
    if flannel; then flannel_files "$node"; return; fi
    ranges="$(by_family "[{\"subnet\": \"$(node_pods "$node")\"}]" "[{\"subnet\": \"$(node_pods6 "$node")\"}]")"
    routes="$(by_family '{"dst": "0.0.0.0/0"}' '{"dst": "::/0"}')"
    cat >"$state/net.d/10-pods.conflist" <<JSON
{
  "cniVersion": "1.0.0",
  "name": "pods",
  "plugins": [
    {
      "type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
      "ipam": {"type": "host-local", "ranges": [$ranges], "routes": [$routes]}
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
JSON
}

# start_node NODE: the machine itself, without its three processes.
start_node() {
    local node="$1" state="$DIR/nodes/$1"
    wait_until 10 cgroups_down "$node" || true # what an earlier boot left would look like running containers
    cgroups_up "$node"
    mkdir -p "$state"
    rm -rf "$state/var/ready" "$state/var/pids" # the ids of an earlier boot may be those of others now
    # shellcheck disable=SC2016 # for the inner shell
    WEFT_CLUSTER="$DIR" setsid nsenter --net="/run/netns/$PREFIX-$node" sh -c 'echo $$ >"$0"; exec "$@"' "$DIR/pids/node-$node" \
        unshare --mount --uts --pid --ipc --fork --kill-child --mount-proc bash "$HERE/node-init.sh" "$node" "$state" "$BIN" \
        >>"$DIR/log/node-$node.log" 2>&1 </dev/null 9>&- & disown
    wait_for "node $node" "$DIR/log/node-$node.log" 60 test -e "$state/var/ready"
}

# stop_node NODE: as if its plug were pulled. Its process 1 ignores TERM, and everything on it goes with it.
stop_node() { stop_process "node-$1" KILL; }

# node_spawn NODE NAME COMMAND…: starts a process of a node.
node_spawn() {
    local node="$1" name="$2"; shift 2
    in_node "$node" env PATH=/opt/weft:/usr/sbin:/usr/bin:/sbin:/bin /opt/node-spawn.sh "$name" "$PREFIX-$node" "$@"
}

node_running() { # node_running NODE NAME
    # shellcheck disable=SC2016 # for the inner shell
    pid_of "node-$1" >/dev/null && in_node "$1" sh -c 'kill -0 "$(cat "/var/pids/$0" 2>/dev/null)" 2>/dev/null' "$2"
}

node_gone() { ! node_running "$@"; }

# node_stop NODE NAME [SIGNAL]
node_stop() {
    local node="$1" name="$2" signal="${3:-TERM}"
    node_running "$node" "$name" || return 0
    # shellcheck disable=SC2016 # for the inner shell
    in_node "$node" sh -c 'kill "-$1" "$(cat "/var/pids/$0")"' "$name" "$signal" || true
    wait_until 20 node_gone "$node" "$name" || { node_stop_now "$node" "$name"; }
}

node_stop_now() {
    # shellcheck disable=SC2016 # for the inner shell
    in_node "$1" sh -c 'kill -KILL "$(cat "/var/pids/$0")"' "$2" || true
    wait_until 10 node_gone "$1" "$2"
}

start_containerd() { node_spawn "$1" containerd containerd --config /etc/kubernetes/containerd.toml; }

start_kubelet() {
    node_spawn "$1" kubelet kubelet --config=/etc/kubernetes/kubelet.yaml --kubeconfig=/etc/kubernetes/kubelet.kubeconfig \
        --node-ip="$(by_family "$(node_address "$1")" "$(node_address6 "$1")")" --hostname-override="$1"
}

start_kube-proxy() {
    # The kernel's connection tracking is the machine's, not the node's: leave its limits alone.
    node_spawn "$1" kube-proxy kube-proxy --kubeconfig=/etc/kubernetes/proxy.kubeconfig --hostname-override="$1" --proxy-mode=nftables \
        --cluster-cidr="$(by_family "$PODS" "$PODS6")" --conntrack-max-per-core=0 --conntrack-tcp-timeout-established=0 --conntrack-tcp-timeout-close-wait=0 --oom-score-adj=0
}

node_log() { echo "$DIR/nodes/$1/var/log/$2.log"; }

containerd_ready() { in_node "$1" /opt/weft/ctr version; }

wait_containerd() { wait_for "containerd on $1" "$(node_log "$1" containerd)" 60 containerd_ready "$1"; }

# A kubelet gives up at once when containerd does not answer: a start that did not hold must be seen.
wait_kubelet() { wait_for "kubelet on $1" "$(node_log "$1" kubelet)" 60 in_node "$1" curl -sf --max-time 2 http://127.0.0.1:10248/healthz; }
wait_kube-proxy() { wait_for "kube-proxy on $1" "$(node_log "$1" kube-proxy)" 60 in_node "$1" curl -sf --max-time 2 http://127.0.0.1:10256/livez; }

# load NODE ARCHIVE…: puts images into a node's store.
load() {
    local node="$1" archive; shift
    for archive in "$@"; do
        in_node "$node" /opt/weft/ctr -n k8s.io images import --local --discard-unpacked-layers - <"$archive" >>"$DIR/log/load-$node.log" 2>&1 ||
            { tail -n 5 "$DIR/log/load-$node.log" >&2; die "cannot load $archive into $node"; }
    done
}
