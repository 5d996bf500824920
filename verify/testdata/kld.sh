#!/bin/sh
# Writes kld.base.zst and kld.txt: what llama.cpp's own tools say of tiny-r1 (the demonstration's model) in F32 and Q4_K_M.
#
# usage: sh kld.sh BIN TEXT F32.gguf DEQUANT
#
# BIN has llama-perplexity and llama-quantize (testdata/oracle/build.sh), TEXT is eval-docs.txt, F32.gguf the checkpoint as
# llama.cpp's converter writes it, DEQUANT a program that copies a GGUF file with quantised weights as F32 (gguf-py's
# dequantize). The file of weights instead of the quantised one, because the tools round activations to 8 bits for the latter.
set -e
bin=$1 text=$2 f32=$3 dequant=$4
exact="-fa off -ctk f32 -ctv f32" # without it keys and values are rounded to 16 bits
work=$(mktemp -d)
export LD_LIBRARY_PATH=$bin
"$bin/llama-perplexity" -m "$f32" -f "$text" --no-escape -c 56 --chunks 4 -t 2 $exact --kl-divergence-base "$work/kld.base"
"$bin/llama-quantize" "$f32" "$work/q.gguf" Q4_K_M 2
"$dequant" "$work/q.gguf" "$work/q-f32.gguf"
"$bin/llama-perplexity" -m "$work/q-f32.gguf" -c 56 -t 2 $exact --kl-divergence --kl-divergence-base "$work/kld.base" 2>/dev/null > kld.txt
zstd -19 -f "$work/kld.base" -o kld.base.zst
rm -r "$work"
