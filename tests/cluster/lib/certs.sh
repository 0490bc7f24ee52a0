# The cluster's certificates: one CA, keys on P-256 (milliseconds to make). Sourced by `ctl`.

# certificate NAME SUBJECT [SAN]: $DIR/pki/NAME.{key,crt}, for both ends of TLS.
certificate() {
    local name="$1" subject="$2" san="${3:-}" pki="$DIR/pki"
    openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$pki/$name.key" -subj "$subject" -out "$pki/$name.csr" 2>/dev/null
    openssl x509 -req -in "$pki/$name.csr" -CA "$pki/ca.crt" -CAkey "$pki/ca.key" -set_serial "0x$(openssl rand -hex 16)" -days 30 -out "$pki/$name.crt" \
        -extfile <(printf 'keyUsage=digitalSignature\nextendedKeyUsage=serverAuth,clientAuth\n%s' "${san:+subjectAltName=$san}") 2>/dev/null
}

# kubeconfig NAME: $DIR/pki/NAME.kubeconfig, self-contained, with the certificate of that name.
kubeconfig() {
    local name="$1" pki="$DIR/pki"
    cat >"$pki/$name.kubeconfig" <<YAML
apiVersion: v1
kind: Config
current-context: weft
clusters: [{name: weft, cluster: {server: "https://$API_ADDRESS:6443", certificate-authority-data: $(base64 -w0 "$pki/ca.crt")}}]
users: [{name: $name, user: {client-certificate-data: $(base64 -w0 "$pki/$name.crt"), client-key-data: $(base64 -w0 "$pki/$name.key")}}]
contexts: [{name: weft, context: {cluster: weft, user: $name}}]
YAML
}

certs() {
    local pki="$DIR/pki" node pid pids=()
    openssl req -x509 -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$pki/ca.key" -out "$pki/ca.crt" -subj /CN=weft-cluster -days 30 2>/dev/null
    openssl ecparam -name prime256v1 -genkey -noout -out "$pki/sa.key"
    openssl ec -in "$pki/sa.key" -pubout -out "$pki/sa.pub" 2>/dev/null
    certificate apiserver /CN=kube-apiserver \
        "DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local,IP:10.96.0.1,IP:${SERVICES6%/*}1,IP:$API_ADDRESS,IP:$API_ADDRESS6,IP:127.0.0.1" & pids+=($!)
    certificate apiserver-client /O=system:masters/CN=kube-apiserver & pids+=($!)
    (certificate admin /O=system:masters/CN=admin && kubeconfig admin) & pids+=($!)
    (certificate controller-manager /CN=system:kube-controller-manager && kubeconfig controller-manager) & pids+=($!)
    (certificate scheduler /CN=system:kube-scheduler && kubeconfig scheduler) & pids+=($!)
    (certificate proxy /CN=system:kube-proxy && kubeconfig proxy) & pids+=($!)
    for node in $(nodes); do
        (certificate "$node" "/O=system:nodes/CN=system:node:$node" "DNS:$node,IP:$(node_address "$node"),IP:$(node_address6 "$node")" && kubeconfig "$node") & pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid" || die "openssl could not make a certificate"; done
}
