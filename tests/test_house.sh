#!/bin/sh
# test_house.sh - the house as docs/READING.md describes it: rooms and includes, chapters that can be read, and documents whose citations exist.
#
# Each check prints what it finds in a folder, and nothing when all is well. Before it looks at this project, it
# must find the defects of a small house that is built here with one of each kind.

. "$(dirname "$0")/shell.sh"
here=$(cd "$here/.." && pwd)

CHAPTERS="tensor vit featup sam amg dcga omm raster amm verdict samlad"

# ---- includes ------------------------------------------------------------------------------------------------------

# sources: the C files of the house, without tests, tools and examples
sources() {
    for f in *.c *.h */*.c */*.h; do
        case $f in tests/* | tools/* | examples/* | build*/* | demo-out/* | '*'*) ;; *) echo "$f" ;; esac
    done
}

# include_pairs: FILE INCLUDED, both from the root
include_pairs() {
    sources | while read -r f; do
        sed -n 's/^[[:space:]]*#[[:space:]]*include[[:space:]]*"\([^"]*\)".*/\1/p' "$f" | sed "s|^|$f |"
    done
}

# Each include exists, written from the root.
includes_exist() {
    include_pairs | while read -r f included; do
        [ -f "$included" ] || echo "$f includes $included, which is not there"
    done
}

# A room includes only itself and rooms to its left. The exception: fast/NAME_* includes NAME.h, the contract of the
# chapter that it replaces functions of.
arrows() {
    include_pairs | awk '
        BEGIN {
            n = split("io tensor fast load encoders chapters bank samlad library report eval command", rooms, " ")
            for (i = 1; i <= n; i++) rank[rooms[i]] = i
        }
        function stem(path) { sub(/\.[a-z]*$/, "", path); return path }
        function room(path) {
            if (path ~ /\//) { sub(/\/.*/, "", path); return path }
            path = stem(path)
            return path == "tensor" ? path : path == "samlad" || path == "algorithm" ? "samlad" : "chapters"
        }
        {
            from = room($1); to = room($2)
            if (!(from in rank)) { print $1 " stands in no room"; next }
            if (!(to in rank)) { print $2 " stands in no room"; next }
            if (rank[to] <= rank[from]) next
            if (from == "fast" && $2 !~ /\// && $2 ~ /\.h$/ && index($1, "fast/" stem($2) "_") == 1) next
            print $1 " (" from ") includes " $2 " (" to ")"
        }'
}

# No circle of includes; X.h and X.c are one. An include lies on a circle when the included reaches the including.
circles() {
    include_pairs | awk '
        function stem(path) { sub(/\.[a-z]*$/, "", path); return path }
        function reaches(from, to,    i, n, next_ones) {
            if (from == to) return 1
            if (seen[from]++) return 0
            n = split(includes[from], next_ones, " ")
            for (i = 1; i <= n; i++) if (reaches(next_ones[i], to)) return 1
            return 0
        }
        { a = stem($1); b = stem($2); if (a != b && !edge[a " " b]++) includes[a] = includes[a] " " b }
        END {
            for (e in edge) {
                split(e, p, " ")
                split("", seen)
                if (reaches(p[2], p[1])) print p[1] " includes " p[2] ", on a circle"
            }
        }' | sort
}

# On top stand the chapters alone.
top_files() {
    for f in *.c; do
        case " $CHAPTERS " in *" ${f%.c} "*) ;; *) [ ! -f "$f" ] || echo "$f is no chapter" ;; esac
    done
}

# ---- chapters ------------------------------------------------------------------------------------------------------

chapter_files() { for c in $CHAPTERS; do [ ! -f "$c.c" ] || echo "$c.c"; done; }

