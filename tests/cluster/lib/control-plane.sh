# etcd and the three control plane processes, in the bridge's namespace. Sourced by `ctl`.

api_healthy() { in_switch curl -sf --max-time 2 --cacert "$DIR/pki/ca.crt" "https://$API_ADDRESS:6443/readyz"; }

start_etcd() {
    spawn etcd etcd --data-dir "$DIR/etcd" --unsafe-no-fsync --quota-backend-bytes 4294967296 \
        --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
        --listen-peer-urls http://127.0.0.1:2380 --initial-advertise-peer-urls http://127.0.0.1:2380 --initial-cluster default=http://127.0.0.1:2380
}

start_apiserver() {
    local pki="$DIR/pki"
    spawn apiserver "$BIN/kube-apiserver" --etcd-servers=http://127.0.0.1:2379 \
        --advertise-address="$(first_family "$API_ADDRESS" "$API_ADDRESS6")" --service-cluster-ip-range="$(by_family "$SERVICES" "$SERVICES6")" --allow-privileged \
        --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --client-ca-file="$pki/ca.crt" \
        --tls-cert-file="$pki/apiserver.crt" --tls-private-key-file="$pki/apiserver.key" \
        --kubelet-certificate-authority="$pki/ca.crt" --kubelet-client-certificate="$pki/apiserver-client.crt" \
        --kubelet-client-key="$pki/apiserver-client.key" --kubelet-preferred-address-types=InternalIP \
        --service-account-issuer=https://kubernetes.default.svc.cluster.local --service-account-key-file="$pki/sa.pub" \
        --service-account-signing-key-file="$pki/sa.key" \
        --audit-policy-file="$HERE/config/audit.yaml" --audit-log-path="$DIR/log/audit.log" --audit-log-maxsize=1024
}

start_controller-manager() {
    local pki="$DIR/pki"
    spawn controller-manager "$BIN/kube-controller-manager" --kubeconfig="$pki/controller-manager.kubeconfig" --use-service-account-credentials \
        --service-account-private-key-file="$pki/sa.key" --root-ca-file="$pki/ca.crt" \
        --cluster-signing-cert-file="$pki/ca.crt" --cluster-signing-key-file="$pki/ca.key" --leader-elect=false
}

start_scheduler() { spawn scheduler "$BIN/kube-scheduler" --kubeconfig="$DIR/pki/scheduler.kubeconfig" --leader-elect=false; }

wait_etcd() { wait_for "etcd" "$DIR/log/etcd.log" 60 in_switch curl -sf --max-time 2 http://127.0.0.1:2379/health; }
wait_apiserver() { wait_for "API server" "$DIR/log/apiserver.log" 120 api_healthy; }
wait_controller-manager() { wait_for "controller-manager" "$DIR/log/controller-manager.log" 60 in_switch curl -skf --max-time 2 https://127.0.0.1:10257/healthz; }
wait_scheduler() { wait_for "scheduler" "$DIR/log/scheduler.log" 60 in_switch curl -skf --max-time 2 https://127.0.0.1:10259/healthz; }

kubectl() { in_switch env KUBECONFIG="$DIR/pki/admin.kubeconfig" "$BIN/kubectl" "$@"; }

# Nodes are made before their kubelets register, to give each its range of pod addresses (nobody else here hands them out).
register_nodes() {
    local node ranges
    for node in $(nodes); do
        ranges="$(by_family "'$(node_pods "$node")'" "'$(node_pods6 "$node")'")"
        printf -- '---\napiVersion: v1\nkind: Node\nmetadata: {name: %s}\nspec: {podCIDR: %s, podCIDRs: [%s]}\n' "$node" "${ranges%%,*}" "$ranges"
    done | kubectl apply -f - >/dev/null
}
