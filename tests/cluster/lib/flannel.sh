# Flannel, as a cluster has it: flanneld on each node, and the plugin that it brings. `up --network flannel`. Sourced by `ctl`.

flannel() { [ -e "$DIR/flannel" ]; }

# build_flannel: sets FLANNEL to a directory with flanneld and the plugin `flannel`. Two modules, since flanneld's asks for a
# newer version of the plugins than the last that has this one (0.9.1; it is Flannel's own since).
build_flannel() {
    local daemon plugin
    built flannel . -ldflags "-s -w"; daemon="$BUILT"
    built flannel-cni github.com/containernetworking/plugins/plugins/meta/flannel -ldflags "-s -w"; plugin="$BUILT"
    FLANNEL="$CACHE/flannel-bin-$(printf %s "$daemon $plugin" | sha256sum | cut -c1-12)"
    [ -d "$FLANNEL" ] && return
    mkdir -p "$FLANNEL.tmp$$"
    ln "$daemon/flannel" "$FLANNEL.tmp$$/flanneld"
    ln "$plugin/flannel" "$FLANNEL.tmp$$/flannel"
    publish "$FLANNEL"
}

# flannel_files NODE: its programs and configuration.
flannel_files() {
    local state="$DIR/nodes/$1" etc="$DIR/nodes/$1/etc/upper/kubernetes"
    mkdir -p "$state/opt/cni/bin"
    cp "$DIR/flannel/flanneld" "$state/opt/flanneld"
    cp "$DIR/flannel/flannel" "$state/opt/cni/bin/flannel"
    cp "$DIR/pki/admin.kubeconfig" "$etc/flannel.kubeconfig"
    echo "{\"Network\": \"$PODS\", \"Backend\": {\"Type\": \"vxlan\"}}" >"$etc/flannel-net-conf.json"
}

# flannel_conflist NODE: the network configuration, written over whatever is there, as an init container of Flannel's DaemonSet does
# whenever its pod starts.
flannel_conflist() {
    cat >"$DIR/nodes/$1/net.d/10-flannel.conflist" <<'JSON'
{
  "name": "cbr0",
  "cniVersion": "0.3.1",
  "plugins": [
    {
      "type": "flannel",
      "delegate": {
        "hairpinMode": true,
        "isDefaultGateway": true
      }
    },
    {
      "type": "portmap",
      "capabilities": {
        "portMappings": true
      }
    }
  ]
}
JSON
}

start_flanneld() {
    flannel_conflist "$1"
    node_spawn "$1" flanneld /opt/flanneld "$1" /etc/kubernetes/flannel.kubeconfig /etc/kubernetes/flannel-net-conf.json eth0
}

wait_flanneld() { wait_for "flanneld on $1" "$(node_log "$1" flanneld)" 60 in_node "$1" test -s /run/flannel/subnet.env; }
