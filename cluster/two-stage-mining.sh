#!/bin/sh
# Two-stage mining, as GME and ANCE do it: train, embed, mine with the trained model, train on what was mined.
#
#   SAMPLES=samples/ BASE=Qwen/Qwen2-VL-2B-Instruct OUT=runs/two-stage cluster/two-stage-mining.sh num_workers=8 ...
#
# What follows the script's name goes to both trainings. RULES="rules=[nv-retriever] positives=..." chooses negatives
# otherwise (docs/mine.md), NEGATIVES how many of a sample the second training takes. Every job skips what is done: after
# a kill or a failure, start the same line again.
set -eu
: "${SAMPLES:?the folder of samples}" "${BASE:?the base model}" "${OUT:?where everything goes}"
: "${RULES:=min_rank=20 top_k=30}" "${NEGATIVES:=5}" "${EMBED:=}"

train input="$SAMPLES" model="$BASE" output="$OUT/train-1" "$@"
# shellcheck disable=SC2086  # several arguments in one variable
for side in query target; do
    embed-corpus input="$SAMPLES" side="$side" model="$OUT/train-1/model" output="$OUT/$side" $EMBED
done
# shellcheck disable=SC2086
mine queries="$OUT/query" candidates="$OUT/target" output="$OUT/mine" $RULES
[ -d "$OUT/mined" ] || mine export samples="$SAMPLES" neighbours="$OUT/mine" output="$OUT/mined" num_negatives="$NEGATIVES"
# From the base again: the paper trains a fresh model, on better negatives.
train input="$OUT/mined" model="$BASE" output="$OUT/train-2" "$@" num_negatives="$NEGATIVES"
