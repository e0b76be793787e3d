"""SGLang's scheduler (rules as of 0.5.23): prefill first, token budgets, radix cache, retraction, overlap."""
