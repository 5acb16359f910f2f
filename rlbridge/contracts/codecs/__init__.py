"""Token data in other people's JSON, and back: one module a format.

`engine` and `stream`: replies of vLLM and of what speaks like it. `gym`: the token fields on
Responses items. `messages`: Chat messages and Responses items. `files`: rollouts as JSON and npz.
All refuse what they can't read in full; none invents an ID or a logprob.
"""
