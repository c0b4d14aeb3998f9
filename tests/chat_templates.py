"""Chat templates of every kind that masking has to get right, written for the tests."""

from __future__ import annotations

from sft_trainer.data.template import ChatTemplate

SPECIAL = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}

STRIPPING = (  # as Llama 2: trims contents, no generation prompt, a blank before the answer
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}<<SYS>>{{ m.content | trim }}<</SYS>>"
    "{% elif m.role == 'user' %}[INST] {{ m.content | trim }} [/INST]"
    "{% else %} {{ m.content | trim }} {{ eos_token }}{% endif %}{% endfor %}"
)
SYSTEM_AT_LAST_USER = (  # as Mistral: the system text moves with the number of turns
    "{% set system = messages[0].content if messages[0].role == 'system' else '' %}"
    "{% for m in messages if m.role != 'system' %}"
    "{% if m.role == 'user' %}[INST]{% if loop.revindex <= 2 %}{{ system }}{% endif %}{{ m.content }}[/INST]"
    "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
LLAMA = (  # as Llama 3: contents trimmed, an end-of-turn token and no line break
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
PHI = (  # as Phi 3.5: every turn has its end, and the conversation one of its own
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
PHI_TAGGED = PHI.replace(
    "{{ m.content }}",
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% else %}{{ m.content }}{% endif %}",
)
GEMMA = (  # as Gemma: the assistant is called model, the system text stands in the first question
    "{{ bos_token }}{% set system = messages[0].content + '\n\n' if messages[0].role == 'system' else '' %}"
    "{% for m in messages if m.role != 'system' %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{% if loop.first %}{{ system }}{% endif %}{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (  # as Mistral 7B: no generation prompt, blanks around the words, the system text in the first question
    "{{ bos_token }}{% set system = messages[0].content + '\n\n' if messages[0].role == 'system' else '' %}"
    "{% for m in messages if m.role != 'system' %}{% if m.role == 'user' %}"
    "[INST] {% if loop.first %}{{ system }}{% endif %}{{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
QWEN = (  # as Qwen 2.5: ChatML, with a system text of its own where there is none
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
REASONING = (  # as Qwen 3: thoughts stay in the last turn only, which gets empty ones otherwise
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role != 'assistant' %}{{ m.content }}"
    "{% elif loop.last %}{% if '</think>' not in m.content %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}"
    "{% else %}{{ m.content.split('</think>')[-1].lstrip('\n') }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
END_ONLY_ONCE = (  # one end-of-text token for the whole conversation
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% else %}{{ eos_token }}{% endif %}"
)
TAGGED = (  # marks the answer, but not its end
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WRONGLY_TAGGED = (  # marks everything once: not to be trusted
    "{% generation %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% endgeneration %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SHOUTING = "{% for m in messages %}{{ m.role }}: {{ m.content | upper }}\n{% endfor %}"  # cannot be masked
ENDLESS = (  # no token says where to stop
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
)


TOOLS = (  # says what tools there are, and what is called with which words
    "{% if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'tool' %}{{ m.content | tojson }}{% else %}{{ m.content }}{% endif %}"
    "{% for call in m.tool_calls or [] %}<call>{{ call.function | tojson }}</call>{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_OTHER_ROLES = (  # knows two roles and passes over the others; speaks of tools for nothing
    "{# tools and tool_calls are not supported #}{% for m in messages if m.role in ('user', 'assistant') %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FAMILIES = {  # template, its special tokens, the other tokens of its tokenizer, the text behind an answer
    "Llama": (
        LLAMA,
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
        ("<|start_header_id|>", "<|end_header_id|>"),
        "<|eot_id|>",
    ),
    "Phi": (PHI, {"eos_token": "<|endoftext|>"}, ("<|end|>", "<|user|>", "<|assistant|>"), "<|end|>"),
    "Phi-tagged": (PHI_TAGGED, {"eos_token": "<|endoftext|>"}, ("<|end|>", "<|user|>"), "<|end|>"),
    "Gemma": (
        GEMMA,
        {"bos_token": "<bos>", "eos_token": "<eos>"},
        ("<start_of_turn>", "<end_of_turn>"),
        "<end_of_turn>",
    ),
    "Mistral": (MISTRAL, {"bos_token": "<s>", "eos_token": "</s>"}, ("[INST]", "[/INST]"), "</s>"),
    "Qwen": (QWEN, {"eos_token": "<|im_end|>"}, ("<|im_start|>", "<|endoftext|>"), "<|im_end|>"),
}


def family(name: str) -> tuple[ChatTemplate, str]:
    """The template of a family of models, and what its models have to write behind every answer."""
    source, special, added, end = FAMILIES[name]
    return ChatTemplate(source, special, added), end


def compiled(source: str) -> ChatTemplate:
    """`source` with the special tokens of ChatML."""
    return ChatTemplate(source, SPECIAL)
