# The images that a cluster starts with: the pause container, CoreDNS, the official suite's echo servers, Jaeger. Sourced by `ctl`.

# build_images: sets IMAGES to a directory of image archives.
build_images() {
    local coredns basic advanced jaeger certs tag names=()
    built coredns github.com/coredns/coredns -ldflags "-s -w"; coredns="$BUILT"
    built echo-basic sigs.k8s.io/gateway-api/conformance/echo-basic -ldflags "-s -w"; basic="$BUILT"
    tag=istio.io/istio/pkg/test/echo/cmd
    built echo-advanced "$tag/server $tag/client" -ldflags "-s -w"; advanced="$BUILT"
    jaeger_program; jaeger="$BUILT"

    IMAGES="$CACHE/images-$(cat <(printf %s "$coredns $basic $advanced $jaeger") "$HERE/image.py" "$HERE/pause.c" "$HERE/lib/images.sh" | sha256sum | cut -c1-12)"
    [ -d "$IMAGES" ] && return
    say "writing the images"
    mkdir -p "$IMAGES.tmp$$"
    cc -Os -static -o "$CACHE/pause.tmp$$" "$HERE/pause.c" || die "cannot compile pause.c (libc6-dev)"
    archive pause --name weft.test/pause:1 --file "$CACHE/pause.tmp$$:/pause" --entrypoint /pause
    rm "$CACHE/pause.tmp$$"
    # Under a name of ours for the cluster, and under the one that the suite's UDP and TCP tests ask for.
    archive coredns --name weft.test/coredns:v1.15.0 --name registry.k8s.io/coredns/coredns:v1.12.2 --file "$coredns/coredns:/coredns" --entrypoint /coredns
    for tag in v1.5.1 v1.6.0-dev.2 v1.6.0-dev.3; do names+=(--name "registry.k8s.io/gateway-api/echo-basic:$tag"); done
    archive echo-basic "${names[@]}" --file "$basic/echo-basic:/echo-basic" --entrypoint /echo-basic --user 65532:65532
    # The certificate that its TLS port shows comes from the same module.
    certs="$(cd "$HERE/tools/echo-advanced" && go mod download istio.io/istio && go list -m -f '{{.Dir}}' istio.io/istio)/tests/testdata/certs/dns"
    archive echo-advanced --name registry.k8s.io/gateway-api/echo-advanced:v1.5.1 --entrypoint /bin/server \
        --file "$advanced/server:/bin/server" --file "$advanced/client:/usr/local/bin/client" --file "$certs/cert-chain.pem:/cert.crt" --file "$certs/key.pem:/cert.key"
    # Under its usual name too, so that manifests for any cluster work here as they are.
    archive jaeger --name weft.test/jaeger:1.62 --name docker.io/jaegertracing/all-in-one:1.62.0 --file "$jaeger:/jaeger" --entrypoint /jaeger --directory /tmp
    publish "$IMAGES"
}

archive() { # archive NAME ARGUMENT…
    local name="$1"; shift
    "$HERE/image.py" "$IMAGES.tmp$$/$name.tar" "$@" || die "cannot write the image $name"
}

# jaeger_program: the very program that the other end-to-end tests use; `dev` builds it under the same name.
jaeger_program() {
    local module="$HERE/../tools/jaeger"
    BUILT="$(dirname "$CACHE")/jaeger-$(sha256sum "$module/go.sum" | cut -c1-12)"
    [ -x "$BUILT" ] && return
    say "building Jaeger (once)"
    (cd "$module" && CGO_ENABLED=0 go build -trimpath -o "$BUILT.tmp$$" github.com/jaegertracing/jaeger/cmd/all-in-one) || die "cannot build Jaeger"
    publish "$BUILT"
}
