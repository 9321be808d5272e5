"""Opens a job's result with nothing but transformers and peft, and answers prompts greedily with `generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(group: Any, arguments: dict[str, Any], directory: Path) -> dict[str, Any]:
    path = arguments["directory"]
    opener: Any = AutoPeftModelForCausalLM if arguments["kind"] == "adapter" else AutoModelForCausalLM
    model, tokenizer = opener.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    answers = []
    for prompt in arguments["prompts"]:
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
        with torch.no_grad():
            out = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=arguments["max_new_tokens"], do_sample=False
            )
        answers.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    return {"answers": answers}
