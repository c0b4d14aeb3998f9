"""The same preparation as people write it: `datasets.map` in batches, transformers' chat template and mask of answers.

    python bench/map_rows.py chats.jsonl MODEL_FOLDER PROCESSES

The model's template has no generation tags, so it gets them here: text and tokens stay the same. Timed is what comes after
the imports, from the file to the written Arrow files, without any cache of an earlier run.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from hashlib import sha256

PLAIN = "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
TAGGED = (
    "{{'<|im_start|>' + message['role'] + '\n'}}{% if message['role'] == 'assistant' %}{% generation %}"
    "{{message['content'] + '<|im_end|>'}}{% endgeneration %}{% else %}{{message['content'] + '<|im_end|>'}}{% endif %}"
    "{{'\n'}}"
)


def main() -> None:
    chats, folder, processes = sys.argv[1], sys.argv[2], int(sys.argv[3])
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if processes == 1 else "false"  # else forked processes warn
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    template = tokenizer.chat_template
    if PLAIN not in template:
        sys.exit("the model's template is not the one that the tags were written for")
    tokenizer.chat_template = template.replace(PLAIN, TAGGED)

    def prepared(rows: dict) -> dict:
        made = tokenizer.apply_chat_template(
            rows["messages"], return_dict=True, return_assistant_tokens_mask=True
        )
        labels = [
            [token if bit else -100 for token, bit in zip(ids, mask, strict=True)]
            for ids, mask in zip(made["input_ids"], made["assistant_masks"], strict=True)
        ]
        return {"input_ids": made["input_ids"], "labels": labels}

    with tempfile.TemporaryDirectory() as cache:
        wall, cpu = time.perf_counter(), _cpu()
        read = datasets.load_dataset("json", data_files=chats, split="train", cache_dir=cache)
        several = processes if processes > 1 else None
        done = read.map(prepared, batched=True, num_proc=several, remove_columns=read.column_names)
        wall, cpu = time.perf_counter() - wall, _cpu() - cpu
        digest = sha256()
        for row in done.with_format("numpy"):
            digest.update(row["input_ids"].astype("<i4").tobytes() + (row["labels"] >= 0).tobytes())
    sys.stdout.write(json.dumps({"seconds": wall, "cpu": cpu, "digest": digest.hexdigest()}) + "\n")


def _cpu() -> float:
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


if __name__ == "__main__":
    main()