# functions FILE: NAME LINES of each function that it defines; lines from { to }
functions() {
    awk '
        /^[A-Za-z_][^;]*\(/ { head = $0; sub(/\(.*/, "", head); sub(/.*[^A-Za-z0-9_]/, "", head) }
        /;[[:space:]]*$/ && !/^[[:space:]{}]/ { head = "" }
        /^\{$/ { start = FNR }
        /^\}$/ { if (start && head != "") print head, FNR - start + 1; start = 0; head = "" }' "$1"
}

long_functions() {
    for f in $(chapter_files); do
        functions "$f" | awk -v f="$f" '$2 > 60 { print f ":" $1 " has " $2 " lines, more than 60" }'
    done
}

# Vectors, intrinsics and forks by preprocessor live in fast/. A reduction would divide a sum among threads.
plain_chapters() {
    for f in $(chapter_files); do
        awk -v f="$f" '
            /^[[:space:]]*#[[:space:]]*if/ { print f ":" FNR ": " $0 }
            /^[[:space:]]*#[[:space:]]*pragma/ && (!/omp parallel for/ || /reduction/) { print f ":" FNR ": " $0 }
            /vector_size/ || /(^|[^A-Za-z_])Vec[ *)]/ || /(^|[^A-Za-z_])_mm[0-9]*_/ || /intrin\.h/ { print f ":" FNR ": " $0 }' "$f"
    done
}

# ---- documents -----------------------------------------------------------------------------------------------------

# quoted FILE: what stands in single backquotes, a line each
quoted() { grep -o '`[^`]*`' "$1" 2>/dev/null | tr -d '`'; }

# citations DOCUMENT ANYWHERE: `name.c:function` must be defined in that file. Unless ANYWHERE is 1, the file is a
# chapter or tensor.c.
citations() {
    [ -f "$1" ] || echo "$1 is not there"
    quoted "$1" | grep -E '^[A-Za-z0-9_/]+\.[ch]:[A-Za-z_][A-Za-z0-9_]*$' | sort -u | while IFS=: read -r f name; do
        if [ ! -f "$f" ]; then
            echo "$1: $f:$name: there is no such file"
        elif ! functions "$f" | grep -q "^$name "; then
            echo "$1: $f:$name: the file defines no such function"
        elif [ "$2" != 1 ]; then
            case " $CHAPTERS " in *" ${f%.c} "*) ;; *) echo "$1: $f:$name: not in a chapter" ;; esac
        fi
    done
}

# Each --option of a document is in the table of options, or the command knows it.
options() {
    grep -oE -- '(^|[^-A-Za-z0-9])--[a-z][a-z0-9-]*' "$1" 2>/dev/null | sed 's/^.*--//; s/-$//' | sort -u | while read -r option; do
        cat bank/options.c command/*.c 2>/dev/null | grep -qE -- "(--|\")$option([^a-z0-9-]|\$)" || echo "$1: no option --$option"
    done
}

# Paths in backquotes exist: those below a folder of ours, and bare names of C files, on top or in a room.
paths() {
    quoted "$1" | grep -E '^[A-Za-z0-9_./-]+$' | sort -u | while read -r path; do
        case $path in
        io/* | fast/* | load/* | encoders/* | bank/* | library/* | report/* | eval/* | command/* | tests/* | tools/* | weights/* | examples/* | docs/* | .ci/*)
            [ -e "$path" ] || echo "$1: $path is not there" ;;
        */* | X.[ch]) ;;
        *.[ch])
            found=0
            for f in "$path" */"$path"; do [ ! -f "$f" ] || found=1; done
            [ $found = 1 ] || echo "$1: $path is not there" ;;
        esac
    done
}

