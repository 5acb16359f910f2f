"""The one home of JSON field names: Gym's, OpenAI's and vLLM's. Refuses nothing, does nothing.

Names only, so that a rename upstream is one line here. Bodies are built and read elsewhere:
Gym's in `rlbridge.gym`, token fields in `rlbridge.contracts.codecs`.
"""

from typing import Final

# NeMo Gym, a dataset row and the body of /verify (nemo-gym 0.4.0).
RESPONSES_CREATE_PARAMS: Final = "responses_create_params"
RESPONSE: Final = "response"
AGENT_REF: Final = "agent_ref"
REWARD: Final = "reward"
REWARD_COMPONENTS: Final = "reward_components"
MASK_SAMPLE: Final = "mask_sample"
EXTRACTED_ANSWER: Final = "extracted_answer"
FAILURE_CLASS: Final = "_ng_failure_class"
JUDGE_ERROR: Final = "_ng_failure_judge_error"
INSTANCE_CONFIG: Final = "instance_config"
VERIFY_RESPONSES: Final = "verify_responses"
TASK_INDEX: Final = "_ng_task_index"
ROLLOUT_INDEX: Final = "_ng_rollout_index"

FAILURE_TERMINAL: Final = "_ng_failure_terminal"

# Ours, on rows that rlbridge collected or scored again.
FAILURE_DETAIL: Final = "_rlbridge_failure_detail"
FAILURE_STATUS: Final = "_rlbridge_failure_status"
FAILURE_REPORTED: Final = "_rlbridge_failure_reported"
ROLLOUT_ATTEMPTS: Final = "_rlbridge_attempts"
PREVIOUS_REWARDS: Final = "_rlbridge_previous_rewards"

# Token fields, on the last output item of each model call.
PROMPT_TOKEN_IDS: Final = "prompt_token_ids"
GENERATION_TOKEN_IDS: Final = "generation_token_ids"
GENERATION_LOG_PROBS: Final = "generation_log_probs"
ROUTED_EXPERTS: Final = "routed_experts"
TOKEN_FIELDS: Final = (PROMPT_TOKEN_IDS, GENERATION_TOKEN_IDS, GENERATION_LOG_PROBS, ROUTED_EXPERTS)

# Gym's routes.
ROUTE_LIVENESS: Final = "/"
ROUTE_SEED: Final = "/seed_session"
ROUTE_VERIFY: Final = "/verify"
ROUTE_AGGREGATE: Final = "/aggregate_metrics"
ROUTE_RUN: Final = "/run"
ROUTE_GLOBAL_CONFIG: Final = "/global_config_dict_yaml"
ROUTE_SERVER_INSTANCES: Final = "/server_instances"

# What `responses_create_params` may hold; another key is a 422 (nemo-gym 0.4.0).
CREATE_PARAMS_FIELDS: Final = frozenset(
    {
        "background",
        "include",
        "input",
        "instructions",
        "max_output_tokens",
        "max_tool_calls",
        "metadata",
        "model",
        "parallel_tool_calls",
        "previous_response_id",
        "prompt",
        "reasoning",
        "service_tier",
        "store",
        "stream",
        "temperature",
        "text",
        "tool_choice",
        "tools",
        "top_logprobs",
        "top_p",
        "truncation",
        "user",
    }
)

# Token fields of vLLM's replies.
TOKEN_IDS: Final = "token_ids"
WEIGHT_VERSIONS: Final = "weight_versions"

# What shapes the distribution a token is sampled from, in OpenAI's and vLLM's words.
SHAPING_PARAMS: Final = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
)
# These, and what ends an answer or seeds it.
SAMPLING_PARAMS: Final = (
    *SHAPING_PARAMS,
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "seed",
)
