#!/bin/bash
# The foreign programs of test_export_peers.py, each below a folder of its own: peers.sh FOLDER [vpt|peers|qupath|anndatar]... (all of them without names).
# Needs uv (make setup puts one into .istseg/bootstrap/bin), for qupath Java 17 and Maven, for anndatar R with rhdf5.
set -euo pipefail
folder=$(mkdir -p "$1" && cd "$1" && pwd)
shift
root=$(cd "$(dirname "$0")/../.." && pwd)
uv=$(command -v uv || echo "$root/.istseg/bootstrap/bin/uv")

environment() { # NAME PACKAGE...
    "$uv" venv -q --python "$root/.venv/bin/python" "$folder/$1"
    "$uv" pip install -q --python "$folder/$1/bin/python" "${@:2}"
}

source_of() { # REPOSITORY TAG-OR-BRANCH: a checkout; ISTSEG_MIRROR names a folder with `owner+name/repo` where GitHub is not in reach
    local from="https://github.com/$1"
    [ -z "${ISTSEG_MIRROR:-}" ] || from="$ISTSEG_MIRROR/${1/\//+}/repo"
    git clone -q --depth 1 --branch "$2" "$from" "$3"
}

qupath() { # its core without the window: 263 classes
    local source jar
    source=$(mktemp -d)
    source_of qupath/qupath v0.5.1 "$source/qupath"
    rm "$source/qupath/qupath-core/src/main/java/module-info.java"
    for jar in com.google.code.gson:gson:2.11.0 org.locationtech.jts:jts-core:1.20.0 com.google.guava:guava:33.3.1-jre com.google.guava:failureaccess:1.0.2 \
        org.apache.commons:commons-math3:3.6.1 info.picocli:picocli:4.7.6 net.imagej:ij:1.54f org.slf4j:slf4j-api:2.0.16 org.slf4j:slf4j-nop:2.0.16; do
        mvn -q -B dependency:copy "-Dartifact=$jar" "-DoutputDirectory=$folder/qupath/lib"
    done
    find "$source/qupath/qupath-core/src/main/java" -name '*.java' > "$source/files"
    javac -encoding UTF-8 -proc:none -nowarn -cp "$folder/qupath/lib/*" -d "$folder/qupath/classes" "@$source/files"
    cp -r "$source/qupath/qupath-core/src/main/resources/." "$folder/qupath/classes"
    rm -rf "$source"
}

anndatar() {
    local source
    source=$(mktemp -d)
    source_of scverse/anndataR "${ANNDATAR_BRANCH:-main}" "$source/anndataR"
    mkdir -p "$folder/R"
    R CMD INSTALL --no-docs -l "$folder/R" "$source/anndataR"
    rm -rf "$source"
}

[ $# -gt 0 ] || set -- vpt peers qupath anndatar
for name in "$@"; do
    case $name in
        vpt) environment vpt vpt 'setuptools<81' ;;
        peers) environment peers squidpy napari-spatialdata sopa pyqt6 ;;
        qupath | anndatar) "$name" ;;
        *) echo "peers.sh: $name is none of vpt, peers, qupath, anndatar" >&2 && exit 2 ;;
    esac
done
