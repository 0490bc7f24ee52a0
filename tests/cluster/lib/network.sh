# The bridge that joins the nodes, in a namespace of its own. Sourced by `ctl`.

network_up() {
    ip netns add "$SWITCH"
    ip -n "$SWITCH" -batch - <<LINES
link set lo up
link add br0 type bridge
address add $API_ADDRESS/16 dev br0
address add fd90::1/64 dev br0 nodad
link set br0 up
LINES
}

# node_network_up NODE: its namespace, its link to the bridge, and the routes to its pods.
node_network_up() {
    local node="$1" netns="$PREFIX-$1" address; address="$(node_address "$1")"
    ip netns add "$netns"
    ip -n "$SWITCH" -batch - <<LINES
link add $node type veth peer name eth0 netns $netns
link set $node master br0 up
LINES
    ip -n "$netns" -batch - <<LINES
link set lo up
address add $address/16 dev eth0
address add $(node_address6 "$node")/64 dev eth0 nodad
link set eth0 up
route add default via $API_ADDRESS
route add default via fd90::1
LINES
    # (The default route leads nowhere, but a ClusterIP is only translated in a packet that has a route at all.)
    nsenter --net="/run/netns/$netns" sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
    # Two pods of one node talk over the bridge cni0, but the answer of a Service's pod must pass through connection tracking to be
    # translated back: without this, a ClusterIP whose pod is on the client's own node does not answer.
    nsenter --net="/run/netns/$netns" sysctl -qw net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1 2>/dev/null ||
        die "this kernel has no br_netfilter (modprobe br_netfilter)"
}

# network_routes: everyone knows the way to every node's pods (where Flannel runs, nodes know it from there); the first node serves ClusterIPs to what lives beside the API server.
network_routes() {
    local to from
    for to in $(nodes); do
        ip -n "$SWITCH" route replace "$(node_pods "$to")" via "$(node_address "$to")"
        ip -n "$SWITCH" route replace "$(node_pods6 "$to")" via "$(node_address6 "$to")"
        for from in $(nodes); do
            if [ "$from" = "$to" ] || flannel; then continue; fi
            ip -n "$PREFIX-$from" route replace "$(node_pods "$to")" via "$(node_address "$to")"
            ip -n "$PREFIX-$from" route replace "$(node_pods6 "$to")" via "$(node_address6 "$to")"
        done
    done
    ip -n "$SWITCH" route replace "$SERVICES" via "$(node_address n1)"
    ip -n "$SWITCH" route replace "$SERVICES6" via "$(node_address6 n1)"
}

network_down() {
    local netns
    for netns in /run/netns/"$PREFIX"-*; do
        [ -e "$netns" ] && ip netns del "$(basename "$netns")"
    done
    return 0
}
