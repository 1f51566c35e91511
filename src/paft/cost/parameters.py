"""How many parameters a model and its adapters have, from its shape alone. Pure arithmetic, loads no torch."""

from paft.config import ALL_LINEAR, LoraConfig, ModelShape


def linear_sizes(shape: ModelShape) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of the linear layers of one decoder layer."""
    hidden, inner = shape.hidden_size, shape.intermediate_size
    queries, keys = (n * shape.head_dim for n in (shape.num_attention_heads, shape.num_key_value_heads))
    return {
        "q_proj": (hidden, queries),
        "k_proj": (hidden, keys),
        "v_proj": (hidden, keys),
        "o_proj": (queries, hidden),
        "gate_proj": (hidden, inner),
        "up_proj": (hidden, inner),
        "down_proj": (inner, hidden),
    }


def linear_parameters(shape: ModelShape) -> int:
    """Of all decoder layers together: what every token is multiplied with."""
    return shape.num_hidden_layers * sum(n * m for n, m in linear_sizes(shape).values())


def head_parameters(shape: ModelShape) -> int:
    return shape.vocab_size * shape.hidden_size


def parameters(shape: ModelShape) -> int:
    """All of them: linear layers, norms, embeddings, and the output head where it is not the embeddings."""
    norms = (2 * shape.num_hidden_layers + 1) * shape.hidden_size
    return linear_parameters(shape) + norms + head_parameters(shape) * (1 if shape.tie_word_embeddings else 2)


def adapted(shape: ModelShape, lora: LoraConfig) -> list[tuple[int, int]]:
    """(inputs, outputs) of the linear layers of one decoder layer that have LoRA factors."""
    every = lora.target_modules == [ALL_LINEAR]
    return [size for name, size in linear_sizes(shape).items() if every or name in lora.target_modules]


def lora_parameters(shape: ModelShape, lora: LoraConfig) -> int:
    return shape.num_hidden_layers * lora.rank * sum(n + m for n, m in adapted(shape, lora))


def dropout_masks(shape: ModelShape, lora: LoraConfig) -> int:
    """Bytes of one layer and token: which inputs of its adapters stay, a byte each; kept for the backward pass."""
    return sum(inputs for inputs, _ in adapted(shape, lora)) if lora.dropout else 0
