# Shared by the scripts here; sourced, not run.
set -euo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$top"

say() { printf '%s\n' "$*"; }
die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# Debian keeps some of the tools out of a user's PATH.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

# section NAME COMMAND...: runs it, says how long it took, and stops the script when it fails.
section() {
    local name=$1 start=$SECONDS
    shift
    printf '\n== %s\n' "$name"
    "$@" || { printf '== %s: FAILED after %d s\n' "$name" $((SECONDS - start)); exit 1; }
    printf '== %s: ok, %d s\n' "$name" $((SECONDS - start))
}

# private COMMAND...: runs it as root of its own network, mount and process namespaces, so that nothing it makes can
# outlive it or touch this machine. Without root it needs unprivileged user namespaces.
private() {
    local how=(--net --mount --pid --fork --kill-child --mount-proc --propagation private)
    [ "$(id -u)" = 0 ] || how=(--user --map-root-user "${how[@]}")
    unshare "${how[@]}" true 2>/dev/null ||
        die "cannot make namespaces as $(id -un): run as root, or allow unprivileged user namespaces (sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0)"
    unshare "${how[@]}" bash -c 'ip link set lo up && "$@"' private "$@"
}

# built ARGUMENTS...: builds a release binary by `cargo build ARGUMENTS` and sets $built to where cargo puts it: with a named
# target (see .cargo/config.toml) or a target directory of its own.
built() {
    cargo build --release --locked "$@"
    built=$(cargo build --release --locked "$@" --message-format json 2>/dev/null |
        sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)
    [ -x "$built" ] || die "cargo built no binary: $*"
}

build_release() {
    built --bin formic
    export FORMIC_BIN=$built
}
