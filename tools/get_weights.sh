#!/bin/sh
# get_weights.sh - official checkpoints from their official addresses: downloaded (and resumed), checked against the
# pins in weights/README.md, converted to safetensors files that samlad opens. Needs a POSIX shell, curl or wget, a
# program for sha256, and python3 for the conversion.

program=get_weights.sh
here=$(cd "$(dirname "$0")" && pwd) || exit 1
table=$here/../weights/README.md
dir=$here/../weights/official
dtype=''
keep=0 convert=1
python=${PYTHON:-python3}

usage() {
    cat <<END
usage: get_weights.sh [options] [NAME...]

Download official weights, check them, convert them to DIR/NAME.safetensors. Without a NAME: all of them.

  -o, --output DIR    where they go (default: weights/official)
      --dtype TYPE    f32, f16 or bf16, for convert.py (f16 halves the files; samlad computes in f32)
      --keep          keep the checkpoint after its conversion
      --no-convert    only download and check
      --list          the names, their sizes, addresses and pins; downloads nothing
      --table FILE    pins from another file (default: weights/README.md)
  -h, --help          this text

The same command resumes a download that broke off; a copy from a folder begins anew. A file of wrong size or checksum is
refused and removed. Without a pin, the file's size and sha256 are printed as not verified. An existing
DIR/NAME.safetensors stays as it is.

SAMLAD_MIRROR=PLACE takes the files, by their names, from a folder or an address (file:// or another that curl knows)
instead of the official ones. PYTHON names the python3.

examples:
  tools/get_weights.sh mobile_sam dinov2_vits14 featup_dinov2
  tools/get_weights.sh --dtype f16 sam_vit_h
  SAMLAD_MIRROR=/media/usb tools/get_weights.sh dinov2_vitb14
END
}

say() { printf '%s\n' "$*"; }
complain() { printf '%s: %s\n' "$program" "$*" >&2; }
wrong() {
    complain "$* (see --help)"
    exit 2
}

# ---- the table -----------------------------------------------------------------------------------------------------
# Rows of weights/README.md: | `name` | `address` | size in bytes | `sha256` | md5 begins with |
# As fields for `read`: name address size sha256 md5, "-" where there is none. Rows without a name are other files.
pins() {
    awk -F'|' '/^\| *`[a-z0-9_]+` *\| *`[a-z]+:/ {
        for (i = 2; i <= 6; i++) { gsub(/[` ,]/, "", $i); if ($i == "" || $i ~ /[^-a-zA-Z0-9_:\/.]/ || $i == "unknown") $i = "-" }
        print $2, $3, $4, $5, $6
    }' "$table"
}

list() {
    pins | while read -r name address size sha md5; do
        case $sha-$md5 in
        ---) pinned="no pin" ;;
        --*) pinned="md5 prefix" ;;
        *) pinned="sha256" ;;
        esac
        printf '%-20s %13s  %-10s  %s\n' "$name" "$size" "$pinned" "$address"
    done
}

# ---- checking ------------------------------------------------------------------------------------------------------

bytes_of() { if [ -f "$1" ]; then wc -c <"$1" | tr -d ' '; else echo 0; fi; }

# digest 256|5 FILE
digest() {
    if [ "$1" = 256 ]; then
        if command -v sha256sum >/dev/null; then sha256sum <"$2"
        elif command -v shasum >/dev/null; then shasum -a 256 <"$2"
        else openssl dgst -sha256 -r <"$2"; fi
    else
        if command -v md5sum >/dev/null; then md5sum <"$2"
        elif command -v md5 >/dev/null; then md5 -q <"$2"
        else openssl dgst -md5 -r <"$2"; fi
    fi | cut -d ' ' -f 1
}

# check FILE SIZE SHA256 MD5PREFIX: 0 it is the one (or nothing is pinned: said), 1 it is not, 3 it is too short
check() {
    found=$(bytes_of "$1")
    gone="it was removed"
    [ $copied = 0 ] || gone="the copy was removed"
    if [ "$2" != - ] && [ "$found" -lt "$2" ]; then
        if [ $copied = 1 ]; then
            complain "$file: has $found of $2 bytes in $SAMLAD_MIRROR: it is cut short there"
            return 1
        fi
        complain "$file: $found of $2 bytes are there; the same command goes on from there"
        return 3
    fi
    if [ "$2" != - ] && [ "$found" -gt "$2" ]; then
        complain "$file: has $found bytes, the official file $2; $gone"
        return 1
    fi
    sha=$(digest 256 "$1")
    if [ ${#sha} -ne 64 ]; then
        complain "$file: sha256sum, shasum or openssl is needed to check it"
        return 4
    fi
    if [ "$3" != - ] && [ "$sha" != "$3" ]; then
        complain "$file: its sha256 is $sha, the official file's $3; $gone"
        return 1
    fi
    if [ "$4" != - ]; then
        md5=$(digest 5 "$1")
        case $md5 in
        "$4"*) ;;
        *)
            complain "$file: its md5 is $md5, the official file's begins with $4; $gone"
            return 1
            ;;
        esac
    fi
    if [ "$3" = - ]; then
        say "$file: NOT VERIFIED, no sha256 is pinned for it: $found bytes, sha256 $sha"
    else
        say "$file: $found bytes, sha256 as pinned"
    fi
}

# ---- getting -------------------------------------------------------------------------------------------------------

# fetch ADDRESS PART: add the missing end to PART
fetch() {
    if command -v curl >/dev/null; then
        bar=-sS
        [ ! -t 2 ] || bar=--progress-bar
        status=$(curl -fL $bar --retry 3 -C - -o "$2" -w '%{http_code}' "$1")
        case $?-$status in
        0-*) return 0 ;;
        33-* | *-416) rm -f "$2" ;; # the server cannot resume, or has no more bytes than PART
        *) return 1 ;;
        esac
        curl -fL $bar --retry 3 -o "$2" "$1"
    elif command -v wget >/dev/null; then
        bar=''
        [ ! -t 2 ] || bar=--show-progress
        wget -q $bar --tries=3 -c -O "$2" "$1"
    else
        complain "curl or wget is needed to download $1"
        return 1
    fi
}

# copy FROM PART: from a folder, always anew: to go on would gain nothing, and PART may be of another file
copy() {
    if [ ! -f "$1" ]; then
        complain "$1: there is no such file"
        return 1
    fi
    cp "$1" "$2" && copied=1
}

# Is SAMLAD_MIRROR a folder?
from_folder() { case ${SAMLAD_MIRROR:-://} in *://*) return 1 ;; esac; }
# The place that a file of this address is taken from.
place_of() { if [ -n "${SAMLAD_MIRROR:-}" ]; then echo "${SAMLAD_MIRROR%/}/${1##*/}"; else echo "$1"; fi; }

# download ADDRESS PART SIZE
download() {
    if from_folder; then
        copy "$(place_of "$1")" "$2"
        return
    fi
    [ "$3" != - ] && [ "$(bytes_of "$2")" -ge "$3" ] && return 0
    fetch "$(place_of "$1")" "$2"
}

# settle FILE SIZE SHA256 MD5PREFIX: 0 when it is the right file. A wrong file is removed; a short one becomes the
# beginning of the next try
settle() {
    check "$@"
    case $? in
    0) return 0 ;;
    1) rm -f "$1" ;;
    3) [ "$1" = "$part" ] || mv "$1" "$part" ;;
    esac
    return 1
}

# get NAME ADDRESS SIZE SHA256 MD5PREFIX: everything for one name
get() {
    file=${2##*/}
    checkpoint=$dir/$file
    part=$checkpoint.part
    copied=0
    if [ -f "$dir/$1.safetensors" ]; then
        say "$1: $dir/$1.safetensors is there already"
        return 0
    fi
    if [ -f "$checkpoint" ]; then
        settle "$checkpoint" "$3" "$4" "$5" || return 1
    else
        say "$1: $(place_of "$2")"
        if ! download "$2" "$part" "$3"; then
            [ -s "$part" ] || rm -f "$part"
            from_folder || complain "$file: the download failed; the same command resumes it"
            return 1
        fi
        settle "$part" "$3" "$4" "$5" || return 1
        mv "$part" "$checkpoint" || return 1
    fi
    [ $convert = 1 ] || return 0
    if ! command -v "$python" >/dev/null; then
        complain "$file: is there and checked, but python3 is needed to convert it"
        return 1
    fi
    if ! "$python" "$here/convert.py" "$checkpoint" -o "$dir/$1.safetensors" ${dtype:+--dtype "$dtype"}; then
        # unpinned and unreadable: perhaps it is not whole
        if [ "$4" = - ] && [ $copied = 1 ]; then rm -f "$checkpoint"; elif [ "$4" = - ]; then mv "$checkpoint" "$part"; fi
        return 1
    fi
    [ $keep = 1 ] || rm -f "$checkpoint"
}

# ---- the command line ----------------------------------------------------------------------------------------------

names='' want_list=0
while [ $# -gt 0 ]; do
    case $1 in
    -h | --help) usage; exit 0 ;;
    --list) want_list=1 ;;
    --keep) keep=1 ;;
    --no-convert) convert=0 ;;
    -o | --output | --dtype | --table)
        [ -n "${2:-}" ] || wrong "$1 needs a value"
        case $1 in
        --dtype) dtype=$2 ;;
        --table) table=$2 ;;
        *) dir=$2 ;;
        esac
        shift
        ;;
    -*) wrong "there is no option $1" ;;
    *) names="$names $1" ;;
    esac
    shift
done
case $dtype in '' | f32 | f16 | bf16) ;; *) wrong "--dtype is $dtype, expected f32, f16 or bf16" ;; esac
if [ ! -r "$table" ] || [ -z "$(pins)" ]; then
    complain "$table: no table of weights in it"
    exit 1
fi
if [ $want_list = 1 ]; then
    list
    exit 0
fi
known=$(pins | cut -d ' ' -f 1 | tr '\n' ' ')
for name in $names; do
    case " $known" in *" $name "*) ;; *) wrong "there are no weights named $name, but: $known" ;; esac
done
mkdir -p "$dir" || exit 1
failed=0
for name in ${names:-$known}; do
    # shellcheck disable=SC2046 # five fields without blanks
    get $(pins | grep "^$name ") || failed=$((failed + 1))
done
if [ $failed -gt 0 ]; then
    complain "$failed of the weights could not be had"
    exit 1
fi
