"""The model's renderer of the `renderers` library (PyPI), where it really has the model.

The library knows models by the exact name they were published under; for all others it would fall
back to the chat template, and perhaps ask a hub. So it is asked only for names it lists, and its
renderer is taken only if it writes the same IDs as the tokenizer's own template.
"""

from rlbridge.onpolicy.bridge import Renderer
from rlbridge.onpolicy.template import ANSWER, NEWS, QUESTION, ChatTemplate, TemplateError
from rlbridge.onpolicy.tokenizer import ChatTokenizer, encode

_TALK = [
    {"role": "user", "content": QUESTION},
    {"role": "assistant", "content": ANSWER},
    {"role": "user", "content": NEWS},
]


def renderer_for(tokenizer: ChatTokenizer) -> Renderer | None:
    """The library's renderer for `tokenizer.name_or_path`, to be handed to `Bridge`.

    Returns:
        None where the library is not installed, doesn't list the model, can't use the tokenizer,
        or would write other IDs than the template.
    """
    try:
        from renderers import create_renderer
        from renderers.base import MODEL_RENDERER_MAP
    except ImportError:
        return None
    name = MODEL_RENDERER_MAP.get(getattr(tokenizer, "name_or_path", ""))
    if name in {None, "default"}:
        return None
    # It asserts on a vocabulary without the tokens it needs.
    try:
        renderer = create_renderer(tokenizer)
        template = ChatTemplate(tokenizer)
        same = all(
            list(renderer.render_ids(talk, add_generation_prompt=True))
            == encode(tokenizer, template.render(talk))
            for talk in (_TALK[:1], _TALK)
        )
    except (AssertionError, ValueError, KeyError, TemplateError):
        return None
    found: Renderer | None = renderer if same else None
    return found
