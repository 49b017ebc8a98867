"""Parquet schemas that jobs write or read."""

from __future__ import annotations

import pyarrow as pa

# Encoded bytes, and the path of their source. Hugging Face `datasets` reads this struct as its Image feature.
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
CONTENT = pa.struct([("text", pa.string()), ("image", IMAGE)])
# For contents that may have several pictures: those have `images`, and a null `image`. A file of contents with at most
# one picture does not need the field.
CONTENT_OF_SEVERAL = pa.struct([*CONTENT, ("images", pa.list_(IMAGE))])

# The Parquet file that img2dataset writes beside each tar; columns of its source (similarity, NSFW, ...) come first.
IMG2DATASET = pa.schema(
    [
        ("NSFW", pa.string()),
        ("similarity", pa.float64()),
        ("punsafe", pa.float64()),
        ("pwatermark", pa.float64()),
        ("LANGUAGE", pa.string()),
        ("caption", pa.string()),
        ("url", pa.string()),
        ("key", pa.string()),
        ("status", pa.string()),
        ("error_message", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("original_width", pa.int32()),
        ("original_height", pa.int32()),
        ("exif", pa.string()),
        ("sha256", pa.string()),
    ]
)

# `mine` writes it; `synth`, `judge` and `rerank` read it. rank counts from 1; score is a similarity.
NEIGHBOURS = pa.schema(
    [
        ("query_id", pa.string()),
        ("candidate_id", pa.string()),
        ("rank", pa.int32()),
        ("score", pa.float32()),
        ("source", pa.string()),
    ]
)

# Beside each vector: what its row holds, whatever the instruction. Keys are equal where contents and pictures are; the
# picture's is that of a row of this picture alone, and null for rows of none or several. Modality: T, I or IT.
CONTENT_COLUMNS = (
    pa.field("content_key", pa.binary(16)),
    pa.field("picture_key", pa.binary(16)),
    pa.field("modality", pa.string()),
)

# (image, language) pairs that a plan must never draw, because a benchmark tests them as unseen.
HOLDOUT = pa.schema([("image_id", pa.string()), ("language", pa.string())])

QUARANTINE = pa.schema([("id", pa.string()), ("reason", pa.string()), ("detail", pa.string())])

# A training sample and its origin. `raw` is the teacher's whole answer: description, draft, evaluation, improvements,
# revision. Training reads the columns before it, which are taken from the revision.
SAMPLES = pa.schema(
    [
        ("id", pa.string()),
        ("task", pa.string()),
        ("modality_combination", pa.string()),
        ("language", pa.string()),
        ("instruction", pa.string()),
        ("document_instruction", pa.string()),
        ("query", CONTENT),
        ("positive", CONTENT),
        ("negatives", pa.list_(CONTENT)),
        ("image_ids", pa.list_(pa.string())),
        ("raw", pa.string()),
        ("prompt_sha256", pa.string()),
        ("teacher", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("completion_tokens", pa.int32()),
        ("usd", pa.float64()),
        ("seed", pa.int64()),
    ]
)

# A training sample with hard negatives that a judge has chosen. `scores` are of the positive, then of each negative;
# `negative_ids` are the candidates' ids in the neighbours.
JUDGED = pa.schema(
    [
        ("id", pa.string()),
        ("task", pa.string()),
        ("modality_combination", pa.string()),
        ("instruction", pa.string()),
        ("document_instruction", pa.string()),
        ("query", CONTENT_OF_SEVERAL),
        ("positive", CONTENT_OF_SEVERAL),
        ("negatives", pa.list_(CONTENT_OF_SEVERAL)),
        ("scores", pa.list_(pa.float32())),
        ("negative_ids", pa.list_(pa.string())),
    ]
)

# A benchmark folder: `queries.parquet` and `candidates.parquet`. Vectors are found by `id`.
QUERIES = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.string()),
        ("instruction", pa.string()),
        ("language", pa.string()),
        ("positive_id", pa.string()),
    ]
)
CANDIDATES = pa.schema([("id", pa.string()), ("image", IMAGE), ("text", pa.string())])
