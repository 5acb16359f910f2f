"""vLLM 0.20's names in a vLLM that has others by now, for NeMo-RL v0.7.0's server.

It wants 0.20, of which there is no build for CPUs here; what it takes from vLLM was renamed since.
Names and arguments are passed on, nothing is done by ourselves.
"""

import importlib.util
import sys
from types import ModuleType
from typing import Any


def provide() -> None:
    """Put the old names where NeMo-RL v0.7.0 imports them; nothing in a vLLM that has them."""
    if importlib.util.find_spec("vllm.entrypoints.serve.render") is not None:
        return
    from vllm.entrypoints.openai.chat_completion import serving as chat
    from vllm.entrypoints.serve.tokenize import serving as tokenize
    from vllm.renderers.online_renderer import OnlineRenderer

    class OpenAIServingRender(OnlineRenderer):  # type: ignore[misc]
        """`OnlineRenderer`, whose `preprocess_chat` has one parser for two."""

        def __init__(self, *, model_registry: Any, **kwargs: Any) -> None:
            super().__init__(**kwargs)

        def __init_subclass__(cls) -> None:
            theirs: Any = cls.preprocess_chat

            async def preprocess_chat(self: Any, *args: Any, parser: Any = None, **kw: Any) -> Any:
                return await theirs(self, *args, tool_parser=parser, **kw)

            cls.preprocess_chat = preprocess_chat

        async def preprocess_chat(
            self, *args: Any, tool_parser: Any = None, reasoning_parser: Any = None, **kw: Any
        ) -> Any:
            return await super().preprocess_chat(*args, parser=tool_parser, **kw)

    class OpenAIServingChat(chat.OpenAIServingChat):  # type: ignore[misc]
        def __init__(self, *, openai_serving_render: Any, **kwargs: Any) -> None:
            super().__init__(online_renderer=openai_serving_render, **kwargs)

    class OpenAIServingTokenization(tokenize.ServingTokenization):  # type: ignore[misc]
        def __init__(self, *, engine_client: Any, openai_serving_render: Any, **kw: Any) -> None:
            super().__init__(online_renderer=openai_serving_render, **kw)

    chat.OpenAIServingChat = OpenAIServingChat
    tokenize.OpenAIServingTokenization = OpenAIServingTokenization
    serving = ModuleType("vllm.entrypoints.serve.render.serving")
    serving.OpenAIServingRender = OpenAIServingRender  # type: ignore[attr-defined]
    sys.modules["vllm.entrypoints.serve.render"] = ModuleType("vllm.entrypoints.serve.render")
    sys.modules["vllm.entrypoints.serve.render.serving"] = serving
