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
ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
)


def compiled(source: str) -> ChatTemplate:
    """`source` with the special tokens of ChatML."""
    return ChatTemplate(source, SPECIAL)
