#!/bin/sh
# DigitAnatomy from real MNIST: 100 normal images as bank, 50 test images a kind; AUROC of missing, disordered, flipped, zero.
# Usage: sh tests/digits.sh SAMLAD MNIST_DIR [BACKBONE.safetensors]     (SEED and OUT in the environment)
# The official test set is not public as a file. These images are generated (docs/METHOD.md 10: random resized crops of MNIST digits).
# So their figures must not be compared with published DigitAnatomy figures.
set -e
samlad=$1 mnist=$2 backbone=$3 seed=${SEED:-1} out=${OUT:-digits-out}
[ -n "$mnist" ] || { sed -n '2,3p' "$0"; exit 2; }
[ -d "$out/digits-$seed" ] || "$samlad" synth digits --mnist "$mnist" "$out/digits-$seed" --seed "$seed" >/dev/null
for weights in shipped $backbone; do
    case $weights in
    shipped) echo "== the weights that ship"; set -- ;;
    *) echo "== $weights"; set -- --backbone "$weights" ;;
    esac
    "$samlad" eval "$out/digits-$seed" "$@"
done
