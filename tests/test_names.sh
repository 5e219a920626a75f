#!/bin/sh
# test_names.sh - the command on checkpoints of Hugging Face and timm: info, a bank and its settings, PyTorch files.

. "$(dirname "$0")/shell.sh"
bin=$(cd "$(dirname "${SAMLAD_BIN:-$here/../build/samlad}")" && pwd)/samlad
cp -r "$here/golden/names/hf" "$here/golden/names/timm" "$dir" || exit 1
chmod -R u+w "$dir"
cd "$dir" || exit 1

# run STATUS PATTERN COMMAND...: it exits so, and a line of its output fits
run() {
    want=$1 pattern=$2
    shift 2
    "$@" >out 2>&1
    status=$?
    if [ $status -ne "$want" ]; then bad "$*: status $status: $(tail -n 2 out)"; elif grep -q -- "$pattern" out; then ok; else bad "$*: no '$pattern'"; fi
}

run 0 "vit.n_heads = 2" "$bin" info hf
run 0 "samlad.names = .*Hugging Face" "$bin" info hf/model.safetensors.index.json
run 0 "blocks.0.mlp.w12.weight .* F16 *\[10\]\[64\]" "$bin" info timm/model.safetensors
run 1 "one shard of several" "$bin" info hf/model-00001-of-00002.safetensors
"$bin" info hf/model-00001-of-00002.safetensors >out 2>/dev/null
if grep -q "embeddings.cls_token" out; then ok; else bad "info does not print a shard before it refuses it"; fi

# A bank knows the settings that its backbone had.
"$bin" synth tray t --seed 5 >/dev/null 2>&1
mkdir good && cp t/train/good/00[0-3].png good
new=$(ls t/test/*/*.png | head -n 1)
run 0 "" "$bin" bank good -o a.bank --backbone hf --no-objects 1 --size 30
run 0 "" "$bin" detect --bank a.bank "$new" -o found --backbone hf/model.safetensors.index.json --no-pictures
sed 's/"num_attention_heads": 2/"num_attention_heads": 4/' hf/config.json >other && mv other hf/config.json
run 1 "the bank was made with the backbone weights" "$bin" detect --bank a.bank "$new" -o found2 --backbone hf --no-pictures
run 0 "" "$bin" bank good -o b.bank --backbone timm --no-objects 1 --size 24

# What cannot be opened says what to do.
printf '\200\002\212\n%032d' 0 >weights.pth
run 1 "tools/convert.py weights.pth -o weights.safetensors" "$bin" bank good -o c.bank --backbone weights.pth
cp weights.pth "it s.pth"
run 1 "tools/convert.py 'it s.pth' -o 'it s.safetensors'" "$bin" segment "$new" -o masks --sam "it s.pth"
run 1 "not a safetensors file" "$bin" info "$new"

summary