# A test that a document names, `test_NAME`, is a function or a program of tests/.
tests_named() {
    quoted "$1" | grep -E '^test_[A-Za-z0-9_]+$' | sort -u | while read -r name; do
        grep -qsE "^static void $name\(" tests/*.c || [ -f "tests/$name.c" ] || [ -f "tests/$name.sh" ] || echo "$1: no test $name"
    done
}

# Comments cite the method as "docs/METHOD.md N": a section that is there.
sections() {
    grep -oE '[a-z./]*METHOD(\.md)?,? (section |sections )?[0-9]+' $(sources) $(ls tests/*.[ch] tests/*.py tests/*.sh tools/*.* tools/train/*.* 2>/dev/null | grep -v test_house) 2>/dev/null |
        sort -u | while IFS=: read -r f citation; do
        case $citation in
        "docs/METHOD.md "[0-9]*)
            grep -q "^## ${citation#docs/METHOD.md }\." docs/METHOD.md 2>/dev/null || echo "$f cites $citation, which has no such section" ;;
        *) echo "$f cites $citation, not docs/METHOD.md N" ;;
        esac
    done
}

# ---- a small house with one defect of each kind --------------------------------------------------------------------

# finds CHECK PATTERN...: the check, in the small house, prints lines like each pattern, and no others
finds() {
    check=$1
    shift
    $check >"$dir/out" 2>"$dir/err"
    n=$(grep -c . <"$dir/out")
    for pattern; do
        if grep -Eq -- "$pattern" "$dir/out"; then ok; else bad "$check does not find the planted '$pattern'"; fi
    done
    if [ "$n" -eq $# ]; then ok; else bad "$check finds $n defects of $# planted: $(cat "$dir/out")"; fi
}

mkdir -p "$dir/house/io" "$dir/house/fast" "$dir/house/bank" "$dir/house/attic" "$dir/house/command" "$dir/house/docs" "$dir/house/tests"
cd "$dir/house" || exit 1
printf '#include "io/b.h"\n' >io/a.h
printf '#include "io/a.h"\n/* docs/METHOD.md 1 and docs/METHOD.md 9 */\n' >io/b.c
: >io/b.h
printf '#include "bank/bank.h"\n#include "io/a.h"\n' >io/c.c # leads to the circle, but is not on it
printf '#include "tensor.h"\n#include "vit.h"\n' >fast/vit_quick.c # both allowed
printf '  #  include "vit.h"\n' >fast/attention.c                  # not the fast form of vit
printf '#include "b.h"\n' >bank/bank.c
: >bank/bank.h
printf '#include "vit.h"\n' >attic/old.c
: >tensor.h
: >vit.h
: >scrap.c
{
    printf '#include "vit.h"\n/* no #if here: Vectors are in fast */\nint proto(int a,\n          int b);\nstatic int fine(int a,\n                int b)\n{\n'
    for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29; do printf '    a++;\n    b++;\n'; done
    printf '}\n\nint *too_long(void)\n{\n'
    for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29; do printf '    a++;\n    b++;\n'; done
    printf '    return 0;\n}\n#ifdef FAST\n#endif\n#pragma omp parallel for\n#pragma omp parallel for reduction(+ : x)\n#pragma omp critical\n#pragma omp atomic\n    Vec v;\n'
} >vit.c
printf '# METHOD.md 1\nstatic void test_there(void)\n' >tests/test_cat.c
printf '{"k", 1}\n' >bank/options.c
printf 'usage --out FILE\n' >command/cli.c
cat >docs/METHOD.md <<'END'
## 1. The only section
`vit.c:fine` `vit.c:too_long` `vit.c:proto` `gone.c:f` `bank/options.c:main` `fast/attention.c:fast_form` --k and `--out FILE`, not --ou nor --kk
| a | b |
|---|:--|
`test_there` `test_cat` `test_dog` `io/a.h` `io/gone.h` `scene.c` `options.c` `other/project.c` `X.c` `vit.c`
END
printf 'int fast_form(void)\n{\n}\n' >>fast/attention.c

finds includes_exist '^bank/bank.c includes b.h'
finds arrows '^io/c.c .io. includes bank/bank.h' '^fast/attention.c .fast. includes vit.h' '^attic/old.c stands in no room'
finds circles '^io/a includes io/b,' '^io/b includes io/a,'
finds top_files '^scrap.c is no chapter'
finds long_functions '^vit.c:too_long has 61 lines'
finds plain_chapters '#ifdef FAST' 'reduction' 'omp critical' 'omp atomic' 'Vec v'
finds 'citations docs/METHOD.md' 'vit.c:proto: the file defines no' 'gone.c:f: there is no' 'options.c:main: the file defines no' 'attention.c:fast_form: not in a chapter'
finds 'citations docs/METHOD.md 1' 'vit.c:proto' 'gone.c:f' 'options.c:main'
finds 'citations docs/READING.md 1' 'READING.md is not there'
finds 'options docs/METHOD.md' 'no option --ou$' 'no option --kk$'
finds sections '^io/b.c cites docs/METHOD.md 9, which' '^tests/test_cat.c cites METHOD.md 1, not'
finds 'tests_named docs/METHOD.md' 'no test test_dog'
finds 'paths docs/METHOD.md' 'io/gone.h is not there' 'scene.c is not there'

# ---- this house ----------------------------------------------------------------------------------------------------

# holds SENTENCE CHECK: the check finds nothing here
holds() {
    $2 >"$dir/out" 2>"$dir/err"
    if [ -s "$dir/out" ] || [ -s "$dir/err" ]; then
        bad "$1"
        sed 's/^/    /' "$dir/out"
    else
        ok
    fi
}

cd "$here" || exit 1
holds "each include is written from the root and exists" includes_exist
holds "a room includes only rooms to its left" arrows
holds "there is no circle of includes" circles
holds "only chapters stand on top" top_files
holds "a function of a chapter has at most 60 lines" long_functions
holds "chapters have no #if, no vectors, no pragma but the loop" plain_chapters
holds "METHOD.md cites functions of chapters that exist" "citations docs/METHOD.md"
holds "comments cite sections of docs/METHOD.md that exist" sections
for document in docs/METHOD.md docs/READING.md docs/OUTPUT.md README.md; do
    holds "$document cites functions that exist" "citations $document 1"
    holds "$document names options that exist" "options $document"
    holds "$document names files that exist" "paths $document"
    holds "$document names tests that exist" "tests_named $document"
done

summary
