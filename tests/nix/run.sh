#!/usr/bin/env bash
# Tests of the NixOS module, the package, the flake and the example, as far as they can be had without
# nixpkgs: on small stand-ins for it, with Debian's nix. Ends with one count.
#
#   tests/nix/run.sh            all of it
#   tests/nix/run.sh PART…      some of: parse style module firewall readme flake package agenix
#
# With NIXPKGS_LIB (the folder lib of nixpkgs) and AGENIX_MODULE (modules/age.nix of agenix) set, the
# module's cases also run on those.
# shellcheck disable=SC2016 # what stands in single quotes is for another shell
set -euo pipefail
# shellcheck source=tests/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../common.sh"
# shellcheck source=tests/checks.sh
source "$root/tests/checks.sh"

here=$root/tests/nix
tools=$cache/tools

# ---- nix, without a network, a daemon and a store of the machine's

set_up_nix() {
    need nix-instantiate:nix-bin age:age ssh-keygen:openssh-client jq:jq
    mkdir -p "$dir/nix/conf" "$dir/home"
    printf '%s\n' 'substitute = false' 'build-users-group =' 'sandbox = false' \
        'experimental-features = nix-command flakes' >"$dir/nix/conf/nix.conf"
    export NIX_CONF_DIR=$dir/nix/conf NIX_USER_CONF_FILES=/dev/null NIX_PATH=
    export HOME=$dir/home XDG_CACHE_HOME=$dir/home/cache
}

