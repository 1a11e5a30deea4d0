"""A program that runs SGLang's engine in its own process: prints what one pruned prompt came to."""

import json

from laprox_sglang import Engine
from laprox_sglang.needle import MODEL_PATH, Task

if __name__ == "__main__":
    engine = Engine(
        model_path=str(MODEL_PATH),
        device="cpu",
        attention_backend="torch_native",
        sampling_backend="pytorch",
        dtype="float32",
        max_total_tokens=8000,
        grammar_backend="none",
        laprox={"budget": 0.1},
    )
    sample = Task(7).batch(1, 800)[0]
    reply = engine.generate(
        input_ids=sample.prompt_ids(), sampling_params={"max_new_tokens": 8, "temperature": 0}
    )
    engine.shutdown()
    print(json.dumps({"pruned": reply["meta_info"]["laprox"][-1]["pruned"], "ids": reply["output_ids"]}))
