# Names, addresses, and how processes are started and ended. Sourced by `ctl`.

CACHE="${WEFT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/weft}/cluster" # built programs and images, keyed by their pins
DIR="${WEFT_CLUSTER_DIR:-/run/weft-cluster}"                        # everything that a running cluster leaves on disk

# Each state directory is a cluster of its own: its namespaces and cgroups carry a prefix made of the directory's name.
if [ "$DIR" = /run/weft-cluster ]; then PREFIX=wcl; else PREFIX="wcl$(printf %s "$DIR" | sha256sum | cut -c1-4)"; fi
SWITCH="$PREFIX-switch" # the namespace of the bridge: control plane and test clients live there; no way leads out of it

# The address plan. The project's other namespace tests use 10.77 and 10.88; nothing here is ever seen outside of its namespaces.
# 10.90.0.0/16 joins the nodes: node N is 10.90.0.(10+N), and 10.90.128.0/17 is free for Gateways.
API_ADDRESS=10.90.0.1 # the bridge itself
PODS=10.91.0.0/16     # node N has 10.91.N.0/24
SERVICES=10.96.0.0/16
DNS_ADDRESS=10.96.0.10
node_address() { echo "10.90.0.$((10 + ${1#n}))"; }
node_pods() { echo "10.91.${1#n}.0/24"; }

# IPv6, with `up --families`: fd90:: joins the nodes, node N has fd91:0:0:N::/64 for pods.
API_ADDRESS6=fd90::1
PODS6=fd91::/48
SERVICES6=fd96::/112
DNS_ADDRESS6=fd96::a
node_address6() { echo "fd90::$((10 + ${1#n}))"; }
node_pods6() { echo "fd91:0:0:${1#n}::/64"; }
# families: what addresses pods and Services have, as `up --families` was told, the cluster's first family first.
families() { cat "$DIR/families" 2>/dev/null || echo ipv4; }
# by_family A B: A where there is IPv4, B where there is IPv6, in the cluster's order.
by_family() {
    case "$(families)" in
        ipv4) echo "$1" ;;
        ipv6) echo "$2" ;;
        ipv4,ipv6) echo "$1,$2" ;;
        ipv6,ipv4) echo "$2,$1" ;;
    esac
}
# first_family A B: A or B, as the first family is IPv4 or IPv6.
first_family() { case "$(families)" in ipv6*) echo "$2" ;; *) echo "$1" ;; esac; }

say() { printf '%s\n' "$*" >&2; }
die() { printf 'cluster: %s\n' "$*" >&2; exit 1; }

nodes() { cat "$DIR/nodes.list" 2>/dev/null || true; }

in_switch() { nsenter --net="/run/netns/$SWITCH" "$@"; }

# spawn NAME COMMAND…: starts a process beside the API server. It writes its own id before it becomes the command, so that no crash of
# ours can leave it unknown; WEFT_CLUSTER in its environment tells it from a stranger that was given the same id later.
spawn() {
    local name="$1"; shift
    # The lock (9) must not live on in a process that outlives us.
    # shellcheck disable=SC2016 # for the inner shell
    WEFT_CLUSTER="$DIR" setsid nsenter --net="/run/netns/$SWITCH" sh -c 'echo $$ >"$0"; exec "$@"' "$DIR/pids/$name" "$@" \
        >>"$DIR/log/$name.log" 2>&1 </dev/null 9>&- & disown
}

# pid_of NAME: the id of a live process of ours.
pid_of() {
    local pid; pid="$(cat "$DIR/pids/$1" 2>/dev/null)" && [ -n "$pid" ] || return 1
    tr '\0' '\n' 2>/dev/null <"/proc/$pid/environ" | grep -qxF "WEFT_CLUSTER=$DIR" && echo "$pid"
}

# gone NAME: it ended (a zombie has an empty environment, so it counts as gone).
gone() { ! pid_of "$1" >/dev/null; }

# stop_process NAME [SIGNAL]: ends it and waits for it; a process that does not heed TERM is killed after 5 s (the API server takes
# its time for open watches).
stop_process() {
    local name="$1" signal="${2:-TERM}" pid
    pid="$(pid_of "$name")" || { rm -f "$DIR/pids/$name"; return 0; }
    kill "-$signal" "$pid" 2>/dev/null || true
    if ! wait_until 5 gone "$name"; then kill -KILL "$pid" 2>/dev/null || true; wait_until 10 gone "$name"; fi
    rm -f "$DIR/pids/$name"
}

# wait_until SECONDS COMMAND…: polls a condition; false when time is up.
wait_until() {
    local end=$((SECONDS + $1)); shift
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$end" ] || return 1
        sleep 0.1
    done
}

# wait_for WHAT LOG SECONDS COMMAND…: the same, and says what was waited for and where to look.
wait_for() {
    local what="$1" log="$2" seconds="$3"; shift 3
    wait_until "$seconds" "$@" && return
    say "--- the end of $log"
    tail -n 15 "$log" >&2 2>/dev/null || true
    die "no $what after $seconds s: see $log"
}