# Evaluates an expression to JSON. Nothing is written to any store.
evaluate() { timeout 60 nix-instantiate --eval --strict --json --store dummy:// --expr "$1"; }
export -f evaluate

# cargo_tool COMMAND CRATE installs a tool into the cache, and says where it is.
cargo_tool() {
    mkdir -p -- "$tools"
    exec 9>"$tools/.lock"
    flock 9
    if [[ ! -x $tools/bin/$1 ]]; then
        say "installing $1 (half a minute, once)" >&2
        HOME=$home timeout 900 cargo install --locked --quiet --root "$tools" "$2" >&2
    fi
    exec 9>&-
}
home=$HOME

# ---- the files

mapfile -t files < <(cd -- "$root" && find flake.nix nix tests/nix -name '*.nix' | sort)

parse() {
    local file
    for file in "${files[@]}"; do
        check "parse $file" nix-instantiate --parse "$root/$file"
    done
}

style() {
    local tool
    for tool in nixfmt:nixfmt_rs@0.5.3 deadnix:deadnix@1.3.1; do
        if ! cargo_tool "${tool%%:*}" "${tool##*:}"; then
            skip "${tool%%:*}" "it cannot be installed"
        elif [[ $tool == nixfmt:* ]]; then
            check "nixfmt: all files are in nixpkgs' style" "$tools/bin/nixfmt" --check "${files[@]/#/$root/}"
        else
            check "deadnix: nothing is unused" "$tools/bin/deadnix" --fail "${files[@]/#/$root/}"
        fi
    done
}

# ---- the module

# cases WHAT ARGUMENTS evaluates every case of cases.nix, which is called with these arguments.
cases() {
    local names name case message
    names=$(evaluate "builtins.attrNames (import $here/cases.nix $2)")
    while read -r name; do
        case="let case = (import $here/cases.nix $2).$(jq -n --arg n "$name" '$n'); in"
        name="$1: $name"
        if evaluate "$case case ? fails" | grep -q true; then
            message=$(evaluate "$case case.says" | jq -r .)
            if evaluate "$case case.fails" >"$dir/out" 2>&1; then
                bad "$name" <"$dir/out"
            elif grep -qF -- "$message" "$dir/out"; then
                ok "$name"
            else
                bad "$name" <"$dir/out"
            fi
        elif ! evaluate "$case if case.got == case.want then true else { inherit (case) got want; }" >"$dir/out" 2>&1; then
            bad "$name" <"$dir/out"
        elif [[ $(cat "$dir/out") == true ]]; then
            ok "$name"
        else
            jq . "$dir/out" | bad "$name"
        fi
    done < <(jq -r '.[]' <<<"$names")
}

module() {
    cases module '{ }'
    if [[ -n ${NIXPKGS_LIB:-} && -n ${AGENIX_MODULE:-} ]]; then
        cases "module, real lib and agenix" "{ lib = import $NIXPKGS_LIB; agenix = $AGENIX_MODULE; }"
    else
        skip "the module's cases and the agenix command, on the real lib and agenix" \
            "NIXPKGS_LIB and AGENIX_MODULE are not set"
    fi
}

# The rules that NixOS makes of the trusted interfaces, given to the tools that load them: a name that they
# refuse leaves the machine without any rule.
firewall() {
    need iptables:iptables nft:nftables
    if ! unshare --net --map-root-user true 2>/dev/null; then
        skip "firewall: the rules of the trusted interfaces" "namespaces cannot be made"
        return
    fi
    local tool interface
    local -A rules=(
        [iptables]='(printf "%s\n" "*filter" ":nixos-fw - [0:0]"
            for name; do echo "-A nixos-fw -i $name -j ACCEPT"; done
            echo COMMIT) | iptables-restore --test'
        [nftables]='(printf "table inet t {\n chain c {\n  iifname { \"lo\""
            for name; do printf ", \"%s\"" "$name"; done
            printf " } accept\n }\n}\n") | nft --check --file -'
    )
    for tool in iptables nftables; do
        check "firewall: $tool refuses a name that is longer than an interface may have" \
            bash -c '! unshare --net --map-root-user bash -euo pipefail -c "$@"' - "${rules[$tool]}" - userspace-networking
        for interface in tailscale0 fifteen-letters userspace-networking; do
            check "firewall: $tool loads the rules where $interface is to be trusted" bash -euo pipefail -c '
                readarray -t trusted < <(evaluate "
                    let lib = import $1/stand-ins/lib.nix; in
                    ((import $1/evaluate.nix { inherit lib; }).machine [ {
                      services.tailscale.interfaceName = \"$2\";
                      services.tailscale-autoconnect = { authKeyFile = \"/run/token\"; trustInterface = true; };
                    } ]).networking.firewall.trustedInterfaces" | jq -r ".[]")
                unshare --net --map-root-user bash -euo pipefail -c "$3" - "${trusted[@]}"' \
                - "$here" "$interface" "${rules[$tool]}"
        done
    done
}

# What stands between ```nix and ``` in the two READMEs: the host of the one, which is a whole flake, and
# the modules of the other.
readme() {
    local name file host
    for name in README.md nix/README.md; do
        mkdir -p "$dir/readme/$name"
        awk -v to="$dir/readme/$name/" '
            /^```/ { inside = $0 == "```nix"; number += inside; next }
            inside { print > (to number ".nix") }' "$root/$name"
    done
    # Its own configuration, which has what a comment beside it says.
    host=$dir/readme/README.md/1.nix
    echo "{ $(sed -nE 's/.*configuration\.nix # with ([^:]*):.*/\1/p' "$host"); }" >"$dir/readme/README.md/configuration.nix"
    check "README.md: its host joins with the secret, with the nixpkgs of its own, in under 20 lines" bash -euo pipefail -c '
        (($(wc -l <"$1") < 20))
        diff <(echo "[\"/run/agenix/tailscale-token\",[],true,\"nixpkgs\"]") <(evaluate "
            let
              inherit (import $2/evaluate.nix { lib = import $2/stand-ins/lib.nix; }) host;
              config = host $1 $2/stand-ins/agenix.nix [ ];
            in
            [
              config.services.tailscale-autoconnect.authKeyFile
              (map (a: a.message) (builtins.filter (a: !a.assertion) config.assertions))
              config.services.openssh.enable
              (import $1).inputs.tailscale-autoconnect.inputs.nixpkgs.follows
            ]" | jq -c .)' - "$host" "$here"

    for file in "$dir"/readme/nix/README.md/*.nix; do
        check "nix/README.md: snippet $(basename "$file" .nix) is accepted without a warning" bash -euo pipefail -c '
            diff <(echo "[[],[]]") <(evaluate "
                let
                  lib = import $2/stand-ins/lib.nix;
                  config = (import $2/evaluate.nix { inherit lib; }).machine [
                    $2/stand-ins/others.nix
                    { services.tailscale-autoconnect.authKeyFile = lib.mkDefault \"/run/token\"; }
                    $1
                  ];
                in
                builtins.deepSeq config.systemd.services [
                  (map (a: a.message) (builtins.filter (a: !a.assertion) config.assertions))
                  config.warnings
                ]" | jq -c .)' - "$file" "$here"
    done
    check "nix/README.md: its table has all options, and no others" bash -euo pipefail -c '
        diff <(evaluate "
            let
              lib = import $2/stand-ins/lib.nix;
              inherit ((import $2/evaluate.nix { inherit lib; }).options.services) tailscale-autoconnect;
            in
            builtins.concatMap (name:
              let option = tailscale-autoconnect.\${name}; in
              if option._type or null == \"option\" then [ name ]
              else map (part: \"\${name}.\${part}\") (builtins.attrNames option)
            ) (builtins.attrNames tailscale-autoconnect)" | jq -r ".[]" | sort) \
            <(sed -nE "s/^\| (\`[^|]*\`) \|.*/\1/p" "$1" | grep -o "\`[^\`]*\`" | tr -d "\`" | sort)' \
        - "$root/nix/README.md" "$here"
}

# ---- the flake and the package

flake() {
    local copy=$dir/flake file
    # Not in a git tree, where files that are not yet added don't count.
    mkdir -p "$copy/tests"
    for file in flake.nix nix src units tests/nix Cargo.toml Cargo.lock; do
        cp -r -- "$root/$file" "$copy/$file"
    done
    # Evaluated, not built: there is nothing to build with.
    check "flake: nix flake check on stand-in inputs" nix flake check --no-build "$copy" \
        --override-input nixpkgs "path:$here/stand-ins" --override-input agenix "path:$here/stand-ins" \
        --override-input sops-nix "path:$here/stand-ins" --offline --no-write-lock-file \
        --store "$dir/nix/root"
    check "flake: what it offers, and no other flake but nixpkgs" bash -euo pipefail -c '
        diff -u <(jq .) <(evaluate "
            let
              flake = import $1/flake.nix;
              nixpkgs = (import $2/stand-ins/flake.nix).outputs { };
              outputs = flake.outputs {
                inherit nixpkgs;
                self = outputs;
                agenix = null;
                sops-nix = null;
              };
              isFlake = name: flake.inputs.\${name}.flake or true;
              names = builtins.mapAttrs (_: builtins.attrNames);
            in
            {
              inputs = builtins.filter isFlake (builtins.attrNames flake.inputs);
              checks = names outputs.checks;
              devShells = names outputs.devShells;
              packages = names outputs.packages;
              formatter = builtins.attrNames outputs.formatter;
              nixosModules = builtins.attrNames outputs.nixosModules;
              overlay = builtins.attrNames (outputs.overlays.default { callPackage = _: _: 1; } { });
            }" | jq .)' - "$copy" "$here" <<'END'
{
  "checks": {
    "aarch64-linux": ["module", "package", "vm"],
    "x86_64-linux": ["module", "package", "vm"]
  },
  "devShells": { "aarch64-linux": ["default"], "x86_64-linux": ["default"] },
  "formatter": ["aarch64-linux", "x86_64-linux"],
  "inputs": ["nixpkgs"],
  "nixosModules": ["default", "tailscale-autoconnect"],
  "overlay": ["tailscale-autoconnect"],
  "packages": { "aarch64-linux": ["default"], "x86_64-linux": ["default"] }
}
END
    skip "the VM test (tests/nix/vm.nix)" "it needs nixpkgs: nix flake check"
}

# An attribute of the package, as JSON.
of_package() {
    evaluate "let lib = import $here/stand-ins/lib.nix;
        package = (import $here/stand-ins/pkgs.nix { inherit lib; }).callPackage $root/nix/package.nix { };
        in $1"
}

# built COPY TARGET checks what can be seen with a copy of the package's files and with cargo.
built() {
    local copy=$1 target=$2 flags
    mapfile -t flags < <(of_package package.cargoTestFlags | jq -r '.[]')
    # What is built of the dependencies is shared. Built in another way, the copy itself is not taken
    # for what it is a copy of.
    flags+=(--quiet --locked --manifest-path "$copy/Cargo.toml")
    flags+=(--config profile.dev.package.tailscale-autoconnect.debug=false)
    flags+=(--config profile.dev.package.tailnet-harness.debug=false)
    # Apart from the check, which may not take as long.
    HOME=$home CARGO_TARGET_DIR=$target timeout 900 cargo test --no-run "${flags[@]}" >/dev/null 2>&1 || true
    check "package: the tests of its check phase pass on the files that it is made from" \
        env HOME="$home" CARGO_TARGET_DIR="$target" cargo test "${flags[@]}"
    HOME=$home timeout 600 cargo build --quiet --locked --manifest-path "$root/Cargo.toml" --target-dir "$target"
    install -D "$target/debug/tailscale-autoconnect" "$dir/out-of-package/bin/tailscale-autoconnect"
    check "package: it has the unit, the manual page and the completions, and its program finds tailscale" bash -euo pipefail -c '
        cd "$1"
        export out=$2
        wrapProgram() {
            echo "$*" >"$out/wrapped"
            rm "$1"
        }
        # Of nixpkgs: the first takes files of any section, the second is called with --cmd NAME first.
        installManPage() { cp "$1" "$out"; }
        installShellCompletion() {
            [[ "$1 $2" == "--cmd tailscale-autoconnect" ]]
            shift 2
            while (($#)); do
                cat "$2" >"$out/${1#--}"
                shift 2
            done
        }
        # Of nixpkgs: FILE --replace-fail FROM TO, where FROM has to be there.
        substituteInPlace() {
            grep -qF -- "$3" "$1"
            chmod u+w "$1"
            sed -i "s|$3|$4|g" "$1"
        }
        source "$3"
        grep -x "ExecStart=$out/bin/tailscale-autoconnect" "$out/lib/systemd/system/tailscale-autoconnect.service"
        if grep /usr "$out/lib/systemd/system/tailscale-autoconnect.service"; then exit 1; fi
        grep -x "$out/bin/tailscale-autoconnect --suffix PATH : .*-tailscale/bin" "$out/wrapped"
        grep "^\.TH tailscale-autoconnect 8 " "$out/tailscale-autoconnect.8"
        grep "complete -F .* tailscale-autoconnect" "$out/bash"
        grep "^complete -c tailscale-autoconnect " "$out/fish"
        grep "^#compdef tailscale-autoconnect" "$out/zsh"
        ' - "$copy" "$dir/out-of-package" "$dir/postInstall"
}

package() {
    local target=${CARGO_TARGET_DIR:-$root/target} copy file
    # Always in the same place, and as old as they are, so that cargo knows them again.
    copy=$target/tests-nix-run.sh
    rm -rf -- "$copy"
    mkdir -p "$copy"
    of_package 'map toString package.src.fileset' >"$dir/files.json"
    while read -r file; do
        mkdir -p "$copy/$(dirname -- "${file#"$root"/}")"
        cp -r --preserve=timestamps -- "$file" "$copy/${file#"$root"/}"
    done < <(jq -r '.[]' "$dir/files.json")
    of_package package.postInstall | jq -r . >"$dir/postInstall"
    if command -v cargo >/dev/null; then
        built "$copy" "$target"
    else
        skip "package: it can be built from its files, and what is installed" "cargo is missing"
    fi
    check "package: its name, version and program" bash -c 'diff <(echo "$1") <(echo "$2")' - \
        "[\"tailscale-autoconnect\",\"$(sed -nE '/^\[package\]/,/^\[[^p]/s/^version = "(.*)"/\1/p' "$root/Cargo.toml")\",\"tailscale-autoconnect\"]" \
        "$(of_package '[ package.pname package.version package.meta.mainProgram ]')"
}

# ---- the example's secret, as the command agenix handles it

# What agenix does in the folder of secrets.nix: it asks nix for the keys that a file is encrypted to,
# and age for the rest.
agenix_keys() {
    nix-instantiate --json --eval --strict --store dummy:// \
        --expr "(let rules = import ./secrets.nix; in rules.\"$1\".publicKeys)" | jq -r '.[]'
}

agenix_encrypt() {
    local keys=() key
    while read -r key; do keys+=(--recipient "$key"); done < <(agenix_keys "$1")
    age --encrypt "${keys[@]}" --output "$1"
}

agenix() {
    local place=$dir/secrets who
    mkdir -p "$place"
    for who in admin host stranger; do
        ssh-keygen -q -t ed25519 -N '' -C "$who" -f "$place/$who"
    done
    export -f agenix_keys agenix_encrypt
    local in_place=(env -C "$place" bash -euo pipefail -c)

    cp -- "$root/nix/example/secrets.nix" "$place/secrets.nix"
    check "agenix: the example's secrets.nix can be used as it is" "${in_place[@]}" '
        echo tskey-auth-first | agenix_encrypt tailscale-token.age
        test -s tailscale-token.age'

    # Its reader puts in keys of their own.
    for who in admin host; do
        sed -i -E "s|^(  $who = )\".*\";|\1\"$(cat "$place/$who.pub")\";|" "$place/secrets.nix"
    done
    check "agenix: the admin and the host can decrypt the auth key, others can't" "${in_place[@]}" '
        echo tskey-auth-second | agenix_encrypt tailscale-token.age
        for who in admin host; do
            diff <(echo tskey-auth-second) <(age --decrypt --identity "$who" tailscale-token.age)
        done
        ! age --decrypt --identity stranger tailscale-token.age'
    check "agenix: the file that the example host decrypts is one that secrets.nix knows" "${in_place[@]}" '
        file=$(sed -nE "s|.*tailscale-token\.file = \./(.*);|\1|p" "$0")
        test -n "$(agenix_keys "$file")"' "$root/nix/example/tailscale.nix"

    [[ -n ${AGENIX_MODULE:-} ]] || return 0
    local script
    script=$(dirname -- "$AGENIX_MODULE")/../pkgs/agenix.sh
    sed -e 's/@nixInstantiate@/nix-instantiate --store dummy:\/\//g' -e 's/@ageBin@/age/g' \
        -e 's/@jqBin@/jq/g' -e 's/@mktempBin@/mktemp/g' -e 's/@diffBin@/diff/g' "$script" >"$place/agenix"
    check "agenix: the real command makes the secret and changes it" "${in_place[@]}" '
        rm -f tailscale-token.age
        for token in tskey-auth-third tskey-auth-fourth; do
            echo "$token" | bash ./agenix -e tailscale-token.age -i admin
            diff <(echo "$token") <(bash ./agenix -d tailscale-token.age -i host)
        done'
}

main() {
    local part parts=(parse style module firewall readme flake package agenix)
    (($# == 0)) || parts=("$@")
    for part in "${parts[@]}"; do
        declare -F "$part" >/dev/null || { say "No part is called $part." >&2 && return 64; }
    done
    set_up_nix
    for part in "${parts[@]}"; do "$part"; done
    count
}

main "$@"
